"""From a TOML file and command-line values to a checked `JobConfig`; what is wrong becomes one line with its place."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from headrace.cluster.config import DEMO_MODEL, FilePath, JobConfig, Mismatch, keys_named
from headrace.verifiers.base import nearest
from headrace.verifiers.errors import UserError, WrongValue

PATH_KEYS = (("data", "train"), ("data", "held_out"), ("warm_start", "data"))


def located(error: WrongValue, path: Path, overrides: Sequence[str]) -> UserError:
    """The same with the place where the job file, or the command line, gives the value."""
    text = path.read_text(encoding="utf-8-sig")
    place = _place(path, text, error.key.split("."), parse_overrides(overrides))
    return UserError(f"{place}: {error.message}")


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """The job that a file describes, with command-line values in place of the file's.

    Args:
        path: TOML. Relative paths of data in it are relative to its folder; those on the command line to the working
            directory.
        overrides: `--section.key value` or `--section.key=value`, hyphens for underscores.

    Raises:
        UserError: unreadable, not TOML, unknown key, wrong type, or an impossible combination.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not TOML: not UTF-8 text (byte {error.start})") from error
    try:
        values = tomllib.loads(text)
    # ValueError: tomllib's own, or an integer of thousands of digits.
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply") from error
    anchor_paths(values, path.parent.resolve())
    given = parse_overrides(overrides)
    for (section, key), value in given.items():
        _set(values, section, key, value)
    return check_job(values, lambda place: _place(path, text, place, given))


def check_job(values: dict[str, Any], place: Any = lambda where: ".".join(where)) -> JobConfig:
    """The job of nested plain values. `place` turns a key's path into what the message shows. Raises UserError."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        # A misspelt key goes first: what is missing is often missing because of it.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = [str(part) for part in first["loc"]]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, Mismatch):
            paths = ([*where, *key.split(".")] for key in cause.keys)
            where = next((path for path in paths if _given(values, path)), where)
        raise UserError(f"{place(where)}: {_explain(first, where)}") from error


def _given(values: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _explain(error: Any, where: list[str]) -> str:
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        model = _model_at(where[:-1])
        known = list(model.model_fields) if model else []
        return f"unknown key `{where[-1]}`{nearest(where[-1], known)}"
    if kind == "missing":
        return f"is missing: {_describe(where)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "path_type":
        return f"is {type(error['input']).__name__}, not a path"
    if kind == "literal_error":
        # As TOML writes them, and not as Python does.
        message = message.replace("True", "true").replace("False", "false")
    return f"{message[0].lower()}{message[1:]}, not {error['input']!r}"


def _describe(where: list[str]) -> str:
    model = _model_at(where[:-1])
    field = model.model_fields.get(where[-1]) if model else None
    description = (field.description if field else None) or "give it in the job file"
    return description.split("\n")[0]


def _model_at(where: list[str]) -> type[BaseModel] | None:
    """The section at that path; None inside a value, such as the second item of a list."""
    model: type[BaseModel] | None = JobConfig
    for part in where:
        if model is None:
            return None
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        sections = (option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
        model = next(sections, None)
    return model


def _place(path: Path, text: str, where: list[str], given: dict[tuple[str, str], Any]) -> str:
    """`file:line: section.key`, or the command-line option."""
    name = ".".join(where)
    options = [[section, *key.split(".")] for section, key in given]
    line = _line_of(text, where)
    if any(_holds(".".join(option), where) for option in options):
        return f"--{name.replace('_', '-')}"
    if line is None and where:
        for option in options:
            if option[: len(where)] == where:
                return f"--{'.'.join(option).replace('_', '-')}"
    return f"{path}:{line}: {name}" if line else f"{path}: {name}" if name else str(path)


def _line_of(text: str, where: list[str]) -> int | None:
    section, found = "", None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line):
            section = header[1]
            if where and section.split(".")[0] == where[0]:
                found = found or number
        elif (key := re.match(r"\s*([\w.-]+)\s*=", line)) and _holds(f"{section}.{key[1]}".lstrip("."), where):
            return number
    return found


def _holds(key: str, where: list[str]) -> bool:
    """Whether `where` is the key or lies inside its value."""
    parts = key.split(".")
    return where[: len(parts)] == parts


def parse_overrides(words: Sequence[str]) -> dict[tuple[str, str], Any]:
    """`--section.key value` pairs. A value is read as TOML where it is TOML and the key wants more than text, and else is
    the text itself: `--rollout.threads 0` is a core's name.

    Raises:
        UserError: a word that is no such option, or one without a value.
    """
    values: dict[tuple[str, str], Any] = {}
    rest = list(words)
    for word in rest:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{word!r}: not UTF-8 text, so it could not be kept in the run's job.toml") from error
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        match = re.fullmatch(r"--([a-z_-]+)\.([a-z_.-]+)", name)
        if not match:
            keys = [".".join(place) for place in keys_named(name.removeprefix("--").replace("-", "_"))]
            meant = " or ".join(f"--{key.replace('_', '-')} VALUE" for key in keys) or "--section.key VALUE"
            raise UserError(f"{word}: not an option of this command; a value of the job is {meant}")
        if not equals:
            if not rest:
                raise UserError(f"{word}: is missing its value")
            value = rest.pop(0)
        section, key = match[1].replace("-", "_"), match[2].replace("-", "_")
        values[section, key] = _toml_value(value, section, key)
    return values


def _toml_value(text: str, section: str, key: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # as in `load_job`
        return text
    # A string in quotes is TOML for text as well.
    return text if _is_text(section, key) and not isinstance(value, str) else value


def _is_text(section: str, key: str) -> bool:
    model = _model_at([section]) if section in JobConfig.model_fields else None
    field = model.model_fields.get(key) if model else None
    kinds = {field.annotation, *get_args(field.annotation)} if field else set()
    return bool(kinds & {str, Path, FilePath}) and not kinds & {int, float, bool}


def _set(values: dict[str, Any], section: str, key: str, value: Any) -> None:
    target = values
    *parents, last = key.split(".")
    for parent in (section, *parents):
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UserError(f"--{section}.{key}: {parent!r} is a single value in the job file, not a table")
    given = {section: {"base_dir": None, last: value}}
    anchor_paths(given, Path.cwd())
    target[last] = given[section][last]


def anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make relative paths independent of the working directory: they start at `folder`."""
    for section, key in PATH_KEYS:
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str | Path):
            table[key] = str(folder / table[key])
    reward = values.get("reward")
    if isinstance(reward, dict) and "base_dir" not in reward:
        reward["base_dir"] = str(folder)
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        model["base"] = _anchored_model(model["base"], folder)


