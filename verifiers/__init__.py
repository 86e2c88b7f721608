"""Rewards: pure functions of a finished sample. `build_verifier` is the way in from a job file."""

from headrace.verifiers.base import Verifier, VerifierSpec, not_run, scored
from headrace.verifiers.code import CodeVerifier
from headrace.verifiers.composition import AllOf, ByRow, FirstApplicable, Part, WeightedSum
from headrace.verifiers.errors import UserError
from headrace.verifiers.function import CallableVerifier
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.regex import RegexVerifier
from headrace.verifiers.registry import build_verifier, verifier_names
from headrace.verifiers.tool_call import RewardWeights, ToolCallVerifier

__all__ = [
    "AllOf",
    "ByRow",
    "CallableVerifier",
    "CodeVerifier",
    "FirstApplicable",
    "Part",
    "RegexVerifier",
    "RewardWeights",
    "Sample",
    "ToolCallVerifier",
    "UserError",
    "Verdict",
    "VerdictKind",
    "Verifier",
    "VerifierSpec",
    "WeightedSum",
    "build_verifier",
    "not_run",
    "scored",
    "verifier_names",
]
