"""Data, verifier, model and prompts, checked before anything starts: what is taken, and what is refused by its place."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from headrace.actors import libnuma
from headrace.cluster import preparation
from headrace.cluster.config import JobConfig, RewardSection
from headrace.cluster.inputs import read_inputs
from headrace.cluster.job_file import load_job
from headrace.cluster.preparation import check_engine, prepare, reward_files
from headrace.cluster.prompt_source import PromptFormat, place_of_row, read_rows
from headrace.verifiers.errors import UserError
from headrace.verifiers.function import CallableVerifier

CHAT = PromptFormat("prompt", None, chat_template=True)


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def folder(letters_job) -> Path:
    return letters_job.parent


def job_in(folder: Path, *words: str) -> JobConfig:
    return load_job(folder / "job.toml", words)


def write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def no_model(monkeypatch) -> None:
    """What is wrong must be found before the model's folder is wanted, which may take half a minute to make."""

    def wanted(name: str) -> str:
        raise AssertionError("the model's folder was wanted")

    monkeypatch.setattr(preparation, "resolve_base_model", wanted)


def refusal(job: JobConfig) -> str:
    with pytest.raises(UserError) as error:
        prepare(job)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_job_that_is_right_comes_out_with_all_that_it_needs(folder, tiny_model):
    prepared = prepare(job_in(folder))
    assert prepared.model == str(tiny_model)
    assert len(prepared.train) == 16
    assert len(prepared.held_out) == 16
    assert prepared.sampling.max_tokens == 8
    assert prepared.warm_start == []
    assert len(prepared.probe_sequences) == 2
    assert all(2 <= len(sequence) <= 48 for sequence in prepared.probe_sequences)


