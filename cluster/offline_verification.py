"""Rows scored without a cluster: what `headrace verify` does, and how people try a reward before they spend GPUs on it.

A worker is a process with a verifier of its own (verifiers/worker_process.py) and a thread here that feeds it. As in a job,
a sample whose check did not run is offered again, alone and to another worker where there is one, and a worker that hangs or
ends is replaced.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import queue
import re
import threading
import time
import tomllib
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from headrace.cluster.prompt_source import place_of_row, read_rows
from headrace.verifiers.base import Verifier, VerifierSpec, not_run, printable
from headrace.verifiers.errors import UserError
from headrace.verifiers.failed_checks import failed_check
from headrace.verifiers.records import Sample, Verdict, VerdictKind
from headrace.verifiers.registry import build_verifier
from headrace.verifiers.worker_child import ChildFault
from headrace.verifiers.worker_process import Outcome, WorkerFailed, WorkerProcess

BATCH = 64  # samples in one call, at most
QUICK_SECONDS, SLOW_SECONDS = (
    0.25,
    1.0,
)  # a call below the first is followed by a larger one, above the second by a smaller
SIGNAL_SECONDS = 0.5  # that Ctrl-C may take to be seen
ATTEMPTS = 3  # as verification.attempts has it


class ScoredRow(msgspec.Struct, frozen=True):
    """A line of the output."""

    id: Any  # the row's own, or its line
    reward: float | None  # None where the check did not run
    verdict: str
    reason: str
    details: dict[str, Any]


class InputRow(msgspec.Struct, frozen=True):
    id: Any
    sample: Sample


def read_input(path: Path, verifier: Verifier) -> list[InputRow]:
    """The rows to score, each with its completion. Raises UserError with the line of the first that is wrong."""
    rows = read_rows(path, "INPUT")
    inputs = []
    for number, (line, row) in enumerate(zip(_lines(path, len(rows)), rows, strict=True), 1):
        if fault := _fault(row, verifier):
            raise UserError(f"{place_of_row(path, number)}: {fault}")
        own = row.get("id")
        inputs.append(InputRow(line if own is None else own, Sample(row["completion"], row)))
    return inputs


def _fault(row: dict[str, Any], verifier: Verifier) -> str | None:
    completion = row.get("completion")
    if completion is None:
        return f"field `completion` is missing; the row has {', '.join(map(printable, sorted(row))) or 'none'}"
    if not isinstance(completion, str):
        return f"field `completion` is {type(completion).__name__}, not a string"
    if isinstance(own := row.get("id"), float) and not math.isfinite(own):
        return f"field `id` is {own}, which no line of the output could name"
    return verifier.check_row(row)


def _lines(path: Path, count: int) -> list[int]:
    """The line of each row; of a Parquet file, its number."""
    if path.suffix == ".parquet":
        return list(range(1, count + 1))
    with path.open(encoding="utf-8-sig") as lines:
        return [number for number, line in enumerate(lines, 1) if line.strip()]


class Tally:
    """What the summary is made of."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # by verdict and reason
        self.reward_sum = 0.0
        self.failures: dict[str, str] = {}  # why checks did not run: of each reason the first, with its row

    def add(self, row: ScoredRow) -> None:
        if row.verdict == VerdictKind.INFRA_ERROR and row.reason not in self.failures:
            failure = failed_check(Verdict(VerdictKind.INFRA_ERROR, 0.0, row.reason, row.details))
            self.failures[row.reason] = f"{row.reason}, first in row {row.id}: {failure.told}"
        self.counts[row.verdict, row.reason] += 1
        self.reward_sum += row.reward or 0.0

    def of(self, kind: VerdictKind) -> int:
        return sum(count for (verdict, _), count in self.counts.items() if verdict == kind)

    def render(self, seconds: float, workers: int) -> RenderableType:
        """Verdicts and reasons with their counts, then the mean reward of the rows whose check ran, and the rate."""
        rows = sum(self.counts.values())
        judged = rows - self.of(VerdictKind.INFRA_ERROR)
        table = Table("verdict", "reason", box=None, header_style="dim", pad_edge=False)
        table.add_column("rows", justify="right")
        table.add_column("share", justify="right")
        for kind in VerdictKind:
            for (verdict, reason), count in self.counts.most_common():
                if verdict == kind:
                    shown = f"[{_STYLES[kind]}]{verdict}[/]"
                    table.add_row(shown, escape(printable(reason, 60)), str(count), f"{count / rows:.1%}")
        mean = f"mean reward {self.reward_sum / judged:.4f} over {judged} rows" if judged else "no row was judged"
        rate = f"{rows} rows in {seconds:.1f} s, {rows / seconds:.0f} rows per second, {workers} workers"
        failures = [escape(printable(line)) for line in self.failures.values()]
        return Group(table, "", *failures, mean, rate)


