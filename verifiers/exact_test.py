"""A data set's own test, made to tell True from 1, which Python's `==` does not.

Only comparisons by `==` of what the function under test gives are changed: `candidate(...) == wanted`, either way round.
"""

from __future__ import annotations

import ast
from functools import lru_cache

_SAME = "__headrace_same__"
_DEFINITION = f"""
def {_SAME}(found, wanted):
    kinds = {{type(found), type(wanted)}}
    if bool in kinds and len(kinds) == 2 and kinds <= {{bool, int, float}}:
        return False
    if kinds <= {{list, tuple}} and len(found) == len(wanted):
        if not all({_SAME}(*pair) for pair in zip(found, wanted)):
            return False
    if kinds == {{dict}} and found.keys() == wanted.keys():
        if not all({_SAME}(found[key], wanted[key]) for key in wanted):
            return False
    return found == wanted
"""


@lru_cache(maxsize=4096)  # a group's samples have one test
def with_exact_booleans(test: str, entry_point: str) -> str:
    """The test with these comparisons exact about booleans; as it is where it cannot be parsed: it fails by itself then."""
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return test
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "check"]
    names = {entry_point, *(argument.arg for check in checks for argument in check.args.args[:1])}
    return f"{_DEFINITION}\n{ast.unparse(ast.fix_missing_locations(_Exact(names).visit(tree)))}"


class _Exact(ast.NodeTransformer):
    def __init__(self, names: set[str]) -> None:
        self._names = names

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) > 1 or not isinstance(node.ops[0], ast.Eq):
            return node
        sides = [node.left, node.comparators[0]]
        if not any(self._is_call(side) for side in sides):
            return node
        return ast.Call(ast.Name(_SAME, ast.Load()), sides, [])

    def _is_call(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._names
