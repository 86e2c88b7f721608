"""From a TOML file and command-line values to a job: what is taken over, and what is refused with its place."""

from pathlib import Path

import pytest

from headrace.cluster.job_file import check_job, load_job, parse_overrides
from headrace.verifiers.errors import UserError

JOB = """\
[job]
name = "letters"

[model]
base = "smollm2-135m"
max_length = 64

[data]
train = "data/train.jsonl"

[reward]
verifier = "regex"
options = { pattern = "a+" }

[rollout]
max_tokens = 8
stop = ["\\n"]
engine = { max_num_seqs = 8 }

[learner]
betas = [0.9, 0.95]
"""


@pytest.fixture
def write(tmp_path):
    def write_job(text: str = JOB) -> Path:
        path = tmp_path / "job.toml"
        path.write_text(text)
        return path

    return write_job


def changed(line: str, to: str) -> str:
    assert line in JOB
    return JOB.replace(line, to)


def refusal(path: Path, *words: str) -> str:
    """The one line with which the job is refused."""
    with pytest.raises(UserError) as error:
        load_job(path, words)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_files_values_and_the_defaults_make_the_job(write):
    job = load_job(write())
    assert (job.job.name, job.job.steps) == ("letters", 100)
    assert job.reward.options == {"pattern": "a+"}
    assert job.rollout.engine == {"max_num_seqs": 8}
    assert job.learner.betas == (0.9, 0.95)
    assert job.warm_start is None