_STYLES = {VerdictKind.PASS: "green", VerdictKind.FAIL: "yellow", VerdictKind.INFRA_ERROR: "red"}


def verify_file(
    name: str, path: Path, output: Path | None, options: dict[str, Any], workers: int, call_seconds: float
) -> bool:
    """Score the rows of `path` and print a summary; whether every row was judged.

    Args:
        name: a registered verifier, or `file.py:function`.
        output: JSONL of `ScoredRow`s, in the rows' order.
        options: the verifier's (`parse_options`); relative paths start at the working directory.

    Raises:
        UserError: a wrong name, option, row (by line) or path; nothing has been started then.
    """
    verifier = build_verifier(_spec(name, options))
    inputs = read_input(path, verifier)
    if output is not None and output.exists() and output.samefile(path):
        raise UserError(f"--output: {output} is the input itself")
    tally, console = Tally(), Console()
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(_opened(output)) if output is not None else None
        errors = Console(stderr=True)
        progress = stack.enter_context(Progress(console=errors, transient=True, disable=not errors.is_terminal))
        task = progress.add_task("verifying", total=len(inputs))
        rows = stack.enter_context(contextlib.closing(score(inputs, pickle.dumps(verifier), workers, call_seconds)))
        for row in rows:
            tally.add(row)
            progress.advance(task)
            if sink is not None:
                sink.write(msgspec.json.encode(row) + b"\n")
    console.print(tally.render(time.monotonic() - start, min(workers, len(inputs))), highlight=False)
    return not tally.of(VerdictKind.INFRA_ERROR)


def _spec(name: str, options: dict[str, Any]) -> VerifierSpec:
    if ":" in name:
        return VerifierSpec(function=name, options=options, base_dir=str(Path.cwd()))
    return VerifierSpec(verifier=name, options=options, base_dir=str(Path.cwd()))


def parse_options(assignments: Sequence[str], words: Sequence[str] = ()) -> dict[str, Any]:
    """A verifier's options, nested at dots. A value is TOML, or else text.

    >>> parse_options(["weights.exact=1"], ["--full-match", "true", "--pattern=[0-9]+ apples"])
    {'weights': {'exact': 1}, 'full_match': True, 'pattern': '[0-9]+ apples'}

    Args:
        assignments: each `key=value`, what `--option` was given.
        words: `--key value` or `--key=value`, hyphens for underscores.

    Raises:
        UserError: a word that is neither.
    """
    options: dict[str, Any] = {}
    for shown, key, text in [*_assigned(assignments), *_given(words)]:
        *parents, last = key.strip().replace("-", "_").split(".")
        target = options
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"{shown}: `{parent}` has a single value already")
        try:
            target[last] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):  # plain text
            target[last] = text
    return options


