"""The Dockerfile, read as BuildKit reads it: no engine is needed to see what it refers to."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = ("cpu", "gpu")
LOCKS = {"cpu": ROOT / "requirements.lock", "gpu": ROOT / "deploy" / "requirements-gpu.lock"}


@dataclass
class Stage:
    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, keyword: str) -> list[str]:
        return [argument for instruction, argument in self.instructions if instruction == keyword]


def parse(text: str) -> dict[str, Stage]:
    """The stages by name, in order. ARG values stand in for `${...}` in FROM lines."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", code).splitlines():
        if not line.strip():
            continue
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], rest).partition(" AS ")
            stages[name] = Stage(base, name)
        elif stages:
            list(stages.values())[-1].instructions.append((keyword, rest.strip()))
        else:
            assert keyword == "ARG", f"{keyword} stands before the first FROM"
            arguments.update([rest.split("=", 1)])
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those it is built on."""
    found = []
    while name in stages:
        found.append(stages[name])
        name = stages[name].base
    return found


def used_stages(stages: dict[str, Stage], target: str) -> set[str]:
    """The stages that a build of `target` runs: what it is built on, and what it copies or mounts from."""
    used: set[str] = set()
    waiting = [target]
    while waiting:
        for stage in lineage(stages, waiting.pop()):
            if stage.name not in used:
                used.add(stage.name)
                waiting += re.findall(
                    r"(?:--from=|,from=)([\w-]+)", " ".join(argument for _, argument in stage.instructions)
                )
    return used


def context_copies(stages: dict[str, Stage]) -> list[str]:
    """The paths that COPY takes from the build context."""
    copies = [copy.split() for stage in stages.values() for copy in stage.arguments("COPY") if "--from=" not in copy]
    return [source for words in copies for source in words[:-1]]


def locked(lock: Path) -> dict[str, Version]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return parse(DOCKERFILE.read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_target_runs_as_a_numbered_user_that_is_not_root(stages: dict[str, Stage], target: str) -> None:
    users = stages[target].arguments("USER")
    # Kubernetes' runAsNonRoot cannot judge a user's name.
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_built_on_python_3_11_and_starts_under_an_init(stages: dict[str, Stage], target: str) -> None:
    assert lineage(stages, target)[-1].base.startswith("python:3.11-")
    assert stages[target].arguments("ENTRYPOINT") == ['["tini", "--"]']
    assert any(" tini" in run for stage in lineage(stages, target) for run in stage.arguments("RUN"))


def test_every_base_names_a_version(stages: dict[str, Stage]) -> None:
    outside = {stage.base for stage in stages.values()} - stages.keys()
    assert outside
    for base in outside:
        assert re.search(r"(:|@sha256:)\S+$", base) and not base.endswith(":latest"), base


@pytest.mark.parametrize("target", TARGETS)
def test_target_installs_its_extra_under_its_lock(stages: dict[str, Stage], target: str) -> None:
    used = used_stages(stages, target)
    installs = [run for name in used for run in stages[name].arguments("RUN") if f"--extra {target}" in run]
    assert len(installs) == 1
    assert f"--constraint {LOCKS[target].name}" in installs[0]
    copied = [source for name in used for source in context_copies({name: stages[name]})]
    assert LOCKS[target].relative_to(ROOT).as_posix() in copied
    assert f"dependencies-{'gpu' if target == 'cpu' else 'cpu'}" not in used


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_enters_the_environment_comes_from_a_hashed_lock(stages: dict[str, Stage], target: str) -> None:
    installs = [run for name in used_stages(stages, target) for run in stages[name].arguments("RUN")]
    for run in installs:
        if "uv pip install" in run:
            (lock,) = re.findall(r"[\w-]+\.lock", run)
            assert f"--constraint {lock}" in run or f"--require-hashes --requirement {lock}" in run


def test_every_package_is_copied_and_every_copied_path_exists_and_is_in_the_context(stages: dict[str, Stage]) -> None:
    sources = context_copies(stages)
    assert {"verifiers", "actors", "learner", "cluster"} <= set(sources)
    folders = {path.split("/")[0] for path in PYPROJECT["tool"]["setuptools"]["package-dir"].values()}
    assert folders <= set(sources)
    allowed = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


def test_only_what_is_named_enters_the_build() -> None:
    rules = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"


def test_no_secret_is_baked_in(stages: dict[str, Stage]) -> None:
    named = re.compile(r"(?i)\b\w*(token|secret|password|api_?key|credential)\w*\s*=")
    for stage in stages.values():
        for keyword, argument in stage.instructions:
            assert keyword not in {"ARG", "ENV"} or not named.search(argument), argument


@pytest.mark.parametrize("target", TARGETS)
def test_lock_satisfies_pyproject(target: str) -> None:
    pins = locked(LOCKS[target])
    wanted = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"][target]
    for requirement in map(Requirement, wanted):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {LOCKS[target].name}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: locked {version}"


@pytest.mark.parametrize("lock", [*LOCKS.values(), ROOT / "benchmarks" / "trl.lock"], ids=lambda lock: lock.name)
def test_lock_is_hashed_and_names_no_path_or_host(lock: Path) -> None:
    for line in lock.read_text().splitlines():
        # A pin, perhaps with a marker; or a hash below it.
        assert re.fullmatch(
            r"[A-Za-z0-9._-]+==[^\s/@]+( ; [^/]+)? \\| {4}--hash=sha256:[0-9a-f]{64}( \\)?|#[^/]*", line
        ), line


def test_a_stage_without_a_pinned_user_or_version_is_seen() -> None:
    stages = parse("ARG BASE=python:latest\nFROM ${BASE} AS cpu\n# USER 1:1\nRUN a \\\n    && b\nCOPY x y /z/\n")
    assert stages["cpu"].base == "python:latest"
    assert stages["cpu"].arguments("USER") == []
    assert stages["cpu"].arguments("RUN") == ["a && b"]
    assert context_copies(stages) == ["x", "y"]
