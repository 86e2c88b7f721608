"""Functions that return, raise or do what the row says."""

import asyncio
import decimal
import fractions
import os
import signal
import threading

from headrace.verifiers import Verdict, VerdictKind


class NoText(Exception):
    def __str__(self):
        raise ValueError("no text either")


class NoForm:
    def __repr__(self):
        raise ValueError("no form")


class NoNumber(float):
    def __float__(self):
        raise ValueError("no number")


class OwnEnd(BaseException):
    pass


def verdict(row):
    return Verdict(row["kind"], row["value"], row["reason"], row["details"])


def raised(error):
    raise error


ACTIONS = {
    "value": lambda text, row: row["value"],
    "text": lambda text, row: text,
    "length": lambda text, row: len(text) / 100,
    "verdict": lambda text, row: verdict(row),
    "unread verdict": lambda text, row: Verdict(VerdictKind.FAIL, 0.5, "own", {"object": object()}),
    "no form": lambda text, row: NoForm(),
    "no number": lambda text, row: NoNumber(0.5),
    "decimal": lambda text, row: decimal.Decimal("0.5"),
    "fraction": lambda text, row: fractions.Fraction(len(text), 7),
    "coroutine": lambda text, row: asyncio.sleep(0, row["value"]),
    "ValueError": lambda text, row: raised(ValueError(text)),
    "KeyError": lambda text, row: row["no such field"],
    "NoText": lambda text, row: raised(NoText()),
    "MemoryError": lambda text, row: raised(MemoryError(text)),
    "RecursionError": lambda text, row: raised(RecursionError()),
    "UnicodeError": lambda text, row: "\ud800".encode(),
    "group": lambda text, row: raised(ExceptionGroup(text, [ValueError(text), NoText()])),
    "StopIteration": lambda text, row: next(iter(())),
    "SystemExit": lambda text, row: raised(SystemExit(text)),
    "GeneratorExit": lambda text, row: raised(GeneratorExit()),
    "CancelledError": lambda text, row: raised(asyncio.CancelledError()),
    "OwnEnd": lambda text, row: raised(OwnEnd(text)),
}
DEADLY = {
    "sleep": lambda text, row: threading.Event().wait(),
    "exit": lambda text, row: os._exit(3),
    "kill": lambda text, row: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda text, row: len(bytearray(1 << 40)),
}


def score(completion, row):
    return {**ACTIONS, **DEADLY}[row["does"]](completion, row)


async def score_soon(completion, row):
    await asyncio.sleep(0)
    found = score(completion, row)
    return await found if asyncio.iscoroutine(found) else found