def test_a_prompt_of_one_token_is_a_probe_all_the_same(folder):
    write_rows(folder / "train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert [len(each) for each in prepare(job_in(folder, "--data.chat-template", "false")).probe_sequences] == [2, 2]


def test_the_probe_sequences_are_the_same_for_the_same_job(folder):
    assert prepare(job_in(folder)).probe_sequences == prepare(job_in(folder)).probe_sequences


def test_a_verifier_object_takes_the_place_of_the_jobs_own(folder):
    verifier = CallableVerifier(lambda completion, row: 1.0)
    job = job_in(folder, "--reward.function", "gone.py:score")
    assert prepare(job, read_inputs(job, verifier)).verifier is verifier


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"', "train.jsonl:3: not a JSON object: "),
        ("prompt: a", "train.jsonl:3: not a JSON object: "),
        ('["prompt"]', "train.jsonl:3: a row is a JSON object, not list"),
        ('{"promt": "a", "answer": 1}', ":3: has no 'prompt' field (data.prompt_field); it has ['answer', 'promt']"),
        ('{"prompt": null}', ":3: has no 'prompt' field"),
        ('{"prompt": "  "}', ":3: 'prompt' is empty"),
        ('{"prompt": 7}', ":3: 'prompt' is neither a string nor a list of chat messages"),
        ('{"prompt": []}', ":3: 'prompt' is neither a string nor a list of chat messages"),
        ('{"prompt": [{"content": "a"}]}', ":3: 'prompt' is neither a string nor a list of chat messages"),
        ('{"prompt": "a", "n": 123456789012345678901234567890}', ":3: holds an integer beyond 64 bits"),
        pytest.param('{"prompt": "a", "n": ' + "9" * 5000 + "}", "train.jsonl:3: cannot be read: ", id="digits"),
        pytest.param(
            '{"prompt": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "train.jsonl:3: is nested too deeply",
            id="deep",
        ),
        ('{"prompt": "a", "gold": "\\ud800"}', ":3: holds text that is not Unicode"),
        ('[{"prompt": "a"}]', "train.jsonl:3: a row is a JSON object, not list; write one object a line"),
        ("[", "; write one object a line, with no list around them"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_row_that_is_wrong_is_named_by_its_number(folder, line, says):
    (folder / "train.jsonl").write_text(f'{{"prompt": "a"}}\n{{"prompt": "b"}}\n{line}\n')
    assert says in refusal(job_in(folder))


def test_a_message_that_the_chat_template_refuses_is_named_by_its_row(folder, tiny_model, tmp_path):
    template = "{% for message in messages %}{{ 'a' + message['content'] }}{% endfor %}"
    model = copy_of_the_tokenizer(tiny_model, tmp_path / "model", template)
    for content in ({}, {"content": None}):
        write_rows(folder / "train.jsonl", [{"prompt": "a"}, {"prompt": [{"role": "user", **content}]}])
        assert ":2: does not fit the model's chat template" in refusal(job_in(folder, "--model.base", str(model)))


def copy_of_the_tokenizer(tiny_model: Path, target: Path, template: str | None) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(target)
    (target / "config.json").write_text((tiny_model / "config.json").read_text())
    (target / "model.safetensors").write_bytes(b"")
    return target


def test_a_model_without_a_chat_template_is_refused_with_the_key_to_set(folder, tiny_model, tmp_path):
    model = copy_of_the_tokenizer(tiny_model, tmp_path / "model", None)
    job = job_in(folder, "--model.base", str(model))
    assert "set data.chat_template = false" in refusal(job)
    assert len(prepare(job_in(folder, "--model.base", str(model), "--data.chat-template", "false")).train) == 16


def model_folder(folder: Path, config: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_folder_without_a_tokenizer_is_named(folder, tiny_model, tmp_path):
    model = model_folder(tmp_path / "model", {**json.loads((tiny_model / "config.json").read_text())})
    assert "model.base: the tokenizer of" in refusal(job_in(folder, "--model.base", str(model)))


def test_a_folder_whose_configuration_says_nothing_is_named(folder, tmp_path):
    model = model_folder(tmp_path / "model", {})
    assert "model.base: the configuration of" in refusal(job_in(folder, "--model.base", str(model)))


def test_a_folder_without_weights_is_named(folder, tiny_model, tmp_path):
    model = copy_of_the_tokenizer(tiny_model, tmp_path / "model", None)
    (model / "model.safetensors").unlink()
    assert refusal(job_in(folder, "--model.base", str(model))).startswith(
        f"model.base: {model}: the folder holds no weights"
    )


def test_a_model_of_another_kind_is_named_with_its_kind(folder, tmp_path):
    model = model_folder(tmp_path / "model", {"model_type": "t5"})
    assert refusal(job_in(folder, "--model.base", str(model))).endswith(
        "is no causal language model: it has a T5Config"
    )


def test_a_context_beyond_the_models_own_is_refused_with_the_key(folder):
    assert refusal(job_in(folder, "--model.max-length", "257")).startswith(
        "model.max_length: 257 tokens are more than "
    )
    assert prepare(job_in(folder, "--model.max-length", "256")).job.model.max_length == 256


@pytest.mark.parametrize("key", ["data.train", "data.held-out", "warm-start.data"])
@pytest.mark.usefixtures("no_model")
def test_a_missing_file_is_named_with_its_key(folder, key):
    words = [f"--{key}", str(folder / "gone.jsonl")]
    assert refusal(job_in(folder, *words)) == f"{key.replace('-', '_')}: {folder / 'gone.jsonl'}: no such file"


def test_a_file_without_rows_or_with_bytes_that_are_no_text_is_named(folder):
    (folder / "train.jsonl").write_text("\n\n")
    assert refusal(job_in(folder)).endswith("train.jsonl: holds no rows")
    (folder / "train.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    assert "data.train: " in refusal(job_in(folder))
    assert "cannot be read" in refusal(job_in(folder))


def test_what_is_no_regular_file_is_named(folder):
    for path in (folder, Path("/dev/null")):
        assert refusal(job_in(folder, "--data.train", str(path))) == f"data.train: {path}: is no regular file"


def test_a_path_that_can_be_no_file_is_named(folder):
    assert "File name too long" in refusal(job_in(folder, "--data.train", "x" * 5000))


def test_a_byte_order_mark_is_no_part_of_the_first_row(folder):
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8-sig")
    assert read_rows(folder / "train.jsonl", "data.train") == [{"prompt": "a"}]


def test_parquet_rows_are_rows_and_a_broken_parquet_file_is_named(folder):
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "answer": [1, 2]}), path)
    assert read_rows(path, "data.train") == [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]
    path.write_bytes(b"PAR1 and nothing else")
    message = refusal(job_in(folder, "--data.train", str(path)))
    assert message.startswith(f"data.train: {path}: cannot be read")


@pytest.mark.usefixtures("no_model")
def test_the_held_out_rows_are_checked_as_well(folder):
    write_rows(folder / "held.jsonl", [{"prompt": "a"}, {"question": "b"}])
    message = refusal(job_in(folder, "--data.held-out", str(folder / "held.jsonl")))
    assert f"{folder / 'held.jsonl'}:2: has no 'prompt' field" in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--reward.function", "gone.py:score"], "reward.function: reward function `gone.py:score`: cannot read "),
        (["--reward.function", "rewards.py:scor"], "reward.function: /"),
        (["--model.base", "smollm3"], "model.base: unknown model 'smollm3'"),
        (
            ["--rollout.tensor-parallel-size", "3"],
            "rollout.tensor_parallel_size: 3 workers cannot share the 4 attention",
        ),
    ],
)
def test_a_name_that_names_nothing_is_refused_with_its_key(folder, words, says):
    assert refusal(job_in(folder, *words)).startswith(says)


