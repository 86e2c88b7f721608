"""Wrong input to the `headrace` command: one line that says what and where, exit status 2, no trace, nothing started."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from headrace.actors import libnuma
from headrace.cluster import base_model, preparation
from headrace.cluster.cli import main
from headrace.cluster.job_file import dump_job, load_job

COMMAND = Path(sys.executable).with_name("headrace")
FIRST_LINES = ("reading the data", "loading torch and transformers")
SECONDS = 60.0  # for the whole command; most of what it takes is importing torch and ray


@pytest.fixture
def letters_job(letters_job) -> Path:
    """For the command, whose engine is vLLM."""
    replace(letters_job, "slots = 16", "max_num_seqs = 16")
    return letters_job


@pytest.fixture
def refused(letters_job, monkeypatch, capsys) -> Callable[..., str]:
    """Run the command here; returns the one line of the refusal. Nothing may get as far as the model, or Ray."""

    def no_cluster(*arguments, **options) -> None:
        raise AssertionError("a cluster was started for a job that is wrong")

    def no_model(name: str) -> str:
        raise AssertionError("the model's folder was wanted for a job that is wrong without it")

    monkeypatch.setattr(ray, "init", no_cluster)
    monkeypatch.setattr(preparation, "resolve_base_model", no_model)
    monkeypatch.setattr(preparation, "check_libnuma", lambda: None)  # not every machine that runs this has it

    def run(*words: str, command: str = "run") -> str:
        monkeypatch.setattr(sys, "argv", ["headrace", command, *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        return one_line(capsys.readouterr().err)

    return run


def one_line(stderr: str) -> str:
    assert stderr.startswith("headrace: ")
    assert stderr.count("\n") == 1, stderr
    return stderr.removeprefix("headrace: ").rstrip("\n")


def line_of(path: Path, text: str) -> int:
    return path.read_text().splitlines().index(text) + 1


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def process(tmp_path) -> Callable[..., str]:
    """Run the installed command as a user does, with a `vllm` that must not be imported."""
    trap = tmp_path / "trap" / "vllm"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise RuntimeError('vllm was imported')\n")

    def run(*words: str) -> str:
        # Were nothing found, the command would end at the cluster that it cannot join instead of starting one.
        settings = {"PYTHONPATH": str(trap.parent), "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": "127.0.0.1:1"}
        environment = {**os.environ, **settings}
        start = time.monotonic()
        done = subprocess.run(
            [COMMAND, *words], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 2, done.stderr
        assert [line for line in done.stdout.splitlines() if not line.endswith(FIRST_LINES)] == []
        assert time.monotonic() - start < SECONDS
        return one_line(done.stderr)

    return run


def test_the_command_names_a_missing_data_file(letters_job, process):
    (letters_job.parent / "train.jsonl").unlink()
    missing = letters_job.parent / "train.jsonl"
    assert process("run", str(letters_job)) == f"{letters_job}:10: data.train: {missing}: no such file"


def test_the_command_names_a_misspelt_key_with_the_nearest_one(letters_job, process):
    replace(letters_job, "group_size = 4", "groupsize = 4")
    message = process("run", str(letters_job))
    line = line_of(letters_job, "groupsize = 4")
    expected = f"{letters_job}:{line}: algorithm.groupsize: unknown key `groupsize`; did you mean `group_size`?"
    assert message == expected


def test_the_command_names_a_model_that_cannot_be_found(letters_job, process):
    message = process("run", str(letters_job), "--model.base", "headrace-tests/no-such-model")
    folder = letters_job.parent / "headrace-tests/no-such-model"
    assert message.startswith(f"--model.base: 'headrace-tests/no-such-model': looked for a folder {folder} and ")
    assert ", where there is none, then on the hub: " in message


def test_the_command_names_a_malformed_line_of_the_data(letters_job, process):
    path = letters_job.parent / "train.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], '{"prompt": "cut off', *lines[6:]]) + "\n")
    assert process("run", str(letters_job)).startswith(f"{path}:7: not a JSON object: ")


def test_unreadable_data_is_named(letters_job, refused):
    path = letters_job.parent / "train.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert refused(str(letters_job)).startswith(f"{letters_job}:10: data.train: {path}: cannot be read: ")


def test_a_row_without_a_prompt_is_named(letters_job, refused):
    path = letters_job.parent / "train.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    message = refused(str(letters_job))
    assert message == f"{path}:2: has no 'prompt' field (data.prompt_field); it has ['question']"


NO_SCHEMA = [{"type": "function", "function": {"name": "a", "parameters": {"type": "objekt"}}}]


@pytest.mark.parametrize("tools", ["[{", "{}", '[{"type": "function"}]', json.dumps(NO_SCHEMA)])
def test_an_invalid_tools_file_is_named(letters_job, refused, tools):
    path = letters_job.parent / "tools.json"
    path.write_text(tools)
    replace(
        letters_job, 'function = "rewards.py:score"', 'verifier = "tool_call"\noptions = { schema_path = "tools.json" }'
    )
    line = line_of(letters_job, 'options = { schema_path = "tools.json" }')
    message = refused(str(letters_job))
    assert message.startswith(f"{letters_job}:{line}: reward.options.schema_path: ")
    assert str(path) in message


def test_a_missing_tools_file_is_named(letters_job, refused):
    replace(
        letters_job, 'function = "rewards.py:score"', 'verifier = "tool_call"\noptions = { schema_path = "tools.json" }'
    )
    line = line_of(letters_job, 'options = { schema_path = "tools.json" }')
    told = f"tools file {letters_job.parent / 'tools.json'} cannot be read: No such file or directory"
    assert refused(str(letters_job)) == f"{letters_job}:{line}: reward.options.schema_path: {told}"


def test_an_unknown_verifier_is_named_with_the_nearest_one(letters_job, refused):
    replace(letters_job, 'function = "rewards.py:score"', 'verifier = "tool_cal"')
    line = line_of(letters_job, 'verifier = "tool_cal"')
    says = "unknown verifier `tool_cal`; did you mean `tool_call`?"
    assert refused(str(letters_job)) == f"{letters_job}:{line}: reward.verifier: {says}"


def test_a_functions_place_that_is_given_as_a_verifier_is_told_where_it_goes(letters_job, refused):
    replace(letters_job, 'function = "rewards.py:score"', 'verifier = "rewards.py:score"')
    assert refused(str(letters_job)).endswith("; a function's place goes under reward.function")


def test_an_address_that_cannot_be_listened_on_is_named_with_its_key(letters_job, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        says = refused(str(letters_job), "--metrics.port", port)
    assert says == f"--metrics.port: cannot listen on 127.0.0.1:{port}: Address already in use"
    says = refused(str(letters_job), "--metrics.host", "192.0.2.1")
    assert says == "--metrics.host: cannot listen on 192.0.2.1:0: Cannot assign requested address"


def test_what_is_wrong_in_the_files_is_found_before_torch_is_loaded(letters_job, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "headrace.cluster.trainer", None)  # to import it is an error
    with (letters_job.parent / "train.jsonl").open("a") as rows:
        rows.write("{}\n")
    assert "has no 'prompt' field" in refused(str(letters_job))
    assert "did you mean `group_size`" in refused(str(letters_job), "--algorithm.group-sise", "4")
    (letters_job.parent / "run" / "checkpoints").mkdir(parents=True)
    assert "already holds a run" in refused(str(letters_job))


def test_a_reward_function_that_is_not_there_is_named_with_its_line(letters_job, refused):
    line = line_of(letters_job, 'function = "rewards.py:score"')
    path = letters_job.parent / "rewards.py"
    path.write_text("")
    assert refused(str(letters_job)) == f"{letters_job}:{line}: reward.function: {path} has no function `score`"
    assert refused(str(letters_job), "--reward.function", "gone.py:score").startswith("--reward.function: reward ")


def test_a_reward_that_was_given_in_python_is_named_with_its_line(letters_job, refused):
    replace(letters_job, 'function = "rewards.py:score"', 'python = "score 0a1b"')
    line = line_of(letters_job, 'python = "score 0a1b"')
    says = "this job's reward (score) was given in Python and is in no file: run it with GRPOTrainer, "
    assert refused(str(letters_job)).startswith(f"{letters_job}:{line}: reward.python: {says}")


def test_a_verifiers_unknown_option_is_named_with_its_line(letters_job, refused):
    options = "options = { schema_path = 'tools.json', allow_txt = true }"
    replace(letters_job, 'function = "rewards.py:score"', f'verifier = "tool_call"\n{options}')
    line = line_of(letters_job, options)
    says = "unknown option `allow_txt` of verifier `tool_call`; did you mean `allow_text`?"
    assert refused(str(letters_job)) == f"{letters_job}:{line}: reward.options.allow_txt: {says}"
    replace(letters_job, ", allow_txt = true", "")
    assert refused(str(letters_job), "--reward.options.allow_txt", "true").startswith("--reward.options.allow-txt: ")


def test_an_argument_that_the_engine_does_not_know_is_named_with_its_line_before_anything_starts(letters_job, refused):
    replace(letters_job, "max_num_seqs", "max_num_sqes")
    line = line_of(letters_job, "engine = { max_num_sqes = 16 }")
    says = "vLLM has no engine argument `max_num_sqes`; did you mean `max_num_seqs`?"
    assert refused(str(letters_job)) == f"{letters_job}:{line}: rollout.engine.max_num_sqes: {says}"


def test_the_library_that_the_cpu_engine_lacks_is_named_before_anything_starts(letters_job, refused, monkeypatch):
    monkeypatch.setattr(preparation, "check_libnuma", libnuma.check_libnuma)
    monkeypatch.setattr(libnuma, "LIBRARY", "libno-such.so.1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    message = refused(str(letters_job))
    assert message.startswith("the CPU engine needs the system's libno-such.so.1 (Debian, Ubuntu: apt-get install ")


WARM_START = '[warm_start]\ndata = "warm.jsonl"\n'


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"prompt": "a"}', "has no 'completion' text to learn from"),
        ('{"completion": "b"}', "has no 'prompt' field (data.prompt_field); it has ['completion']"),
    ],
)
def test_a_warm_start_row_is_named_before_the_model_is_wanted(letters_job, refused, row, says):
    letters_job.write_text(letters_job.read_text() + WARM_START)
    path = letters_job.parent / "warm.jsonl"
    path.write_text(f'{{"prompt": "a", "completion": "b"}}\n{row}\n')
    assert refused(str(letters_job)) == f"{path}:2: {says}"


def test_an_unknown_model_is_named(letters_job, refused):
    says = "unknown model 'smollm': give a hub id (owner/name), a model folder, or 'smollm2-135m'"
    assert refused(str(letters_job), "--model.base", "smollm") == f"--model.base: {says}"
    base = next(line for line in letters_job.read_text().splitlines() if line.startswith("base = "))
    replace(letters_job, base, 'base = "smollm"')
    line = line_of(letters_job, 'base = "smollm"')
    assert refused(str(letters_job)) == f"{letters_job}:{line}: model.base: {says}"


def test_what_the_model_shows_to_be_wrong_is_named_with_its_line(letters_job, refused, monkeypatch):
    monkeypatch.setattr(preparation, "resolve_base_model", base_model.resolve_base_model)
    replace(letters_job, "max_length = 96", "max_length = 257")
    line = line_of(letters_job, "max_length = 257")
    assert refused(str(letters_job)).startswith(f"{letters_job}:{line}: model.max_length: 257 tokens are more than ")
    replace(letters_job, "max_length = 257", "max_length = 96")
    message = refused(str(letters_job), "--rollout.tensor-parallel-size", "3")
    assert message.startswith("--rollout.tensor-parallel-size: 3 workers cannot share the 4 attention heads of ")


def test_groups_of_one_are_refused(letters_job, refused):
    message = refused(str(letters_job), "--algorithm.group-size", "1")
    assert message == "--algorithm.group-size: input should be greater than or equal to 2, not 1"


def test_a_value_of_the_wrong_type_is_named(letters_job, refused):
    replace(letters_job, "learning_rate = 1e-3", 'learning_rate = "small"')
    message = refused(str(letters_job))
    assert message.startswith(f"{letters_job}:")
    assert "learner.learning_rate: input should be a valid number" in message
    assert message.endswith("not 'small'")


def test_a_run_folder_that_holds_a_run_is_refused_and_left_as_it_is(letters_job, refused):
    run = letters_job.parent / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    assert (
        refused(str(letters_job)) == f"{run}: already holds a run; go on with --resume, or choose another --job.run-dir"
    )
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_run_folder_whose_name_is_too_long_is_named(letters_job, refused, command):
    path = letters_job.parent / ("x" * 300)
    words = [str(letters_job), "--job.run-dir", str(path)] if command == "run" else [str(path)]
    assert refused(*words, command=command).startswith(f"{path}: ")


def test_resuming_where_there_is_no_run_is_refused_and_makes_none(letters_job, refused):
    run = letters_job.parent / "run"
    assert refused(str(letters_job), "--resume") == f"{run}: there is no run to resume here; start one without --resume"
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--algorithm.group-size", "8"], "algorithm.group_size is 8, but the run in "),
        (["--learner.learning-rate", "1e-4"], "learner.learning_rate is 0.0001, but the run in "),
        (["--job.seed", "7"], "job.seed is 7, but the run in "),
        (["--rollout.engine.max_num_seqs", "4"], "rollout.engine is {'max_num_seqs': 4}, but the run in "),
        (["--warm-start.data", "warm.jsonl"], "[warm_start] is not as it was"),
    ],
)
def test_resuming_another_job_is_refused_with_the_key(letters_job, refused, words, says):
    run = letters_job.parent / "run"
    run.mkdir()
    (run / "job.toml").write_text(dump_job(load_job(letters_job)))
    assert says in refused(str(letters_job), "--resume", *words)


def test_a_job_that_is_refused_leaves_no_run_folder(letters_job, refused):
    refused(str(letters_job), "--data.train", "gone.jsonl")
    assert not (letters_job.parent / "run").exists()


@pytest.mark.parametrize("command", ["status", "scale"])
def test_asking_a_folder_without_a_live_run_is_refused(tmp_path, refused, command):
    words = ["--rollout", "2"] if command == "scale" else []
    assert "no run goes on here" in refused(str(tmp_path), *words, command=command)


def test_scaling_nothing_is_refused(tmp_path, refused):
    assert refused(str(tmp_path), command="scale") == "scale: give --rollout N, --verification N, or both"


def test_exporting_a_folder_without_a_run_is_refused(tmp_path, refused):
    message = refused(str(tmp_path / "run"), "--output", str(tmp_path / "model"), command="export")
    assert message == f"{tmp_path / 'run'}: holds no run (there is no job.toml)"
