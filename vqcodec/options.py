"""What the commands share: options, checks of numbers, and how an error ends a command."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import NoReturn, ParamSpec

import click

from vqcodec import signals
from vqcodec.console import PATH
from vqcodec.errors import FormatError, VQCodecError
from vqcodec.files import STREAM
from vqcodec.signals import SIGNALLED

POSITIVE = click.FloatRange(0, min_open=True)
BROKEN_PIPE = 141  # an exit code by the convention of shells
P = ParamSpec("P")


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a `VQCodecError` in one line on stderr and exits with 1; signals end the command as `stop` does."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        stop_on_signals()
        try:
            with _signals_first():
                command(*args, **kwargs)
        except BrokenPipeError:  # whoever read our output has enough of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
            sys.exit(BROKEN_PIPE)
        except KeyboardInterrupt:
            sys.exit(SIGNALLED + signal.SIGINT)
        except VQCodecError as error:
            fail(str(error))
        except MemoryError:
            fail("not enough memory for this picture; make it smaller")
        except OSError as error:  # what the commands themselves do not foresee, such as a full disk behind standard output
            fail(f"{error}; check the disk and the paths")

    return run


@contextmanager
def _signals_first() -> Iterator[None]:
    """A signal ends the command as one even where a library made another error of it: the import of ONNX Runtime does."""
    try:
        yield
    except Exception:
        if signals.received:
            sys.exit(SIGNALLED + signals.received[0])
        raise


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Puts a file's name before what is wrong with its format, unless it has none."""
    try:
        yield
    except FormatError as error:
        if file == STREAM:
            raise
        raise type(error)(f"{file}: {error}") from error


def fail(message: str) -> NoReturn:
    """Says it in one line on stderr and exits with 1."""
    click.echo(f"vqcodec: {' '.join(message.split())}", err=True)
    sys.exit(1)


def stop_on_signals() -> None:
    """Makes signals unwind the stack, so that temporary files go; leaves alone what somebody else handles or ignores."""
    signals.received.clear()
    for number in signals.ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)


def stop(number: int, frame: FrameType | None) -> None:
    """Unwinds the stack, to exit with 128 and the signal's number; further signals must not cut the tidying short."""
    signals.receive(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt  # the bench sums up before it ends
    sys.exit(SIGNALLED + number)


def number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Any finite number."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"'{value}' is no number to aim at; give a finite one.", context, parameter)
    return value


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A size such as 500, 20k or 1.5M (thousands and millions)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)([kKmM]?)", value)
    if match is None or not 0 < float(match[1]) < 1e300:  # finite, in millions too
        raise click.BadParameter(f"'{value}' is no size; give a number such as 500, 20k or 1.5M.", context, parameter)
    return float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]


def count(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A whole number such as 500, 20k or 200M."""
    return int(size(context, parameter, value) or 0)


def shape(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Width and height such as 640x480."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)
    if match is None or not (int(match[1]) and int(match[2])):
        raise click.BadParameter(f"'{value}' is no size; give width and height such as 640x480.", context, parameter)
    return int(match[1]), int(match[2])


FORCE = click.option("-f", "--force", is_flag=True, help="Overwrite an existing OUTPUT.")
MODEL = click.option("-m", "--model", type=PATH, metavar="MODEL", help="A model's name, or the path of its folder.")
MAX_PIXELS = click.option(
    "--max-pixels", metavar="N", callback=count, default="200M", show_default=True, help="Refuse pictures with more pixels."
)
