"""Verifiers by name: the built-in ones, and those that installed packages offer in the entry point group below.

A package adds one in its pyproject.toml:

    [project.entry-points."headrace.verifiers"]
    palindrome = "my_package.checks:PalindromeVerifier"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from headrace.verifiers.base import Verifier, VerifierSpec, nearest, printable
from headrace.verifiers.code import CodeVerifier
from headrace.verifiers.composition import AllOf, ByRow, Composite, FirstApplicable, WeightedSum
from headrace.verifiers.database.verifier import DatabaseVerifier
from headrace.verifiers.entities.verifier import EntitiesVerifier
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.function import CallableVerifier
from headrace.verifiers.instructions import InstructionsVerifier
from headrace.verifiers.judge import JudgeVerifier
from headrace.verifiers.math import MathVerifier
from headrace.verifiers.regex import RegexVerifier
from headrace.verifiers.reward_model import RewardModelVerifier
from headrace.verifiers.tool_call import ToolCallVerifier

ENTRY_POINT_GROUP = "headrace.verifiers"

BUILT_IN: dict[str, type[Verifier]] = {
    "all_of": AllOf,
    "by_row": ByRow,
    "code": CodeVerifier,
    "database": DatabaseVerifier,
    "entities": EntitiesVerifier,
    "first_applicable": FirstApplicable,
    "instructions": InstructionsVerifier,
    "judge": JudgeVerifier,
    "math": MathVerifier,
    "python": CallableVerifier,
    "regex": RegexVerifier,
    "reward_model": RewardModelVerifier,
    "tool_call": ToolCallVerifier,
    "weighted_sum": WeightedSum,
}


def verifier_names() -> list[str]:
    """Every name that `[reward] verifier` may have, sorted."""
    return sorted(BUILT_IN.keys() | _offered().keys())


def build_verifier(spec: VerifierSpec) -> Verifier:
    """The verifier that `spec` names, ready to use; nothing is started before its first verdict.

    Raises UserError for an unknown name (with the nearest valid one), a wrong option, and for files that the verifier
    needs and that are missing or invalid.
    """
    base_dir = Path(spec.base_dir)
    if spec.verifier is not None and spec.function is not None:
        raise UserError("the reward names both a `verifier` and a `function`; keep one of them")
    if spec.function is not None:
        if "function" in spec.options:
            raise WrongOption("function", "option `function`: the reward names its function already; remove it")
        return CallableVerifier.from_options({**spec.options, "function": spec.function}, base_dir)
    if spec.verifier is None:
        raise UserError(f"the reward names neither a `verifier` ({', '.join(verifier_names())}) nor a `function`")
    kind = _verifier_class(spec.verifier)
    if issubclass(kind, Composite):
        return kind.compose(spec.options, base_dir, build_verifier)
    return kind.from_options(spec.options, base_dir)


def _verifier_class(name: str) -> type[Verifier]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    offered = _offered()
    if name not in offered:
        raise UserError(f"unknown verifier `{printable(name, 80)}`{nearest(name[:80], verifier_names())}")
    entry = offered[name]
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"verifier `{name}` (entry point {entry.value}) cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Verifier)):
        raise UserError(f"verifier `{name}` (entry point {entry.value}) is no subclass of headrace.verifiers.Verifier")
    return loaded


def _offered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