def test_the_files_relative_paths_start_at_its_folder_whatever_the_working_directory(write, tmp_path, monkeypatch):
    path = write(changed('"smollm2-135m"', '"./model"') + '[warm_start]\ndata = "warm.jsonl"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    job = load_job(path)
    assert job.data.train == tmp_path / "data/train.jsonl"
    assert job.warm_start.data == tmp_path / "warm.jsonl"
    assert job.model.base == str(tmp_path / "model")
    assert job.reward.base_dir == str(tmp_path)


def test_the_command_lines_relative_paths_start_at_the_working_directory(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ["--data.train", "other.jsonl", "--model.base=./model", "--reward.base-dir", "/checks"]
    job = load_job(write(), words)
    assert job.data.train == tmp_path / "elsewhere/other.jsonl"
    assert job.model.base == str(tmp_path / "elsewhere/model")
    assert job.reward.base_dir == "/checks"


def test_a_hub_id_is_no_path(write):
    assert load_job(write(), ["--model.base", "Qwen/Qwen3-0.6B"]).model.base == "Qwen/Qwen3-0.6B"


def test_a_model_folder_is_found_without_a_dot_beside_the_file_or_in_the_working_directory(
    write, tmp_path, monkeypatch
):
    path = write(changed('"smollm2-135m"', '"models/tiny"'))
    (tmp_path / "elsewhere/models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_job(path).model.base == str(tmp_path / "elsewhere/models/tiny")
    (tmp_path / "models/tiny").mkdir(parents=True)
    assert load_job(path).model.base == str(tmp_path / "models/tiny")
    assert load_job(path, ["--model.base", "models/tiny"]).model.base == str(tmp_path / "elsewhere/models/tiny")
    (tmp_path / "elsewhere/smollm2-135m").mkdir()
    assert load_job(path, ["--model.base", "smollm2-135m"]).model.base == "smollm2-135m"


@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        (["--learner.learning-rate", "1e-5"], "learner", "learning_rate", 1e-5),
        (["--learner.learning_rate=1e-5"], "learner", "learning_rate", 1e-5),
        (["--job.name", "other run"], "job", "name", "other run"),
        (["--placement.take-turns", "true"], "placement", "take_turns", True),
        (["--placement.take-turns", "auto"], "placement", "take_turns", "auto"),
        (["--rollout.stop", '["a", "b"]'], "rollout", "stop", ["a", "b"]),
        (["--rollout.engine.max_num_seqs", "4"], "rollout", "engine", {"max_num_seqs": 4}),
        (["--rollout.engine.block_size=32"], "rollout", "engine", {"max_num_seqs": 8, "block_size": 32}),
        (["--algorithm.tis-cap", "inf"], "algorithm", "tis_cap", float("inf")),
        (["--job.steps", "1", "--job.steps", "2"], "job", "steps", 2),
        (["--data.system", "a = 1"], "data", "system", "a = 1"),
    ],
)
def test_a_command_line_value_takes_the_place_of_the_files(write, words, section, key, value):
    assert getattr(getattr(load_job(write(), words), section), key) == value


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "3"], "--steps: not an option of this command; a value of the job is --job.steps VALUE"),
        (["--learning_rate", "3"], "is --learner.learning-rate VALUE or --warm-start.learning-rate VALUE"),
        (["--stepz", "3"], "--stepz: not an option of this command; a value of the job is --section.key VALUE"),
        (["steps"], "steps: not an option of this command"),
        (["--job.steps"], "--job.steps: is missing its value"),
        (["--job.name", "\udcff"], "'\\udcff': not UTF-8 text"),
        (
            ["--learner.warmup-steps", "101"],
            "--learner.warmup-steps: learner.warmup_steps (101) is more than job.steps (100)",
        ),
        (
            ["--rollout.gpus", "4"],
            "--rollout.gpus: tensor_parallel_size is 1, so a generator needs 1 GPU(s), and gpus is 4",
        ),
        (["--job.steps", "0"], "--job.steps: input should be greater than or equal to 1, not 0"),
        (
            ["--verification.workers", "20000000"],
            "--verification.workers: input should be less than or equal to 10000, not 20000000",
        ),
        (["--job.stepps", "3"], "--job.stepps: unknown key `stepps`; did you mean `steps`?"),
        (["--lerner.ranks", "3"], "--lerner.ranks: unknown key `lerner`; did you mean `learner`?"),
        (["--learner.learning-rate", "fast"], "--learner.learning-rate: input should be a valid number"),
        (["--job.name.first", "a"], "'name' is a single value in the job file, not a table"),
    ],
)
def test_a_command_line_value_that_is_wrong_is_named_as_it_was_given(write, words, says):
    assert says in refusal(write(), *words)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (
            changed("max_tokens = 8", "max_token = 8"),
            "max_token = 8",
            "rollout.max_token: unknown key `max_token`; did you mean `max_tokens`?",
        ),
        (changed("[rollout]", "[rolout]"), "[rolout]", "rolout: unknown key `rolout`; did you mean `rollout`?"),
        (changed("max_tokens = 8", "zzzz = 8"), "zzzz = 8", "; there are: "),
        (
            changed("max_length = 64", 'max_length = "long"'),
            'max_length = "long"',
            "model.max_length: input should be a valid integer",
        ),
        (
            changed("[learner]", "[learner]\nranks = 1.5"),
            "ranks = 1.5",
            "learner.ranks: input should be a valid integer",
        ),
        (changed("betas = [0.9, 0.95]", "betas = [0.9]"), "betas = [0.9]", "learner.betas.1: is missing"),
        (
            changed('stop = ["\\n"]', "stop = [1]"),
            "stop = [1]",
            "rollout.stop.0: input should be a valid string, not 1",
        ),
        (
            changed('base = "smollm2-135m"\n', ""),
            "[model]",
            "model.base: is missing: Hub id, folder, or `smollm2-135m`",
        ),
        (changed('verifier = "regex"\n', ""), "[reward]", "reward: give either `verifier` or `function`"),
        (
            changed('verifier = "regex"', 'verifier = "regex"\nfunction = "a.py:b"'),
            'function = "a.py:b"',
            "reward.function: give either `verifier` or `function`",
        ),
        (
            changed("max_tokens = 8", "min_tokens = 9\nmax_tokens = 8"),
            "min_tokens = 9",
            "rollout.min_tokens: min_tokens (9)",
        ),
        (
            changed("max_tokens = 8", "max_tokens = 8\ntensor_parallel_size = 2\ngpus = 4"),
            "tensor_parallel_size = 2",
            "rollout.tensor_parallel_size: tensor_parallel_size is 2, so a generator needs 2 GPU(s), and gpus is 4",
        ),
        (changed("max_tokens = 8", "gpus = 1.5"), "gpus = 1.5", "rollout.gpus: tensor_parallel_size is 1"),
        (
            changed("max_tokens = 8", 'tensor_parallel_size = 2\nthreads = "0-3"'),
            'threads = "0-3"',
            "rollout.threads: threads has 1 list(s) of cores for the 2 worker(s)",
        ),
        (
            changed("max_tokens = 8", 'threads = "0-"'),
            'threads = "0-"',
            "rollout.threads: give `all`, `nobind`, or cores such",
        ),
        (changed("max_tokens = 8", 'threads = "0-x"'), 'threads = "0-x"', "rollout.threads: give `all`, `nobind`, or"),
        (changed("max_tokens = 8", 'threads = "3-1"'), 'threads = "3-1"', "rollout.threads: give `all`, `nobind`, or"),
        (changed("max_tokens = 8", 'threads = "auto"'), 'threads = "auto"', "rollout.threads: give `all`, `nobind`,"),
        (
            changed('stop = ["\\n"]', 'stop = [""]'),
            'stop = [""]',
            "rollout.stop.0: string should have at least 1 character, not ''",
        ),
        (
            changed("[model]", "seed = -1\n[model]"),
            "seed = -1",
            "job.seed: input should be greater than or equal to 0, not -1",
        ),
        (
            changed('verifier = "regex"\noptions = { pattern = "a+" }', 'function = "a\\u0000.py:b"'),
            'function = "a\\u0000.py:b"',
            "reward.function: holds a NUL character",
        ),
        (
            changed('options = { pattern = "a+" }', 'options = { schema_path = "a\\u0000" }'),
            'options = { schema_path = "a\\u0000" }',
            "reward.options.schema_path: holds a NUL character",
        ),
        (
            changed("engine = { max_num_seqs = 8 }", "[rollout.engine]\ndtype = 'half'"),
            "dtype = 'half'",
            "rollout.engine.dtype: not an engine argument that a job can give: give rollout.dtype instead",
        ),
        (
            changed("[learner]", "[learner]\nwarmup_steps = 101"),
            "warmup_steps = 101",
            "learner.warmup_steps: learner.warmup_steps (101) is more than job.steps (100)",
        ),
        (
            changed("[learner]", "[algorithm]\ntrained_samples = 9\n[learner]"),
            "trained_samples = 9",
            "algorithm.trained_samples: trained_samples (9) are chosen out of a group of 8: give fewer",
        ),
        (changed("max_tokens = 8", "max_tokens = 64"), "max_tokens = 64", "rollout.max_tokens (64) leaves no room"),
        (
            changed("max_tokens = 8\n", ""),
            "max_length = 64",
            "model.max_length: rollout.max_tokens (256) leaves no room",
        ),
        (
            changed("betas = [0.9, 0.95]", "betas = [0.9, 1.0]"),
            "betas = [0.9, 1.0]",
            "learner.betas.1: input should be less",
        ),
        (
            JOB + "learning_rate = inf\n",
            "learning_rate = inf",
            "learner.learning_rate: input should be a finite number, not inf",
        ),
        (JOB + "[algorithm]\ntis_cap = nan\n", "tis_cap = nan", "algorithm.tis_cap: input should be greater than 0"),
        (JOB + "[algorithm]\nclip_low = 1.0\n", "clip_low = 1.0", "algorithm.clip_low: input should be less than 1"),
        (
            JOB + "[weight_sync]\ntimeout_seconds = nan\n",
            "timeout_seconds = nan",
            "input should be a finite number, not nan",
        ),
        (
            JOB + "[placement]\ntake_turns = 'yes'\n",
            "take_turns = 'yes'",
            "placement.take_turns: input should be true, false or 'auto', not 'yes'",
        ),
        (
            changed("max_tokens = 8", 'threads = "0-3"\ngpus = 1'),
            'threads = "0-3"',
            "rollout.threads: threads is for the CPU engine only, and gpus is 1",
        ),
        (
            changed("max_tokens = 8", "gpus = 1\nkv_cache_bytes = 9"),
            "kv_cache_bytes = 9",
            "rollout.kv_cache_bytes: kv_cache_bytes is for the CPU engine only, and gpus is 1",
        ),
        (JOB + "gpus = 2\n", "gpus = 2", "learner.gpus: a rank has one GPU or none, and gpus is 2; `ranks` is what"),
        (JOB + "gpus = 0.5\n", "gpus = 0.5", "learner.gpus: a rank has one GPU or none, and gpus is 0.5"),
        (JOB + "gpus = 1\nthreads = 2\n", "threads = 2", "learner.threads: threads is for a learner on the CPU"),
        (
            JOB + "[evaluation]\nevery = 5\n",
            "every = 5",
            "evaluation.every: there are no rows to evaluate on; give data.held_out",
        ),
        (
            JOB + "dtype = 'float16'\n",
            "dtype = 'float16'",
            "learner.dtype: input should be 'auto', 'float32' or 'bfloat16'",
        ),
        (
            JOB + "[algorithm]\ngroup_size = 1\n",
            "group_size = 1",
            "algorithm.group_size: input should be greater than or equal to 2, not 1",
        ),
        (JOB + "[algorithm]\nname = 'grop'\n", "name = 'grop'", "algorithm.name: input should be 'grpo', not 'grop'"),
        (JOB + "[warm_start]\nsamples = 3\n", "[warm_start]", "warm_start.data: is missing"),
        (JOB + "[warm_start]\ndata = 'a'\nsample = 3\n", "sample = 3", "unknown key `sample`; did you mean `samples`?"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(write, text, line, says):
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path}:{text.splitlines().index(line) + 1}: ")
    assert says in message


