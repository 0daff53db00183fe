"""Processes that work for this one: signals reach them once they can handle them, and not before."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows


@contextmanager
def signals_wait() -> Iterator[None]:
    """Signals wait until the end of the block; those to processes that start within it until these call `receive_signals`.

    Python's own answer to an interrupt would be a traceback, and a hangup would end what multiprocessing runs beside them.
    """
    if not MASKS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        resource_tracker.ensure_running()  # now, as it lets signals through when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive_signals() -> None:
    """Leaves interrupts, which go to all processes of a terminal, to the one that started this; other signals unwind the stack."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # one that waited ends this process here: there is nothing to tidy yet
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """Unwinds, so that no temporary file stays behind."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
