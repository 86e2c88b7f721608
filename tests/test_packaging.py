"""What an installed Headrace holds: every package and data file of the floors, which an editable install cannot show."""

import fnmatch
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("cluster", "actors", "learner", "verifiers")
# Setuptools without pip, which would look for what builds the wheel on an index.
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def files_of_the_floors() -> set[str]:
    """Paths of all files that belong to a floor, from the root."""
    found = (path for floor in FLOORS for path in (ROOT / floor).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in found if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_folder_with_python_files_is_a_package_of_the_list_and_found_there(setuptools_table):
    folders = {str(Path(file).parent) for file in files_of_the_floors() if file.endswith(".py")}
    assert {folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()} == set()
    names = {f"headrace.{folder.replace('/', '.')}": folder for folder in folders}
    assert sorted(setuptools_table["packages"]) == sorted(names)
    assert setuptools_table["package-dir"] == names


def test_every_file_that_is_no_python_is_package_data(setuptools_table):
    patterns = [
        f"{setuptools_table['package-dir'][package]}/{pattern}"
        for package, listed in setuptools_table["package-data"].items()
        for pattern in listed
    ]
    data = {file for file in files_of_the_floors() if not file.endswith(".py")}
    assert "cluster/templates/report.html.j2" in data
    assert {file for file in data if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)} == set()
    assert [pattern for pattern in patterns if not fnmatch.filter(data, pattern)] == []


def test_a_wheel_holds_every_file_of_the_floors_and_the_command(tmp_path):
    source = tmp_path / "source"
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, source / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(tmp_path / built.stdout.splitlines()[-1]) as wheel:
        held = {name.removeprefix("headrace/") for name in wheel.namelist() if name.startswith("headrace/")}
        (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
        assert "headrace = headrace.cluster.cli:main" in wheel.read(entry_points).decode()
    assert held == files_of_the_floors()