def _assigned(assignments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Of each what a message shows, its key and its text."""
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"--option {word}: write it as key=value")
        yield f"--option {word}", key, text


def _given(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    rest = iter(words)
    for word in rest:
        key, equals, text = word.partition("=")
        if not re.fullmatch(r"--[a-z][a-z0-9_.-]*", key):
            raise UserError(f"{word}: not an option of this command; one of the verifier's is --key VALUE")
        if not equals and (text := next(rest, None)) is None:
            raise UserError(f"{word}: is missing its value")
        yield key, key.removeprefix("--"), text


def _opened(output: Path) -> Any:
    try:
        return output.open("wb")
    except OSError as error:
        raise UserError(f"--output: {output}: cannot be written: {error.strerror}") from error


def score(
    inputs: Sequence[InputRow], payload: bytes, workers: int, call_seconds: float
) -> Generator[ScoredRow, None, None]:
    """Every row's outcome, in the rows' order, as soon as it and those before it are there.

    Args:
        payload: the verifier, pickled.
        call_seconds: for one call of a worker; beyond it the worker is replaced.

    Raises:
        UserError: the verifier does not start in a worker.
    """
    pool = _Pool(inputs, payload, min(workers, len(inputs)), call_seconds)
    try:
        pool.start()
        verdicts: dict[int, Verdict] = {}
        for index, row in enumerate(inputs):
            while index not in verdicts:
                verdicts.update(pool.next())
            yield _scored_row(row, verdicts.pop(index))
    finally:
        pool.close()


def _scored_row(row: InputRow, verdict: Verdict) -> ScoredRow:
    reward = None if verdict.kind is VerdictKind.INFRA_ERROR else verdict.reward
    return ScoredRow(row.id, reward, str(verdict.kind), verdict.reason, verdict.details)


class _Pool:
    """The workers, their threads, and what is left to do."""

    def __init__(self, inputs: Sequence[InputRow], payload: bytes, workers: int, call_seconds: float) -> None:
        self._inputs = inputs
        self._call_seconds = call_seconds
        self._workers = [WorkerProcess(payload) for _ in range(workers)]
        self._left = deque(range(len(inputs)))
        # By the worker that their check did not run at.
        self._again: list[deque[int]] = [deque() for _ in range(workers)]
        self._failures: Counter[int] = Counter()  # by row
        self._unsettled = len(inputs)
        self._changed = threading.Condition()  # guards the four above, and tells of rows that come back
        self._done: queue.SimpleQueue[dict[int, Verdict] | Exception] = queue.SimpleQueue()
        self._closed = False

    def start(self) -> None:
        """Raises UserError where the verifier does not start."""
        try:
            self._workers[0].start()  # the first alone: what is wrong with it is wrong with all
        except WorkerFailed as error:
            raise UserError(f"the verifier does not start in a worker process: {error}") from error
        for place in range(len(self._workers)):
            threading.Thread(target=self._serve, args=(place,), name="verification", daemon=True).start()

    def next(self) -> dict[int, Verdict]:
        """The verdicts of some more rows, by index. Waits for as long as a worker may take. Raises what a thread raised."""
        deadline = time.monotonic() + (ATTEMPTS + 1) * (self._call_seconds + 120)
        while time.monotonic() < deadline:
            # In short waits: a signal that comes just before one, or to another thread, is seen only between two.
            with contextlib.suppress(queue.Empty):
                answer = self._done.get(timeout=SIGNAL_SECONDS)
                if isinstance(answer, Exception):
                    raise answer
                return answer
        raise TimeoutError("no worker has answered within its time")

    def close(self) -> None:
        """End the workers, at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.retire()
        for worker in self._workers:
            worker.close()

    def _serve(self, place: int) -> None:
        size = 1
        try:
            while batch := self._take(place, size):
                start = time.monotonic()
                found = self._judge(self._workers[place], batch)
                seconds = time.monotonic() - start
                if seconds > SLOW_SECONDS:
                    size = max(1, size // 2)
                elif seconds < QUICK_SECONDS and len(batch) == size:
                    size = min(BATCH, 2 * size)
                self._done.put(self._settled(place, found))
        except Exception as error:  # noqa: BLE001 (raised again in the main thread)
            if not self._closed:
                self._done.put(error)

    def _take(self, place: int, size: int) -> list[int]:
        """Rows for a worker: one whose check did not run at another, alone, else some new ones. Waits while rows that others
        hold may come back; empty when all are settled."""
        with self._changed:
            while self._unsettled and not self._closed:
                for other, rows in enumerate(self._again):
                    if rows and (other != place or len(self._workers) == 1):
                        return [rows.popleft()]
                if self._left:
                    # Near the end everyone gets a share of what is left.
                    count = max(1, min(size, len(self._left) // (2 * len(self._workers))))
                    return [self._left.popleft() for _ in range(count)]
                self._changed.wait()
            return []

    def _settled(self, place: int, found: dict[int, Verdict]) -> dict[int, Verdict]:
        """The verdicts that are final; the other rows are offered again."""
        final: dict[int, Verdict] = {}
        with self._changed:
            for index, verdict in found.items():
                self._failures[index] += verdict.kind is VerdictKind.INFRA_ERROR
                if verdict.kind is VerdictKind.INFRA_ERROR and self._failures[index] < ATTEMPTS:
                    self._again[place].append(index)
                else:
                    final[index] = verdict
            self._unsettled -= len(final)
            self._changed.notify_all()
        return final

    def _judge(self, worker: WorkerProcess, batch: Sequence[int]) -> dict[int, Verdict]:
        """A verdict for each row of the batch; where the worker had none for them, why, as infra_error."""
        outcome = self._call(worker, batch)
        if outcome.fault is not None:
            return dict.fromkeys(batch, not_run(FAULT_REASONS[outcome.fault], message=outcome.message))
        return dict(zip(batch, outcome.verdicts, strict=True))

    def _call(self, worker: WorkerProcess, batch: Sequence[int]) -> Outcome:
        samples = [self._inputs[index].sample for index in batch]
        try:
            return worker.call(samples, self._call_seconds)
        except WorkerFailed as error:
            return Outcome([], ChildFault.FAILED, printable(str(error), 500))


# As the verification pool of a job calls them.
FAULT_REASONS: dict[ChildFault, str] = {
    ChildFault.TIMEOUT: "worker_late",
    ChildFault.CRASH: "worker_lost",
    ChildFault.EXCEPTION: "verifier_raised",
    ChildFault.MEMORY: "verifier_raised",
    ChildFault.FAILED: "verifier_failed",
}