@pytest.mark.usefixtures("no_model")
def test_what_the_verifier_finds_wrong_with_a_row_is_named_by_its_number(folder, tmp_path):
    schema = {"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "properties": {}}}}
    (folder / "tools.json").write_text(json.dumps([schema]))
    write_rows(folder / "train.jsonl", [{"prompt": "a"}, {"prompt": "b", "gold": 3}])
    job = folder / "job.toml"
    text = job.read_text().replace(
        'function = "rewards.py:score"',
        'verifier = "tool_call"\noptions = { schema_path = "tools.json", gold_field = "gold" }',
    )
    job.write_text(text.replace('held_out = "train.jsonl"\n', "").replace("[evaluation]\nprompts = 4\n", ""))
    assert f"{folder / 'train.jsonl'}:2: " in refusal(job_in(folder))


def test_prompts_longer_than_the_context_are_left_out_and_listed(folder):
    rows = [{"prompt": "short"}, {"prompt": "x" * 200}, {"prompt": "short too"}, {"prompt": "y" * 96}]
    write_rows(folder / "train.jsonl", rows)
    prepared = prepare(job_in(folder))
    assert prepared.train.too_long == [1, 3]
    assert prepared.held_out.too_long == [1, 3]
    assert {prepared.train.at(position).ordinal for position in range(4)} == {0, 2}


def test_a_prompt_may_fill_the_context_up_to_the_completion_and_no_token_more(folder, tokenizer):
    frame = len(CHAT.encode({"prompt": "a"}, tokenizer)) - 1
    room = 96 - 8 - frame
    write_rows(folder / "train.jsonl", [{"prompt": "x" * room}, {"prompt": "x" * (room + 1)}])
    assert prepare(job_in(folder)).train.too_long == [1]


def test_a_file_of_which_nothing_fits_is_refused(folder):
    write_rows(folder / "train.jsonl", [{"prompt": "x" * 200}])
    assert "no prompt fits: all are longer than 88 tokens, which is what model.max_length - rollout.max_tokens " in (
        refusal(job_in(folder))
    )


def test_the_data_of_a_job_is_known_by_its_rows_and_the_bytes_of_the_rewards_file(folder):
    words = ("--warm-start.data", str(folder / "warm.jsonl"))
    write_rows(folder / "warm.jsonl", [{"prompt": "a", "completion": "b"}])
    first = prepare(job_in(folder, *words)).data
    assert [each.key for each in first.files] == ["data.train", "data.held_out", "warm_start.data", "reward.function"]
    path = folder / "train.jsonl"
    path.write_text(path.read_text().replace(": ", ":   ") + "\n\n")
    assert prepare(job_in(folder, *words)).data == first
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    again = prepare(job_in(folder, *words)).data
    changed = [old.key for old, new in zip(first.files, again.files, strict=True) if old != new]
    assert changed == ["data.train", "data.held_out"]
    (folder / "rewards.py").write_text((folder / "rewards.py").read_text() + "\n")
    assert prepare(job_in(folder, *words)).data.files[-1] != first.files[-1]


def warm_job(folder: Path, rows: list, *words: str) -> JobConfig:
    write_rows(folder / "warm.jsonl", rows)
    return job_in(folder, "--warm-start.data", str(folder / "warm.jsonl"), *words)


def test_warm_start_examples_are_prompt_and_completion_with_the_token_that_ends_a_turn(folder, tokenizer):
    rows = [{"prompt": "say", "completion": "abc"}, {"prompt": "say", "completion": "d"}]
    first, second = prepare(warm_job(folder, rows)).warm_start
    assert first.prompt_ids == CHAT.encode(rows[0], tokenizer)
    assert tokenizer.decode(first.completion_ids[:-1]) == "abc"
    assert first.completion_ids[-1] == second.completion_ids[-1] == tokenizer.eos_token_id
    assert len(prepare(warm_job(folder, rows, "--warm-start.samples", "1")).warm_start) == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a"}, "warm.jsonl:2: has no 'completion' text to learn from"),
        ({"prompt": "a", "completion": ""}, "warm.jsonl:2: has no 'completion' text"),
        ({"completion": "a"}, "warm.jsonl:2: has no 'prompt' field"),
        ({"prompt": "a", "completion": 7}, "warm.jsonl:2: has no 'completion' text"),
        ({"prompt": "  ", "completion": "b"}, "warm.jsonl:2: 'prompt' is empty"),
        ({"prompt": "a", "completion": "\ud800"}, "warm.jsonl:2: holds text that is not Unicode"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_warm_start_row_that_is_wrong_is_named_by_its_number(folder, row, says):
    assert says in refusal(warm_job(folder, [{"prompt": "a", "completion": "b"}, row]))


def test_a_warm_start_row_that_does_not_fit_the_context_is_named_by_its_number(folder):
    job = warm_job(folder, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "x" * 90}])
    assert refusal(job).endswith("warm.jsonl:2: is longer than model.max_length (96 tokens)")


