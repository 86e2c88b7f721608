"""Tasks in the style of data sets of code, written for these tests: a prompt that a completion continues, a right one, and a
test. And a maker of mutants, which are wrong mostly, and sometimes not."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator

import msgspec

CPU_SECONDS = 1  # more than any of these programs takes that comes to an end
_MEMORY = 1 << 30


class Task(msgspec.Struct, frozen=True):
    name: str
    prompt: str
    solution: str
    test: str

    @property
    def program(self) -> str:
        return self.prompt + self.solution


def _task(name: str, parameters: str, sense: str, body: str, *asserts: str, before: str = "") -> Task:
    prompt = f'{before}def {name}({parameters}):\n    """ {sense} """\n'
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    checks = "".join(f"    assert {each}\n" for each in asserts)
    return Task(name, prompt, indented, f"def check(candidate):\n{checks}")


TASKS = [
    _task("runs", "text", "Lengths of runs of one character.", """
out = []
for place, letter in enumerate(text):
    if place > 0 and text[place - 1] == letter:
        out[-1] += 1
    else:
        out.append(1)
return out
""", "candidate('') == []", "candidate('aab') == [2, 1]", "candidate('abccc') == [1, 1, 3]"),
    _task("is_prime", "n", "Whether n is a prime number.", """
if n < 2:
    return False
for divisor in range(2, int(math.sqrt(n)) + 1):
    if n % divisor == 0:
        return False
return True
""", "candidate(2)", "candidate(13)", "not candidate(1)", "not candidate(9)", "not candidate(49)", "candidate(53)",
          before="import math\n\n"),
    _task("rotate", "items, by", "Turns the list itself to the left, and returns nothing.", """
if items:
    by = by % len(items)
    items[:] = items[by:] + items[:by]
""", "(lambda x: (candidate(x, 1), x)[1])([1, 2, 3]) == [2, 3, 1]", "(lambda x: (candidate(x, 5), x)[1])([1, 2]) == [2, 1]",
          "candidate([], 3) is None"),
    _task("fibonacci", "n", "The n-th, from 0.", """
first, second = 0, 1
while n > 0:
    first, second = second, first + second
    n -= 1
return first
""", "[candidate(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]", "candidate(90) == 2880067194370816120"),
    _task("histogram", "words", "How often each word is there, the rare ones left out.", """
counts = {}
for word in words.split():
    counts[word] = counts.get(word, 0) + 1
return {word: count for word, count in counts.items() if count >= 2}
""", "candidate('a b a') == {'a': 2}", "candidate('') == {}", "candidate('x x y y y z') == {'x': 2, 'y': 3}"),
    _task("balanced", "text", "Whether brackets match.", """
depth = 0
for letter in text:
    if letter == '(':
        depth += 1
    elif letter == ')':
        depth -= 1
    if depth < 0:
        return False
return depth == 0
""", "candidate('(())')", "candidate('')", "not candidate(')(')", "not candidate('((')", "candidate('a(b)c()')"),
    _task("largest_gap", "numbers", "Between neighbours in order; none: None.", """
if len(numbers) < 2:
    return None
ordered = sorted(numbers)
return max(after - before for before, after in zip(ordered, ordered[1:]))
""", "candidate([4]) is None", "candidate([9, 1, 4]) == 5", "candidate([2, 2]) == 0", "candidate([-3, 5, 6]) == 8"),
    _task("to_base", "number, base", "As text.", """
if number == 0:
    return '0'
digits = ''
while number > 0:
    digits = str(number % base) + digits
    number = number // base
return digits
""", "candidate(0, 2) == '0'", "candidate(8, 3) == '22'", "candidate(7, 2) == '111'", "candidate(1234, 10) == '1234'"),
    _task("common", "one, other", "What is in both, in order.", """
return sorted(set(one) & set(other))
""", "candidate([3, 1, 2], [2, 3, 4]) == [2, 3]", "candidate([], [1]) == []", "candidate([5, 5], [5]) == [5]"),
    _task("average", "numbers", "Their mean; ValueError for none.", """
if not numbers:
    raise ValueError('none')
return sum(numbers) / len(numbers)
""", "candidate([1, 2]) == 1.5", "abs(candidate([0.1, 0.2, 0.3]) - 0.2) < 1e-9", "candidate([-4]) == -4"),
    _task("caesar", "text, shift", "Letters moved on in the alphabet.", """
moved = ''
for letter in text:
    if 'a' <= letter <= 'z':
        moved += chr((ord(letter) - 97 + shift) % 26 + 97)
    else:
        moved += letter
return moved
""", "candidate('abc', 1) == 'bcd'", "candidate('xyz!', 3) == 'abc!'", "candidate('a b', 27) == 'b c'"),
    _task("triangle", "a, b, c", "The area, -1 for none.", """
if a + b <= c or a + c <= b or b + c <= a:
    return -1
half = (a + b + c) / 2
return round((half * (half - a) * (half - b) * (half - c)) ** 0.5, 2)
""", "candidate(3, 4, 5) == 6.0", "candidate(1, 2, 10) == -1", "candidate(4, 8, 5) == 8.18", "candidate(1, 2, 3) == -1"),
]  # fmt: skip

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def _changed(node: ast.AST) -> Iterator[None]:
    """Changes the node, one way after another."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _SWAPS:
        node.op = _SWAPS[type(node.op)]()  # type: ignore[assignment]
        yield
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        node.ops[0] = _SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
        yield
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        node.value = not node.value
        yield
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        number = node.value
        for node.value in (number + 1, number - 1):
            yield
    elif isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
        yield
    elif isinstance(node, ast.If | ast.While):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        yield


def mutants(program: str) -> list[str]:
    """The program with one operator, constant, condition or returned value changed, for each place where one can be."""
    found: list[str] = []
    for place in range(len(list(ast.walk(ast.parse(program))))):
        tree = ast.parse(program)
        found += [
            ast.unparse(ast.fix_missing_locations(tree)) for _ in _changed(list(ast.walk(tree))[place])
        ]  # fmt: skip
    return found


def spread(items: list[str], most: int) -> list[str]:
    """Some of them, from all over the list."""
    return items[:: max(1, -(-len(items) // most))]


# Forks for each program, as none may change what the next one finds. It answers on standard error: programs print.
_JUDGE = """
import json, os, resource, sys
cases = json.load(sys.stdin)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for program, prompt, test, name, seconds, memory in cases:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            scope = {}
            exec(compile(program, "<program>", "exec"), scope)
            test_scope = {}
            exec(compile(prompt, "<prompt>", "exec"), test_scope)
            test_scope[name] = scope[name]
            exec(compile(test, "<test>", "exec"), test_scope)
            test_scope["check"](scope[name])
            status = 0
        finally:
            os._exit(status)
    sys.stderr.write("1" if os.waitpid(pid, 0)[1] == 0 else "0")
"""


def passes_in_python(cases: Iterable[tuple[Task, str]]) -> list[bool]:
    """Whether plain Python, without any box, comes to the end of each task's test with the program in the solution's place.

    The test has what the prompt defines, as it was: mutants change that too.
    """
    listed = [(program, task.prompt, task.test, task.name, CPU_SECONDS, _MEMORY) for task, program in cases]
    run = subprocess.run(
        [sys.executable, "-I", "-c", _JUDGE], input=json.dumps(listed).encode(), capture_output=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )  # fmt: skip
    said = run.stderr.decode()
    assert len(said) == len(listed) and set(said) <= {"0", "1"}, said[:500]
    return [each == "1" for each in said]
