"""What the Markdown files say of the code, checked against the code: paths, keys, commands, messages, links, metrics."""

import ast
import difflib
import re
import subprocess
import tomllib
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import ray.exceptions
import typer
from pydantic import BaseModel

from headrace.cluster import metrics
from headrace.cluster.cli import app
from headrace.cluster.config import JobConfig
from headrace.cluster.placement import Node, bundles, check_fits
from headrace.verifiers.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "deploy/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}[^\n]*\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
FLOORS = "cluster|actors|learner|verifiers|docs|deploy|tests|examples|benchmarks"
REPO_PATH = re.compile(rf"(?<![\w/.~-])((?:{FLOORS})/[\w./-]+|(?:Makefile|\w[\w-]*\.(?:lock|toml))(?![\w./]))")
# Files that a reader has or gets, not the repository.
THEIRS = {"job.toml", "JOB.toml"}
KEY = re.compile(r"(?<![\w./-])(\w+)\.([a-z][\w]*)(?![\w/(.])")
FILE_ENDINGS = {"py", "toml", "json", "jsonl", "html", "md", "lock", "yml", "yaml"}
COMMAND = re.compile(r"(?<![\w/.-])headrace ([a-z]+)([^\n`|]*)")
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")
DOTTED = re.compile(r"(?<![\w./-])(\w+)\.(\w+)(?![\w/.-])")
CAMEL = re.compile(r"[A-Z]+[a-z]+[A-Z]\w*")
# Names of other packages' in our pages.
FOREIGN = {"AsyncLLM", "FlexAttention", "OutOfMemoryError", "ActorDiedError"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SECTIONS = JobConfig.model_fields


def code(text: str) -> str:
    """The page's code: spans, fenced blocks and indented blocks, a piece a line or more."""
    blocks = [block for _, block in FENCE.findall(text)]
    rest = FENCE.sub("", text)
    return "\n".join([*blocks, *INDENTED.findall(rest), *(" ".join(span.split("\n")) for span in SPAN.findall(rest))])


def section_model(name: str) -> type[BaseModel]:
    annotation = SECTIONS[name].annotation
    options = [option for option in (annotation, *get_args(annotation)) if option not in (None, NoneType)]
    return next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))


def key_exists(section: str, key: str) -> bool:
    return key.replace("-", "_") in section_model(section).model_fields


def unknown_paths(page: Path, text: str) -> list[str]:
    """Paths in the text that exist neither in the repository nor beside the page."""
    found = {path.rstrip("./-") for path in REPO_PATH.findall(text)} - THEIRS
    return sorted(path for path in found if not (ROOT / path).exists() and not (page.parent / path).exists())


def unknown_keys(text: str) -> list[str]:
    """`section.key` in the page's code where the job file has that section and not that key; messages about an unknown key
    apart."""
    lines = "\n".join(line for line in code(text).splitlines() if "unknown key" not in line)
    pairs = [pair for pair in KEY.findall(lines) if pair[0] in SECTIONS and pair[1] not in FILE_ENDINGS]
    return sorted({f"{section}.{key}" for section, key in pairs if not key_exists(section, key)})


def wrong_commands(text: str) -> list[str]:
    """`headrace` commands with a subcommand or an option that the command line does not have."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    wrong = []
    for name, rest in COMMAND.findall(code(text)):
        if name not in commands:
            wrong.append(f"headrace {name}")
            continue
        known = {word.lstrip("-") for parameter in commands[name].params for word in parameter.opts}
        for option in OPTION.findall(rest):
            section, dot, key = option.partition(".")
            of_the_job = dot and name == "run" and section.replace("-", "_") in SECTIONS
            if not (key_exists(section.replace("-", "_"), key) if of_the_job else option in known):
                wrong.append(f"headrace {name} --{option}")
    return wrong


def definitions() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Of the four floors' code: each class's members, inherited ones included, and each module's names at the top."""
    members: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    modules: dict[str, set[str]] = {}
    for path in sorted(
        path for floor in ("cluster", "actors", "learner", "verifiers") for path in (ROOT / floor).rglob("*.py")
    ):
        tree = ast.parse(path.read_text())
        modules.setdefault(path.parent.name if path.stem == "__init__" else path.stem, set()).update(bound(tree.body))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and is_self(each)}
                members.setdefault(node.name, set()).update(bound(node.body), own)
                bases.setdefault(node.name, set()).update(ast.unparse(base).split("[")[0] for base in node.bases)
    for name in members:
        waiting = list(bases[name])
        while waiting:
            base = waiting.pop()
            members[name] |= members.get(base, set())
            waiting += bases.get(base, set())
    return members, modules


def bound(body: list[ast.stmt]) -> set[str]:
    """The names that statements bind: functions, classes, variables and fields, not what they import."""
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names


