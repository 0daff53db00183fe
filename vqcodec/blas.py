"""One thread of the BLAS while the codec computes: its products are small, and threads that wait for each other took ten times as long.

Python threads of our own share the work where there is enough of it (search.py). A BLAS that threadpoolctl does not know (Apple's) or whose
threads are OpenMP's, which have limits of their own on every thread, is left as it is but for the thread that asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_LOCK = Lock()
_held: list[Any] = []  # what is taken back when the last user leaves; one entry for each user, the first of them the limit itself


@cache
def _controller() -> ThreadpoolController:
    """Knows the libraries that are loaded by now, numpy's among them."""
    found: ThreadpoolController = ThreadpoolController().select(user_api="blas")
    return found


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits the BLAS of this process to one thread, and gives it back what it had when no thread of ours is inside any more."""
    with _LOCK:
        _held.append(None if _held else _controller().limit(limits=1))
    try:
        yield
    finally:
        with _LOCK:
            if len(_held) == 1:
                _give_back(_held.pop())
            else:
                _held.pop()  # the first entry stays until the last user has left


def _give_back(limit: Any) -> None:
    """Takes a limit back, on whatever thread: newer versions of threadpoolctl listen only to the one that has set it."""
    release = [getattr(library, "clear_controlling_thread", None) for library in _controller().lib_controllers]
    for clear in (clear for clear in release if clear):
        clear(force=True)
    limit.restore_original_limits()
    for clear in (clear for clear in release if clear):
        clear()