def test_a_warm_start_row_that_the_job_does_not_take_is_not_looked_at(folder):
    job = warm_job(folder, [{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "--warm-start.samples", "1")
    assert len(prepare(job).warm_start) == 1


@pytest.mark.parametrize(
    ("words", "address", "vllm_is_here", "found"),
    [
        ([], None, True, True),
        ([], "", True, True),
        (["--rollout.gpus", "1"], None, True, False),
        ([], "10.0.0.1:6379", True, False),  # the engines are elsewhere
        ([], None, False, False),
    ],
)
def test_a_library_that_the_cpu_engine_lacks_is_found_where_engines_are_to_start(
    folder, monkeypatch, words, address, vllm_is_here, found
):
    monkeypatch.setattr(libnuma, "LIBRARY", "libno-such.so.1")
    monkeypatch.setattr(
        preparation.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None) if vllm_is_here else None
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    rollout = job_in(folder, *words).rollout
    if not found:
        check_engine(rollout)
        return
    with pytest.raises(
        UserError, match=r"needs the system's libno-such\.so\.1 \(Debian, Ubuntu: apt-get install libnuma1\)"
    ):
        check_engine(rollout)


def test_the_line_of_a_row_counts_blank_lines_too(folder):
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n\n  \n{"promt": "b"}\n')
    assert refusal(job_in(folder)).startswith(f"{folder / 'train.jsonl'}:4: has no 'prompt' field")


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    assert place_of_row(tmp_path / "rows.parquet", 3) == f"{tmp_path / 'rows.parquet'}: row 3"


def test_the_files_of_a_rewards_parts_are_its_files_too(tmp_path):
    (tmp_path / "rewards.py").write_text("def score(completion, row): return 1.0")
    (tmp_path / "tools.json").write_text("[]")
    inner = {"verifier": "python", "options": {"function": "rewards.py:score"}}
    parts = [
        {"verifier": "tool_call", "options": {"schema_path": "tools.json"}},
        {"verifier": "all_of", "options": {"parts": [inner, {"function": "rewards.py:score"}]}},
    ]
    section = RewardSection(verifier="weighted_sum", options={"parts": parts}, base_dir=str(tmp_path))
    assert list(reward_files(section)) == [
        "reward.options.parts.0.options.schema_path",
        "reward.options.parts.1.options.parts.0.options.function",
        "reward.options.parts.1.options.parts.1.function",
    ]
