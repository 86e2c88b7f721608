"""The examples in docstrings do what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("cluster", "actors", "learner", "verifiers")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["headrace", *(parts[:-1] if parts[-1] == "__init__" else parts)])


# A module without an example is not imported: some may only be in a process of their own.
MODULES = sorted(
    module_of(path) for floor in FLOORS for path in (ROOT / floor).rglob("*.py") if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_do_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0, "a `>>>` that is in no docstring"
    assert results.failed == 0


def test_every_floor_has_examples():
    assert {name.split(".")[1] for name in MODULES} == set(FLOORS)