def _anchored_model(base: str, folder: Path) -> str:
    """A relative model folder as an absolute one; a name that is no folder's is a hub id, unless it begins with a dot."""
    if base == DEMO_MODEL:
        return base
    for start in (folder, Path.cwd()):
        # `isdir` is also an answer for what can be no path at all.
        if base and os.path.isdir(start / base):
            return str(start / base)
    return str(folder / base) if base.startswith(".") else base


def dump_job(job: JobConfig) -> str:
    """The job as TOML, every value written out; one that is not set is a comment that says what then holds. `load_job` of
    it gives the same job."""
    given = job.model_dump(mode="json", exclude_none=True)
    lines = (line for section in JobConfig.model_fields for line in [*_dump_section(section, given.get(section)), ""])
    return "\n".join(lines)


def _dump_section(section: str, values: dict[str, Any] | None) -> list[str]:
    """Its lines. TOML has no word for what is not set, so that stands in a comment, with the key's meaning."""
    model = _model_at([section])
    fields = model.model_fields if model else {}
    if values is None:
        return [f"# [{section}]: not set; its keys: {', '.join(fields)}"]
    lines = [f"[{section}]"]
    for key, field in fields.items():
        meaning = " ".join((field.description or "").split())
        lines.append(f"{key} = {_to_toml(values[key])}" if key in values else f"# {key}: not set. {meaning}".rstrip())
    return lines


def _to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_to_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_to_toml(item) for item in value) + "]"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    # JSON's strings, numbers and booleans are TOML's, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _to_toml(key)
