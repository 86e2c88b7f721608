"""The verdict on a completion's SQL: a pure function of what an engine says of it and of gold."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import msgspec

from headrace.verifiers.base import after_thinking, not_run, printable, scored
from headrace.verifiers.database.rows import Comparison, Rows, State, compare_rows, compare_states
from headrace.verifiers.database.tasks import (
    Check,
    Dialect,
    Engine,
    EngineFault,
    Order,
    SetupFault,
    SqlFault,
    Task,
    extract_sql,
    refuse_what_cannot_run,
    refuse_what_is_no_query,
)
from headrace.verifiers.records import Verdict

UNAVAILABLE = "database_unavailable"
_KEPT_GOLDS = 8


class Judging(msgspec.Struct, frozen=True):
    """What of a completion counts, and what as the same."""

    thinking_end: str | None = None
    order: Order = "auto"
    column_names: bool = False
    comparison: Comparison = Comparison()


class BudgetedEngine(Engine, Protocol):
    def renew(self) -> None:
        """From here on a new time limit runs."""
        ...


class Judge:
    """Judges on one engine; what gold gives is kept for the other samples of the same row."""

    def __init__(self, engine: BudgetedEngine, judging: Judging) -> None:
        self._engine = engine
        self._judging = judging
        self._golds: OrderedDict[tuple[tuple[str, ...], str, Check], Rows | State] = OrderedDict()

    def verify(self, task: Task, completion: str) -> Verdict:
        sql = extract_sql(after_thinking(completion, self._judging.thinking_end))
        try:
            golds = self._golds_of(task)
            ordered = self._ordered(task)
        except (SetupFault, SqlFault) as fault:
            return not_run("bad_row", message=_gold_message(fault))
        except EngineFault as fault:
            return not_run(UNAVAILABLE, message=printable(str(fault)))
        try:
            refuse_what_cannot_run(sql)
            if task.check == "result":
                refuse_what_is_no_query(sql)
            self._engine.renew()
            for number, (setup, gold) in enumerate(zip(task.setups, golds, strict=True)):
                reason, where = self._difference(setup, sql, gold, ordered)
                if reason:
                    return scored(0.0, reason, database=number, **({"object": printable(where, 80)} if where else {}))
        except SqlFault as fault:
            return scored(0.0, fault.reason, message=fault.message)
        except (SetupFault, EngineFault) as fault:
            return not_run(UNAVAILABLE, message=printable(str(fault)))
        return scored(1.0, "match", databases=len(golds))

    def row_fault(self, task: Task) -> str | None:
        """What is wrong with a row, found by running all of it but a completion. Raises EngineFault."""
        try:
            golds = self._golds_of(task)
            self._ordered(task)
            if task.check == "state":
                for setup, gold in zip(task.setups, golds, strict=True):
                    before = self._engine.state(setup, "")
                    if isinstance(gold, State) and not any(compare_states(before, gold, self._judging.comparison)):
                        return "`gold_sql` changes nothing that is compared, so that doing nothing would pass"
        except (SetupFault, SqlFault) as fault:
            return _gold_message(fault)
        return None

    def _difference(self, setup: tuple[str, ...], sql: str, gold: Rows | State, ordered: bool) -> tuple[str, str]:
        judging = self._judging
        if isinstance(gold, State):
            return compare_states(self._engine.state(setup, sql), gold, judging.comparison)
        found = self._engine.query(setup, sql)
        names = judging.column_names
        return compare_rows(found, gold, ordered=ordered, names=names, how=judging.comparison), ""

    def _golds_of(self, task: Task) -> list[Rows | State]:
        self._engine.renew()
        return [self._gold(setup, task) for setup in task.setups]

    def _gold(self, setup: tuple[str, ...], task: Task) -> Rows | State:
        key = (setup, task.gold, task.check)
        if key not in self._golds:
            run = self._engine.query if task.check == "result" else self._engine.state
            self._golds[key] = run(setup, task.gold)
            while len(self._golds) > _KEPT_GOLDS:
                self._golds.popitem(last=False)
        self._golds.move_to_end(key)
        return self._golds[key]

    def _ordered(self, task: Task) -> bool:
        if task.check == "state" or self._judging.order != "auto":
            return self._judging.order == "always"
        return asks_for_order(task.gold, task.dialect)


def asks_for_order(sql: str, dialect: Dialect) -> bool:
    """Whether the query has an ORDER BY at its top level. Raises SqlFault where it cannot be parsed.

    >>> asks_for_order("SELECT a FROM (SELECT a FROM t ORDER BY a)", "sqlite")
    False
    """
    # Optional: only this verifier needs it. verifier.py has seen to it that it is there.
    import sqlglot
    from sqlglot import expressions
    from sqlglot.errors import SqlglotError

    try:
        tree = sqlglot.parse_one(sql, read=dialect)
    except (SqlglotError, RecursionError) as error:
        line = str(error).split("\n")[0]
        raise SqlFault("unparsed", f"whether it asks for an order is unknown ({line}); set option `order`") from error
    while isinstance(tree, expressions.Subquery) and not tree.args.get("order"):
        tree = tree.this
    return bool(tree.args.get("order"))


def _gold_message(fault: SetupFault | SqlFault) -> str:
    if isinstance(fault, SqlFault):
        return f"field `gold_sql` ({fault.reason}): {fault.message}"
    return f"field `setup_sql` or `variants_sql`: {fault}"