@pytest.mark.parametrize(
    "lines",
    [
        "gpus = 2\ntensor_parallel_size = 2",
        "gpus = 0.5",  # two engines share one
        'gpus = 1\ntensor_parallel_size = 16\nengine = { distributed_executor_backend = "ray" }',
        'tensor_parallel_size = 2\nthreads = "0-3|4-7"',
        "tensor_parallel_size = 2",
        "min_tokens = 8",
        'threads = "0,2-3,8"',
    ],
)
def test_an_engine_that_can_be_built_is_accepted(write, lines):
    load_job(write(changed('stop = ["\\n"]\nengine = { max_num_seqs = 8 }', lines)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (JOB.replace("[model]", "[modell]"), "unknown key `modell`; did you mean `model`?"),
        ("job = 3\n" + JOB.split("\n\n", 1)[1], "job: "),
        ("[job\n", "not TOML: "),
        ("", "is missing"),
        pytest.param("deep = " + "[" * 100_000, "is nested too deeply", id="deep"),
        pytest.param("steps = " + "9" * 5000, "not TOML: ", id="digits"),
    ],
)
def test_what_is_wrong_with_the_whole_file_is_named_with_the_file(write, text, says):
    path = write(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert says in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert refusal(tmp_path / "no.toml") == f"{tmp_path / 'no.toml'}: cannot be read: No such file or directory"
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[job]\nname = "caf\xe9"\n')
    assert "not UTF-8" in refusal(tmp_path / "latin.toml")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB, encoding="utf-8-sig")
    assert load_job(path).job.name == "letters"


def test_values_given_in_python_are_named_by_their_key():
    with pytest.raises(UserError, match=r"^algorithm\.group_size: input should be greater than or equal to 2"):
        check_job(
            {
                "model": {"base": "x"},
                "data": {"train": "y"},
                "reward": {"verifier": "regex"},
                "algorithm": {"group_size": 1},
            }
        )


def test_overrides_are_read_as_toml_where_they_are_toml():
    values = parse_overrides(["--a.b", "1", "--a.c", "1.5.2", "--a.d", "'1'", "--a-b.c-d", "-1"])
    assert values == {("a", "b"): 1, ("a", "c"): "1.5.2", ("a", "d"): "1", ("a_b", "c_d"): -1}


def test_text_that_looks_like_a_number_is_text_where_the_key_wants_text():
    words = ["--rollout.threads", "0", "--job.name=7", "--job.run-dir=2026", "--data.held-out", "1", "--job.seed", "3"]
    values = parse_overrides([*words, "--model.base", "'42'", "--placement.take-turns", "true"])
    assert list(values.values()) == ["0", "7", "2026", "1", 3, "42", True]
