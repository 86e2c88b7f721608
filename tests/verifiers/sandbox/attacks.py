"""Programs that try to get out of the box, to get paid for nothing, or to leave something behind.

One row each: what it is called, how it is run, which reasons its verdict may have, and its source. `@NAME@` in a source is a
thing of the host's (suite.py makes them), most of them canaries that are looked at afterwards. A program that has got at
something that it must not have says BREACH.

How they are run: `calls`: f(7), compared outside with a secret; `test`: the same by a test of the data set's that knows the
secret; `script`: what it prints is compared with the secret; `command`: a shell script, which may start processes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["calls", "test", "script", "command"]


class Attack(msgspec.Struct, frozen=True):
    name: str
    how: How
    reasons: frozenset[str]
    source: str
    hangs: bool = False  # it is not over before its time is: run with little of that
    needs_namespaces: bool = False


def attack(
    how: How, name: str, reasons: str, source: str, *, hangs: bool = False, needs_namespaces: bool = False
) -> Attack:
    return Attack(name, how, frozenset(reasons.split()), source, hangs, needs_namespaces or how == "command")


# The object that speaks to the host, from the frames below the function that is called.
SPEAK = """
import json, os, struct, sys
def speaker():
    frame = sys._getframe()
    while "host" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["host"]
def send(payload):
    os.write(speaker()._descriptor, struct.pack(">I", len(payload)) + payload)
def say(**message):
    send(json.dumps({"nonce": speaker().nonce, **message}).encode())
"""

LIBC = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result, ctypes.get_errno()
"""


def function(body: str, before: str = "") -> str:
    """`f(x)` with this body, unindented."""
    lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
    return f"{before}\ndef f(x):\n{lines}\n"


def refused(expression: str, before: str = "import os") -> str:
    """A function for which it is a breach that `expression` has a value."""
    return function(f"return 'BREACH', repr({expression})", before)
