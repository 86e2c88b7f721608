"""What a job file says of a reward that was given in Python, and whether it says the same when it is loaded again."""

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import pytest

from headrace.cluster.grpo_trainer import GRPOTrainer
from headrace.cluster.job_file import dump_job, load_job
from headrace.cluster.preparation import prepare
from headrace.cluster.python_reward import fingerprint, reward_section
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.trainer import check_compatible
from headrace.verifiers import RegexVerifier, ToolCallVerifier
from headrace.verifiers.base import Verifier, scored
from headrace.verifiers.errors import UserError
from headrace.verifiers.function import CallableVerifier
from headrace.verifiers.records import Sample, Verdict

TOOLS = [{"name": "hang_up", "parameters": {"type": "object", "properties": {}}}]


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """tools.json in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    return tmp_path / "tools.json"


@pytest.fixture
def rewards_module(tmp_path, monkeypatch):
    """A module of the user's, imported."""
    (tmp_path / "user_rewards.py").write_text(
        "def score(completion, row):\n    return 1.0\n\n"
        "def made():\n    return lambda completion, row: 0.5\n\nhalf = made()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("user_rewards")
    del sys.modules["user_rewards"]


def reloaded(trainer: GRPOTrainer, folder: Path):
    """The job of the file that the trainer's run would leave."""
    path = folder / "RUN.toml"
    path.write_text(dump_job(trainer.job))
    return load_job(path)


def test_a_registered_verifier_is_its_name_and_its_options(tools, tiny_model, monkeypatch):
    verifier = ToolCallVerifier(schema_path="tools.json", sandbox=True, weights={"schema": 0.3}, allow_text=True)
    (tools.parent / "train.jsonl").write_text('{"prompt": "end the call"}\n')
    trainer = GRPOTrainer(str(tiny_model), "train.jsonl", verifier, model__max_length=128, rollout__max_tokens=8)
    monkeypatch.chdir("/")
    job = reloaded(trainer, tools.parent)
    assert job == trainer.job
    assert job.reward.verifier == "tool_call"
    assert job.reward.options["schema_path"] == str(tools)
    again = prepare(job).verifier
    assert isinstance(again, ToolCallVerifier)
    assert again.options == verifier.options.model_copy(update={"schema_path": str(tools)})


def test_a_function_of_a_module_is_its_file_and_its_name(rewards_module, tmp_path, tiny_model):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    trainer = GRPOTrainer(
        str(tiny_model), tmp_path / "train.jsonl", rewards_module.score, model__max_length=64, rollout__max_tokens=8
    )
    assert trainer.job.reward.function == f"{tmp_path / 'user_rewards.py'}:score"
    verifier = prepare(reloaded(trainer, tmp_path)).verifier
    assert verifier.verify(Sample("", {})).reward == 1.0


def here(completion: str, row: dict) -> float:
    return 0.5


class Judge(Verifier):
    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._calls = object()

    def verify(self, sample: Sample) -> Verdict:
        return scored(float(len(sample.completion) > self.threshold), "length")


class Stricter(RegexVerifier):
    """Of another class than the registered one."""


def within(low: float):
    def score(completion: str, row: dict) -> float:
        return float(len(completion) in {1, 2, 3} and low > 0)

    return score


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (here, "here"),  # in a package's module
        (lambda completion, row: 0.5, "<lambda>"),
        (within(0.5), "within.<locals>.score"),
        (partial(here), "partial"),
        (Judge(), "Judge"),
        (Stricter(pattern="a"), "Stricter"),
        (CallableVerifier(here), "CallableVerifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_in_no_file_is_said_to_be_given_in_python(reward, name, tmp_path):
    trainer = GRPOTrainer("smollm2-135m", tmp_path / "train.jsonl", reward)
    section = reloaded(trainer, tmp_path).reward
    assert (section.verifier, section.function) == (None, None)
    assert section.python.startswith(f"{name} ")


def test_a_function_that_its_module_does_not_have_by_its_name_is_given_in_python(rewards_module):
    assert reward_section(rewards_module.half).function is None


def test_a_script_is_not_loaded_for_its_function(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "from headrace.cluster.python_reward import reward_section\n"
        "def score(completion, row):\n    return 1.0\n"
        "print(reward_section(score).python)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("score ")


def test_a_job_whose_reward_was_given_in_python_is_refused_without_it(tmp_path, tiny_model):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    trainer = GRPOTrainer(str(tiny_model), tmp_path / "train.jsonl", here, model__max_length=64, rollout__max_tokens=8)
    with pytest.raises(UserError, match=r"^reward\.python: this job's reward \(here\) was given in Python"):
        prepare(reloaded(trainer, tmp_path))


class Strict(Judge):
    """Inherits all it does."""


class Lenient(Judge):
    @property
    def tolerance(self):
        return 0.5

    @staticmethod
    def near(first, second):
        return abs(first - second) < 0.5


class VeryLenient(Judge):
    @property
    def tolerance(self):
        return 0.9

    @staticmethod
    def near(first, second):
        return abs(first - second) < 0.5


@dataclass
class Threshold:
    value: float


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Kind(Enum):
    A = 1
    B = 2


HELD = [
    re.compile("a"),
    re.compile("b"),
    Kind.A,
    Kind.B,
    Path("a"),
    Path("b"),
    range(3),
    range(4),
    Threshold(0.5),
    Threshold(0.9),
    Slotted(0.5),
    Slotted(0.9),
    threading.Lock(),
]


def not_yet_assigned():
    """A function whose closure names what comes to be only after it."""

    def score(completion, row):
        return later

    prints = fingerprint(score)
    later = 1.0
    return prints


DIFFERENT = [
    within(0.5),
    within(0.25),
    lambda completion, row: 0.5,
    lambda completion, row: 0.25,
    lambda completion, row: row["a"],
    lambda completion, row: row.a,
    lambda completion, row, share=0.5: share,
    lambda completion, row, share=0.25: share,
    partial(here, "a"),
    partial(here, "b"),
    Judge(0.5),
    Judge(0.25),
    Judge(0.5).verify,
    Judge(0.25).verify,
    partial(Judge(0.5).verify),
    Strict(0.5),
    Lenient(0.5),
    VeryLenient(0.5),
    CallableVerifier(within(0.5)),
    CallableVerifier(within(0.25)),
]


def test_other_code_or_other_values_have_another_fingerprint():
    prints = [fingerprint(reward) for reward in DIFFERENT]
    assert len(set(prints)) == len(prints)


def test_the_same_made_again_has_the_same_fingerprint():
    assert fingerprint(within(0.5)) == fingerprint(within(0.5))
    assert fingerprint(Judge(0.5)) == fingerprint(Judge(0.5))


def test_what_an_object_in_a_closure_holds_counts():
    prints = [fingerprint(within(held)) for held in HELD]
    assert len(set(prints)) == len(prints)
    assert prints[:-1] == [fingerprint(within(copy.deepcopy(held))) for held in HELD[:-1]]


def test_a_name_that_is_assigned_later_is_no_obstacle():
    assert len(not_yet_assigned()) == 12


def test_a_fingerprint_is_the_same_in_every_process():
    program = (
        "from headrace.cluster.python_reward import fingerprint\n"
        "words = ('alpha', 'beta')\n"
        "def made(allowed):\n"
        "    def score(completion, row, also=frozenset(words)):\n"
        "        return completion in {'gamma', 'delta', 'epsilon'} or completion in allowed\n"
        "    return score\n"
        "print(fingerprint(made({'zeta', 'eta', 'theta'})))\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (within(0.5), within(0.25), r"reward\.python"),
        (RegexVerifier(pattern="a"), RegexVerifier(pattern="b"), r"reward\.options"),
        (RegexVerifier(pattern="a"), here, r"reward\.(verifier|options)"),
    ],
)
def test_a_resume_with_another_reward_is_refused(before, after, key, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_job(dump_job(GRPOTrainer("smollm2-135m", "/a.jsonl", before).job))
    check_compatible(GRPOTrainer("smollm2-135m", "/a.jsonl", before).job, load_job(folder.job), folder)
    with pytest.raises(UserError, match=rf"^--resume: {key} is "):
        check_compatible(GRPOTrainer("smollm2-135m", "/a.jsonl", after).job, load_job(folder.job), folder)
