"""docs/your-own-task.md, followed to the letter from an empty folder, for two steps of a tiny model in place of the page's.

The script differs in one thing more: a small engine generates, since vLLM, which the job has, takes half a minute to start.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from headrace.cluster import cli
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import StepRecord

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-task.md").read_text()
# A paragraph that begins with a file's name and ends with a colon, and the block after it.
FILE = re.compile(r"^`([\w.]+)`[^\n]*(?:\n[^\n]+)*:\n\n```(?:json|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n\$ (.*?)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HOME = "/home/you/words"
STEPS = 2
# The script with a small engine in place of vLLM, everything else as `python train.py` has it.
DRIVER = """
import os
import runpy
import sys
from headrace.cluster.trainer import run_job
if __name__ == "__main__":
    run_job.__kwdefaults__["engine_class"] = "headrace.actors.small_engine:SmallEngine"
    sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def page_files() -> dict[str, str]:
    return dict(FILE.findall(PAGE))


def console(section: str) -> list[tuple[str, str]]:
    """(command, output) of each console block in a section of the page."""
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return CONSOLE.findall(text)


@pytest.fixture
def words(tmp_path) -> Path:
    """The page's files, and nothing else, in a folder."""
    folder = tmp_path / "words"
    folder.mkdir()
    for name, text in page_files().items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def quick_words(words, tiny_model) -> Path:
    """The same for a run of two steps on the tiny model."""
    for file, steps in (("job.toml", "steps = {}"), ("train.py", "num_steps={}")):
        text = (words / file).read_text()
        assert text.count("smollm2-135m") == 1 and text.count(steps.format(20)) == 1
        text = text.replace("smollm2-135m", str(tiny_model)).replace(steps.format(20), steps.format(STEPS))
        (words / file).write_text(text)
    return words


def run(folder: Path, command: str) -> str:
    """Run a command in the folder, as in an activated environment; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def assert_trained(folder: Path, by: str) -> RunFolder:
    run_folder = RunFolder(folder)
    steps = [record for record in run_folder.read_metrics() if isinstance(record, StepRecord)]
    assert [record.step for record in steps] == list(range(1, STEPS + 1))
    # The function's own reward: brevity alone, since a random model writes none of the words.
    assert all(0 < record.reward_mean <= 1 for record in steps), f"no reward of {by} arrived"
    assert AutoModelForCausalLM.from_pretrained(run_folder.model).num_parameters() > 0
    return run_folder


def test_the_page_names_all_of_its_files():
    assert list(page_files()) == ["prompts.jsonl", "rewards.py", "job.toml", "answers.jsonl", "train.py"]


def test_the_job_of_the_page_runs_as_the_page_says(quick_words):
    (trial, expected), (command, nothing) = console("Run it")
    *table, rate = run(quick_words, trial).splitlines()
    assert table == expected.splitlines()[:-1] and rate.startswith("3 rows in ")
    scores = [json.loads(line)["reward"] for line in (quick_words / "scores.jsonl").read_text().splitlines()]
    assert scores == [0.955, 0.46, 0.0]
    assert command == "headrace run job.toml" and nothing == ""
    screen = run(quick_words, command)
    told = ("starting 1 generator(s)", "evaluation before: sampled", f"step {STEPS}/{STEPS}: reward")
    assert [line for line in told if line not in screen] == []
    folder = assert_trained(quick_words / "runs" / "words", "rewards.py")
    summary = json.loads(folder.summary.read_text())
    assert summary["before"] and summary["after"] and summary["gain"]
    assert folder.report.exists() and folder.read_samples()


def test_the_script_of_the_page_runs_as_the_page_says(quick_words):
    ((command, nothing),) = console("The same in Python")
    assert command == "python train.py" and nothing == ""
    driver = quick_words.parent / "driver.py"
    driver.write_text(DRIVER)
    run(quick_words, f"python {driver} train.py")
    assert_trained(quick_words / "runs" / "words-python", "train.py")


def misspell_a_key(words: Path) -> None:
    replace(words / "job.toml", "group_size = 4", "group_sise = 4")


def lose_a_prompt(words: Path) -> None:
    row = '"Write one short sentence about a harbour.", "words": ["harbour", "ship"]}'
    replace(words / "prompts.jsonl", f'{{"prompt": {row}', f'{{"text": {row}')


def forget_the_row(words: Path) -> None:
    replace(words / "rewards.py", "def score(completion: str, row: dict) -> float:", "def score(completion):")


def start_again(words: Path) -> None:
    run_folder = RunFolder(words / "runs" / "words")
    run_folder.create()
    run_folder.write_job("")
    run_folder.close()


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    assert new in PAGE, f"the page does not show {new}"


MISTAKES = (misspell_a_key, lose_a_prompt, forget_the_row, start_again)


def test_every_mistake_of_the_page_is_tried():
    assert len(console("The first mistakes")) == len(MISTAKES)


@pytest.mark.parametrize("index", range(len(MISTAKES)), ids=[mistake.__name__ for mistake in MISTAKES])
def test_a_mistake_is_answered_with_the_line_on_the_page(words, tiny_model, monkeypatch, capsys, index):
    command, answer = console("The first mistakes")[index]
    job = (words / "job.toml").read_text().replace("smollm2-135m", str(tiny_model))
    (words / "job.toml").write_text(job)
    MISTAKES[index](words)
    monkeypatch.chdir(words)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    # Were the mistake not found, the run would end here instead of starting a cluster.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert capsys.readouterr().err.replace(str(words), HOME) == answer
    assert stopped.value.code == 2
