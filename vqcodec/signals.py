"""The signals that end a command in order."""

from __future__ import annotations

import signal

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SIGNALLED = 128  # and the signal's number: the exit code, by the convention of shells


def ignore() -> None:
    """Further signals must not cut the tidying short."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
