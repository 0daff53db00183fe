"""The signals that end a command in order."""

from __future__ import annotations

import atexit
import signal
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SIGNALLED = 128  # and the signal's number: the exit code, by the convention of shells

received: list[int] = []  # the signal that ends this process, once there is one


def receive(number: int) -> None:
    """Notes the signal that ends this process; further ones must not cut the tidying short."""
    received.append(number)
    for other in ENDING:
        # not SIG_IGN: of a signal that has come at the same time as the one at hand Python would print that it is ignored
        signal.signal(other, _nothing)
    atexit.register(_ignore_to_the_end)  # Python takes its own answers back when it ends


def _nothing(number: int, frame: FrameType | None) -> None:
    """The answer to a signal that changes nothing any more."""


def _ignore_to_the_end() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
