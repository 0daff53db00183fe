"""What the commands share: options, checks of numbers, and how an error ends a command."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

import click

from vqcodec.errors import VQCodecError

POSITIVE = click.FloatRange(0, min_open=True)
P = ParamSpec("P")


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a `VQCodecError` in one line on stderr and exits with 1."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except VQCodecError as error:
            fail(str(error))
        except MemoryError:
            fail("not enough memory for this picture; make it smaller")
        except OSError as error:  # what the commands themselves do not foresee, such as a full disk behind standard output
            fail(f"{error}; check the disk and the paths")

    return run


def fail(message: str) -> NoReturn:
    """Says it in one line on stderr and exits with 1."""
    click.echo(f"vqcodec: {' '.join(message.split())}", err=True)
    sys.exit(1)


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
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"'{value}' is no size; give a number such as 500, 20k or 1.5M.", context, parameter)
    return float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]


def count(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A whole number such as 500, 20k or 200M."""
    return int(size(context, parameter, value) or 0)


FORCE = click.option("-f", "--force", is_flag=True, help="Overwrite an existing OUTPUT.")
MODEL = click.option("-m", "--model", metavar="MODEL", help="A model's name, or the path of its folder.")
MAX_PIXELS = click.option(
    "--max-pixels", metavar="N", callback=count, default="200M", show_default=True, help="Refuse pictures with more pixels."
)
