"""A run's event loop and its signals, from a plain thread, from a running loop, and from a thread beside the main one."""

import asyncio
import os
import signal
import threading

import pytest

from headrace.cluster.event_loop import SIGNALS, Interrupts, run_to_end


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


def test_a_signal_that_comes_too_early_is_kept():
    async def take(interrupts: Interrupts) -> bool:
        seen = asyncio.Event()
        interrupts.deliver_to(seen.set)
        await asyncio.wait_for(seen.wait(), 10)
        return seen.is_set()

    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert run_to_end(take(interrupts))


def test_a_second_early_signal_ends_the_start_and_a_third_does_not_disturb_its_end():
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_that_were_taken_over_meanwhile_are_taken_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        interrupts.take_back()
        assert run_to_end(interrupted(interrupts, signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before


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
