"""The Python face of a job: what its arguments mean, and what is said of wrong ones."""

import inspect
from pathlib import Path

import pytest

from headrace.cluster.config import keys_named
from headrace.cluster.grpo_trainer import NAMES_ELSEWHERE, GRPOTrainer
from headrace.cluster.job_file import dump_job, load_job
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.trainer import check_compatible
from headrace.verifiers import RegexVerifier
from headrace.verifiers.errors import UserError
from headrace.verifiers.function import CallableVerifier
from headrace.verifiers.records import Sample


def reward(completion: str, row: dict) -> float:
    return float(row["answer"] in completion)


def test_every_argument_means_the_key_of_its_name():
    trainer = GRPOTrainer(
        base_model="Qwen/Qwen2.5-7B-Instruct",
        train_data="/data/prompts.jsonl",
        reward_fn=reward,
        eval_data="/data/held_out.jsonl",
        group_size=4,
        kl_coef=0.04,
        learning_rate=5e-7,
        use_vllm=True,
        seed=3,
        run_dir="/runs/x",
        rollout__max_tokens=48,
        rollout__engine={"max_num_seqs": 8},
        warm_start__data="/data/warm.jsonl",
    )
    job = trainer.job
    assert job.model.base == "Qwen/Qwen2.5-7B-Instruct"
    assert job.data.train == Path("/data/prompts.jsonl")
    assert job.data.held_out == Path("/data/held_out.jsonl")
    assert (job.algorithm.group_size, job.algorithm.kl_coef) == (4, 0.04)
    assert (job.learner.learning_rate, job.job.seed) == (5e-7, 3)
    assert RunFolder.of(job).path == Path("/runs/x")
    assert (job.rollout.max_tokens, job.rollout.engine) == (48, {"max_num_seqs": 8})
    assert job.warm_start.data == Path("/data/warm.jsonl")


def test_relative_paths_start_at_the_working_directory_and_stay_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = GRPOTrainer("./model", Path("a.jsonl"), reward, eval_data="b.jsonl", warm_start__data="c.jsonl")
    monkeypatch.chdir("/")
    job = trainer.job
    assert job.model.base == str(tmp_path / "model")
    assert [job.data.train, job.data.held_out, job.warm_start.data] == [tmp_path / f"{name}.jsonl" for name in "abc"]


def test_a_plain_function_is_the_reward_and_is_named_in_the_job():
    trainer = GRPOTrainer("smollm2-135m", "a.jsonl", reward)
    assert isinstance(trainer._verifier, CallableVerifier)
    assert trainer._verifier.verify(Sample("4", {"answer": "4"})).reward == 1.0
    assert trainer.job.reward.python.startswith("reward ")


def test_a_verifier_is_taken_as_it_is():
    verifier = RegexVerifier(pattern="a+")
    assert GRPOTrainer("smollm2-135m", "a.jsonl", verifier)._verifier is verifier


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"use_vllm": False}, r"use_vllm=False: generation is vLLM's"),
        ({"group_size": 1}, r"algorithm\.group_size: input should be greater than or equal to 2, not 1"),
        ({"learning_rate": "fast"}, r"learner\.learning_rate: input should be a valid number"),
        ({"max_tokens": 48}, r"max_tokens: not an argument of GRPOTrainer; a key .* `rollout__max_tokens`$"),
        ({"num_generations": 8}, r"num_generations: not an argument of GRPOTrainer; here it is `group_size`$"),
        ({"group_sise": 8}, r"group_sise: not an argument of GRPOTrainer; did you mean `group_size`\?$"),
        ({"run_dir": 3}, r"^job\.run_dir: is int, not a path$"),
        ({"rollout__max_token": 48}, r"rollout\.max_token: unknown key `max_token`; did you mean `max_tokens`\?"),
        ({"rolout__max_tokens": 48}, r"rolout: unknown key `rolout`; did you mean `rollout`\?"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_trainer_is_made(arguments, says):
    with pytest.raises(UserError, match=says):
        GRPOTrainer("smollm2-135m", "a.jsonl", reward, **arguments)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["smollm2-135m", [{"prompt": "a"}], reward], r"^data\.train: is list, not a path$"),
        (["smollm2-135m", "a.jsonl", "rewards.py:score"], r"^reward_fn: give the function itself"),
        (["smollm2-135m", "a.jsonl", RegexVerifier], r"^reward_fn: give RegexVerifier\(\.\.\.\), not the class$"),
    ],
)
def test_what_is_given_in_the_wrong_form_is_told_what_it_should_be(given, says):
    with pytest.raises(UserError, match=says):
        GRPOTrainer(*given)


@pytest.mark.parametrize("name", NAMES_ELSEWHERE.values())
def test_what_other_trainers_names_are_called_here_is_there(name):
    taken = [*inspect.signature(GRPOTrainer).parameters, "train(num_steps)"]
    assert name in taken or tuple(name.split("__")) in keys_named(name.partition("__")[2])
    assert "num_steps" in inspect.signature(GRPOTrainer.train).parameters


def test_training_takes_the_number_of_steps_and_checks_the_data_before_anything_starts(tmp_path):
    trainer = GRPOTrainer("smollm2-135m", tmp_path / "gone.jsonl", reward, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.train: .*no such file"):
        trainer.train(num_steps=7)
    assert trainer.job.job.steps == 7
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"job\.steps"):
        trainer.train(num_steps=0)


def test_a_folder_that_holds_a_run_is_refused_in_pythons_words(letters_job):
    run_dir = letters_job.parent / "run"
    trainer = GRPOTrainer("smollm2-135m", "a.jsonl", reward, run_dir=run_dir)
    with pytest.raises(UserError, match=r"no run to resume here; start one with train\(7\)$"):
        trainer.train(7, resume=True)
    (run_dir / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        trainer.train(7)
    assert str(error.value) == (
        f"{run_dir}: already holds a run; go on with train(7, resume=True), or give GRPOTrainer another run_dir"
    )


def test_a_job_with_a_relative_model_folder_resumes_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = GRPOTrainer("./model", "a.jsonl", reward)
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    folder.write_job(dump_job(trainer.job))
    check_compatible(trainer.job, load_job(folder.job), folder)
