"""A run's event loop and its signals, from a plain thread, from a running loop, and from a thread beside the main one."""

import asyncio
import ctypes
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cluster.event_loop import HANGUP, SIGNALS, Interrupts, run_to_end


async def where() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


def test_without_a_running_loop_the_run_is_in_this_thread():
    _, thread = run_to_end(where())
    assert thread is threading.current_thread()


async def test_beside_a_running_loop_the_run_has_a_loop_and_a_thread_of_its_own():
    loop, thread = run_to_end(where())
    assert thread is not threading.current_thread()
    assert loop is not asyncio.get_running_loop()
    assert loop.is_closed()


async def test_an_error_comes_out_of_the_other_thread_as_it_is():
    async def fail() -> None:
        raise ValueError("in the run")

    with pytest.raises(ValueError, match="in the run"):
        run_to_end(fail())


async def interrupted(interrupts: Interrupts, number: int) -> bool:
    """Whether the signal to this process came to the running loop."""
    seen = asyncio.Event()
    interrupts.deliver_to(seen.set)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(seen.wait(), 10)
    return seen.is_set()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_reaches_a_run_in_the_main_thread(number):
    with Interrupts() as interrupts:
        assert run_to_end(interrupted(interrupts, number))


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_reaches_a_run_that_the_main_thread_waits_for(number):
    with Interrupts() as interrupts:
        assert run_to_end(interrupted(interrupts, number))


@pytest.fixture
def heeded_hangup():
    """As from a terminal, also where whoever runs the tests does so under nohup."""
    before = signal.signal(HANGUP, signal.SIG_DFL)
    yield
    signal.signal(HANGUP, before)


async def calls_of(interrupts: Interrupts, *numbers: int) -> int:
    """How many calls these signals are, the last of them, SIGTERM, included."""
    calls: list[None] = []
    interrupts.deliver_to(lambda: calls.append(None))
    arrive(*numbers, signal.SIGTERM)
    end = asyncio.get_running_loop().time() + 10
    while not calls and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return len(calls)


@pytest.mark.parametrize(
    ("numbers", "calls"), [((HANGUP,), 2), ((HANGUP, HANGUP), 2), ((signal.SIGINT, HANGUP), 2), ((), 1)]
)
def test_a_closing_terminal_asks_once_and_never_for_more(heeded_hangup, numbers, calls):
    with Interrupts() as interrupts:
        assert run_to_end(calls_of(interrupts, *numbers)) == calls


def test_an_ignored_hangup_stays_ignored(heeded_hangup):
    signal.signal(HANGUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        assert run_to_end(calls_of(interrupts, HANGUP)) == 1


def test_a_signal_that_comes_too_early_is_kept():
    async def take(interrupts: Interrupts) -> bool:
        seen = asyncio.Event()
        interrupts.deliver_to(seen.set)
        await asyncio.wait_for(seen.wait(), 10)
        return seen.is_set()

    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert run_to_end(take(interrupts))


def arrive(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


class Start:
    """As that of a cluster, whose end takes a while: signals come meanwhile."""

    def __init__(self) -> None:
        self.began = self.ended = False

    def __call__(self, interrupts: Interrupts, work: Callable[[], None]) -> None:
        try:
            with interrupts.breaking_off():
                self.began = True
                work()
        finally:
            arrive(*SIGNALS, *SIGNALS)
            self.ended = True


def test_a_second_early_signal_breaks_the_start_off_and_a_third_does_not_disturb_its_end():
    start = Start()
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        start(interrupts, lambda: arrive(signal.SIGINT, signal.SIGTERM))
    assert start.ended


def test_two_signals_before_the_start_are_enough():
    start = Start()
    with Interrupts() as interrupts:
        arrive(signal.SIGINT, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            start(interrupts, arrive)
    assert start.ended and not start.began


@pytest.mark.parametrize("early", [0, 1])
def test_a_failed_start_ends_with_its_error_whatever_signals_come_meanwhile(early):
    def fail() -> None:
        arrive(*SIGNALS[:early])
        raise ValueError("no room")

    start = Start()
    with Interrupts() as interrupts, pytest.raises(ValueError, match="no room"):
        start(interrupts, fail)
    assert start.ended


def is_caught(number: int) -> bool:
    """Whether the system calls somebody when the signal comes to this process, whatever Python knows of it."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def lose_sigterm() -> None:
    """As Ray's shutdown does, in its compiled code."""
    ctypes.CDLL(None).signal(signal.SIGTERM, 0)


def test_a_signal_that_is_lost_underneath_python_is_taken_back_before_what_loses_it_is_done():
    def shut_down() -> None:
        lose_sigterm()
        end = time.monotonic() + 10
        while not is_caught(signal.SIGTERM) and time.monotonic() < end:
            time.sleep(0.001)
        assert is_caught(signal.SIGTERM)
        arrive(signal.SIGTERM)

    with Interrupts() as interrupts:
        interrupts.keep_during(shut_down)
        interrupts.keep_during(lose_sigterm)
        assert is_caught(signal.SIGTERM)


def test_what_goes_wrong_while_the_signals_are_kept_is_told():
    def fail() -> None:
        raise ValueError("no shutdown")

    with Interrupts() as interrupts, pytest.raises(ValueError, match="no shutdown"):
        interrupts.keep_during(fail)


def test_signals_that_the_start_has_taken_over_reach_the_run():
    with Interrupts() as interrupts:
        with interrupts.breaking_off():
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        assert run_to_end(interrupted(interrupts, signal.SIGTERM))


def test_a_signal_after_the_run_is_none_of_its_business_and_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts() as interrupts:
        assert run_to_end(interrupted(interrupts, signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_that_another_thread_starts_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    handlers = []

    def start() -> None:
        with Interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(10)
    assert handlers == [before]
