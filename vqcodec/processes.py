"""Processes that work for this one: jobs are handed out, and signals reach them once they can handle them, not before."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, resource_tracker
from types import FrameType
from typing import ParamSpec, TypeVar

from vqcodec import signals
from vqcodec.convert import Job, Outcome
from vqcodec.search import threads, wanted_threads
from vqcodec.signals import ENDING, SIGNALLED

MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows

Attempt = Callable[[Job], Outcome]
P = ParamSpec("P")
R = TypeVar("R")

_at_work: list[bool] = []  # whether a call is under way in this process


def run(attempt: Attempt, jobs: Sequence[Job], count: int) -> Iterator[Outcome]:
    """Makes the attempts in `count` processes, and yields the outcomes in the order of finishing.

    Together they use the processors that this one may, unless `VQCODEC_THREADS` says how many threads each has.
    """
    with open_pool(count, start_worker, wanted_threads() or max(1, threads() // count)) as pool:
        try:
            waiting = {_submitted(pool, attempt, job): job for job in jobs}
            for future in as_completed(waiting):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    job, message = waiting[future], "its process has ended, perhaps for want of memory; use fewer --jobs"
                    yield Outcome(*job, "failed", error=message)
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, attempt: Attempt, job: Job) -> Future[Outcome]:
    try:
        return submit(pool, attempt, job)
    except BrokenProcessPool as error:  # a worker ended while there are still jobs to hand out
        failed: Future[Outcome] = Future()
        failed.set_exception(error)
        return failed


def open_pool(count: int, start: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> ProcessPoolExecutor:
    """A pool for `submit`; its processes begin with `start`, which calls `receive_signals` if it is another function."""
    with signals_wait():
        return ProcessPoolExecutor(count, get_context("spawn"), partial(start, *args, **kwargs))


def submit(pool: ProcessPoolExecutor, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Hands a call to a pool of `open_pool`; raises `BrokenProcessPool`."""
    with signals_wait():  # a process may start for it
        return pool.submit(_carry_out, partial(call, *args, **kwargs))


def _carry_out(call: Callable[[], R]) -> R:
    """The call, in a process of a pool. A signal unwinds it and ends the process: as a result the pool would hand it on, and wait."""
    try:
        _at_work.append(True)
        try:
            return call()
        finally:
            _at_work.clear()
            if signals.received:  # whatever a library made of the signal, as the import of ONNX Runtime does: further ones would be ignored
                os._exit(SIGNALLED + signals.received[0])
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


def start_worker(count: int) -> None:
    """Begins a worker of so many threads."""
    receive_signals()
    os.environ["VQCODEC_THREADS"] = str(count)


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
    """Leaves interrupts, which go to all processes of a terminal, to the one that started this; other signals end this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # one that waited ends this process here: there is nothing to tidy yet
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """Unwinds what is under way, so that no temporary file stays behind."""
    signals.receive(number)
    if not _at_work:
        os._exit(SIGNALLED + number)
    sys.exit(SIGNALLED + number)
