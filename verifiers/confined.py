"""What verifiers share whose check runs in a limited process: the options of that process, and the way to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from headrace.verifiers.base import Options, Verifier
from headrace.verifiers.confinement import require_confinement
from headrace.verifiers.limited_process import CheckLimits, LimitedProcess
from headrace.verifiers.records import Sample, Verdict

Check = Callable[[Sample], Verdict]


class ConfinedOptions(Options):
    sandbox: bool = True
    """Check in a process of its own, with little memory and time and without network or files."""
    timeout_seconds: float = Field(2.0, gt=0, le=3600)
    """Processor time of one check; sandbox only."""
    memory_bytes: int = Field(512 << 20, ge=64 << 20)
    """Memory of one check; sandbox only."""


class ConfinedVerifier(Verifier):
    """Gives samples to the limited process, or with `sandbox = false` to a check in this one."""

    def _set_up(
        self,
        options: ConfinedOptions,
        load: Callable[[dict[str, Any]], Check],
        state: dict[str, Any],
        here: Callable[[], Check],
        fields: Sequence[str],
    ) -> None:
        """
        Args:
            load: of a module's own, called in the limited process with `state`, which is plain JSON.
            here: makes the check for this process, when there is no other.
            fields: of a row, which the check needs; nothing else travels.

        Raises UserError with `sandbox` on a host that cannot confine a process.
        """
        self._fields = tuple(fields)
        self._here = here
        self._check: Check | None = None
        self._process: LimitedProcess | None = None
        if options.sandbox:
            require_confinement()
            limits = CheckLimits(cpu_seconds=options.timeout_seconds, memory_bytes=options.memory_bytes)
            self._process = LimitedProcess(f"{load.__module__}:{load.__name__}", state, limits)

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        return self._run(
            [
                Sample(sample.completion, {field: sample.row[field] for field in self._fields if field in sample.row})
                for sample in samples
            ]
        )

    def _run(self, samples: Sequence[Sample]) -> list[Verdict]:
        if self._process is not None:
            return self._process.verify_many(samples)
        if self._check is None:
            self._check = self._here()
        return [self._check(sample) for sample in samples]

    def repeatable(self) -> bool:
        return True

    def start(self) -> None:
        if self._process is not None:
            self._process.start()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