def is_self(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


MEMBERS, MODULES = definitions()


def unknown_names(text: str) -> list[str]:
    """Code spans with a `Class.member`, a `module.name` or a `ClassName` that our code does not define."""
    unknown = set()
    for span in SPAN.findall(FENCE.sub("", text)):
        for owner, name in DOTTED.findall(span):
            if name in FILE_ENDINGS or owner in SECTIONS:
                continue
            known = MEMBERS.get(owner, set()) if owner[0].isupper() else MODULES.get(owner, {name})
            if name not in known:
                unknown.add(f"{owner}.{name}")
        word = span.split("(")[0]
        if CAMEL.fullmatch(word) and word not in {*MEMBERS, *FOREIGN}:
            unknown.add(word)
    return sorted(unknown)


def wrong_options(text: str) -> list[str]:
    """Code spans that are an option by themselves, and none of any command."""
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {word for command in commands for parameter in command.params for word in parameter.opts}
    wrong = []
    for span in SPAN.findall(FENCE.sub("", text)):
        if not span.startswith("--"):
            continue
        for option in OPTION.findall(span):
            section, dot, key = option.partition(".")
            if not (section in SECTIONS and key_exists(section, key) if dot else f"--{option}" in known):
                wrong.append(f"--{option}")
    return wrong


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        linked = (page.parent / file).resolve() if file else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_repository_path_exists(page: Path):
    assert unknown_paths(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_key_of_the_job_file_exists(page: Path):
    assert unknown_keys(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_class_and_function_exists(page: Path):
    assert unknown_names(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_and_option_exists(page: Path):
    text = page.read_text()
    assert wrong_commands(text) + wrong_options(text) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_internal_link_leads_somewhere(page: Path):
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_toml_block_of_a_job_is_one(page: Path):
    for language, block in FENCE.findall(page.read_text()):
        if language == "toml":
            values = tomllib.loads(block)
            assert values.keys() <= {*SECTIONS, "project"}
            unknown = [f"{s}.{k}" for s in values.keys() & SECTIONS.keys() for k in values[s] if not key_exists(s, k)]
            assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_make_target_exists(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"^(?:\$ )?make ([a-z-]+)", code(page.read_text()).replace("    make", "make"), re.MULTILINE)
    )
    assert named - targets == set()


def test_the_checks_above_see_what_is_wrong():
    wrong = """`cluster/nothing.py`, `learner.ranks` and `learner.rank`, [x](docs/none.md), [y](#nowhere), `--resum`

    headrace run JOB.toml --learner.learning-rat 1 --resume
    headrace stop
"""
    assert unknown_paths(ROOT / "README.md", wrong) == ["cluster/nothing.py", "docs/none.md"]
    assert unknown_keys(wrong) == ["learner.rank"]
    names = (
        "`Controller.run`, `Controller._learn`, `waits.Stopped`, `waits.Halted`, `Waits`, `WaitsLonger`, `NoClass.run`"
    )
    assert unknown_names(names) == ["Controller._learn", "NoClass.run", "WaitsLonger", "waits.Halted"]
    assert wrong_commands(wrong) == ["headrace run --learner.learning-rat", "headrace stop"]
    assert wrong_options(wrong) == ["--resum"]
    assert broken_links(ROOT / "README.md", wrong) == ["docs/none.md", "#nowhere"]


def test_the_metric_tables_are_those_of_the_code():
    fresh = metrics.with_metrics(OPERATIONS)
    changes = difflib.unified_diff(OPERATIONS.splitlines(), fresh.splitlines(), lineterm="")
    assert fresh == OPERATIONS, "run `make docs`:\n" + "\n".join(changes)


def test_make_docs_writes_between_the_markers_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{metrics.TABLE_BEGIN}\nwhat was there\n{metrics.TABLE_END}\nafter\n")
    metrics.main([str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{metrics.TABLE_BEGIN}\n") and text.endswith(f"{metrics.TABLE_END}\nafter\n")
    assert metrics.metrics_markdown() in text and "what was there" not in text
    metrics.main([str(page)])
    assert page.read_text() == text


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{metrics.TABLE_END}\n{metrics.TABLE_BEGIN}\n")
    with pytest.raises(UserError, match=re.escape(str(page))):
        metrics.main([str(page)])
    assert page.read_text() == f"{metrics.TABLE_END}\n{metrics.TABLE_BEGIN}\n"


def test_the_preflight_message_is_the_real_one():
    job = JobConfig.model_validate(
        {
            "model": {"base": "owner/model"},
            "data": {"train": "train.jsonl"},
            "reward": {"verifier": "regex"},
            "rollout": {"generators": 2, "cpus": 8, "gpus": 1},
            "learner": {"cpus": 16, "gpus": 1},
        }
    )
    with pytest.raises(UserError) as refused:
        check_fits(bundles(job, frozenset()), [Node("10.0.0.7", {"CPU": 48, "GPU": 2})])
    assert f"    headrace: {refused.value}\n" in OPERATIONS


def source_text() -> str:
    """The code of the two upper floors' messages, with adjacent string literals joined and wildcards for values."""
    files = subprocess.run(
        ["git", "ls-files", "cluster/*.py", "actors/*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    text = "\n".join((ROOT / file).read_text() for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


def messages(heading: str) -> list[str]:
    """The first cells' code spans of the table under a heading of operations.md."""
    table = OPERATIONS.split(f"\n### {heading}\n", 1)[1].split("\n##", 1)[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return [span for row in rows for span in SPAN.findall(row)]


def missing_parts(message: str, source: str) -> list[str]:
    """Parts of a message, between its placeholders, that stand nowhere in the code."""
    parts = re.split(r"\b[NM]\b|\d+|\.\.\.|HOST|PORT|REASON|(?<=\()|(?=\))", message)
    missing = []
    for part in parts:
        name, colon, rest = part.partition("Error: ") if "Error: " in part else part.partition("Failed: ")
        if colon:
            kind = (name + colon.removesuffix(": ")).strip()
            if f"class {kind}" not in source and not hasattr(ray.exceptions, kind):
                missing.append(kind)
            part = rest
        part = part.strip(" ;:,()")
        if len(part) > 3 and part not in source:
            missing.append(part)
    return missing


@pytest.mark.parametrize("heading", ["Heartbeats", "Messages"])
def test_every_message_explained_is_one_that_the_code_gives(heading):
    source = source_text()
    found = messages(heading)
    assert len(found) >= 7
    assert {message: missing for message in found if (missing := missing_parts(message, source))} == {}


def test_a_message_that_nothing_gives_is_noticed():
    assert missing_parts("... is lost (...); nobody ever says so", source_text()) == ["nobody ever says so"]
    assert missing_parts("NoSuchError: is lost", source_text()) == ["NoSuchError"]
