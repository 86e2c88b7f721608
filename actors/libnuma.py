"""The system library that vLLM's CPU build links, and that Python packages do not bring."""

from __future__ import annotations

import ctypes

from headrace.verifiers.errors import UserError

LIBRARY = "libnuma.so.1"
HOW_TO_GET = "Debian, Ubuntu: apt-get install libnuma1"


def libnuma_fault() -> str | None:
    """Why the library cannot be loaded; None where it can."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return str(error)
    return None


def check_libnuma() -> None:
    """vLLM's CPU build imports without the library, and fails much later over names that it then lacks. Raises UserError."""
    if fault := libnuma_fault():
        raise UserError(f"the CPU engine needs the system's {LIBRARY} ({HOW_TO_GET}): {fault}")
