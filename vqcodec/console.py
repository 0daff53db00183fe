"""What the command line shows: outcomes as they come, a progress bar, the facts of a file; and the options for many files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import click

from vqcodec.convert import Outcome
from vqcodec.files import STREAM

FAILED, DAMAGED = 1, 3  # exit codes
BAR_STEPS = 1000  # of a training's bar

PATH = click.Path(readable=False, allow_dash=True)  # for the shell to complete; what is wrong with one is said where it is used

MANY = (
    click.option("--out-dir", type=PATH, metavar="DIR", help="Put the outputs below DIR; all arguments are inputs then."),
    click.option("-r", "--recursive", is_flag=True, help="Take directories, with all files below them that have a fitting suffix."),
    click.option("-j", "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Files to work on at a time."),
    click.option("--skip-existing", is_flag=True, help="Leave inputs alone whose output exists."),
    click.option("--json", "as_json", is_flag=True, help="Print a JSON object per file."),
    click.option("-v", "--verbose", is_flag=True, help="Say on stderr what becomes of each file."),
    click.option("--quiet", is_flag=True, help="Only errors on stderr."),
)


def takes_many(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the arguments and options of commands that take many files."""
    for option in reversed(MANY):
        command = option(command)
    inputs = click.argument("inputs", type=PATH, metavar="INPUT [OUTPUT] | INPUT... --out-dir DIR", nargs=-1, required=True)
    return inputs(command)


def show(outcomes: Iterable[Outcome], total: int, as_json: bool, verbose: bool, quiet: bool) -> int:
    """Prints outcomes as they come, and what failed at the end; returns the exit code: 1 where one failed, 3 where something was lost."""
    failed: list[Outcome] = []
    lost = False
    later: list[Outcome] = []
    start, pixels = time.perf_counter(), 0
    with_bar = total > 1 and sys.stderr is not None and sys.stderr.isatty() and not (quiet or verbose or as_json)
    bar: Any = click.progressbar(length=total, show_pos=True, file=sys.stderr, item_show_func=str) if with_bar else nullcontext()
    with bar:
        for outcome in outcomes:
            pixels += outcome.pixels
            lost = lost or bool(outcome.lost)
            if with_bar:
                bar.update(1, f"{pixels / 1e6 / (time.perf_counter() - start):.1f} MP/s")
            if outcome.error:
                failed.append(outcome)
            if with_bar:
                later.append(outcome)  # a line now would tear the bar
            else:
                _one(outcome, as_json, verbose, quiet)
    for outcome in later:
        _one(outcome, as_json, verbose, quiet)
    for outcome in failed:
        source = " ".join(outcome.input.split())  # as in an error, which is one line
        named = outcome.error.startswith((f"{source} ", f"{source}:")) or source == STREAM
        click.echo(f"vqcodec: {outcome.error if named else f'{outcome.input}: {outcome.error}'}", err=True)
    if failed and total > 1:
        others = "; the others are done" if len(failed) < total else ""
        click.echo(f"vqcodec: {len(failed)} of {total} files failed, see above{others}", err=True)
    return FAILED if failed else DAMAGED if lost else 0


def _one(outcome: Outcome, as_json: bool, verbose: bool, quiet: bool) -> None:
    if not quiet or outcome.lost:
        for notice in outcome.notices:
            click.echo(f"vqcodec: {outcome.input} {notice}", err=True)
    if as_json:
        bpp = 8 * outcome.bytes / outcome.pixels if outcome.pixels else None
        click.echo(json.dumps({**asdict(outcome), "bpp": bpp}))
    if verbose and outcome.status in ("done", "salvaged"):
        rate = f"{outcome.bytes} bytes, {8 * outcome.bytes / outcome.pixels:.4f} bpp, {outcome.seconds:.2f} s"
        click.echo(f"{outcome.input} -> {outcome.output}: {outcome.width} x {outcome.height}, {rate}", err=True)
    elif verbose and outcome.status == "skipped":
        click.echo(f"{outcome.input} skipped: {outcome.output} exists", err=True)


class TrainingDisplay:
    """A training's news on stderr: a bar per stage with rate, distortion and time left, or lines where there is no terminal."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ""
        self.terminal = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_bar()

    def line(self, text: str) -> None:
        """Says it, below the bar."""
        self._end_bar()
        click.echo(text, err=True)

    def figures(self, stage: str, row: dict[str, float]) -> None:
        """Moves the stage's bar to `row["progress"]`, with its figures beside it."""
        if not self.terminal:
            click.echo(f"{stage}: " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), err=True)
            return
        if stage != self.stage:
            self._end_bar()
        if self.bar is None:
            self.bar = click.progressbar(length=BAR_STEPS, label=stage, file=sys.stderr, item_show_func=_figures).__enter__()
            self.stage = stage
        self.bar.update(max(0, int(row["progress"] * BAR_STEPS) - self.bar.pos), row)

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
            self.bar = None


def _figures(row: dict[str, float] | None) -> str | None:
    """What stands beside a training's bar."""
    if row is None:
        return None
    parts = [f"{row['bpp']:.3f} bpp"]
    if "psnr" in row:
        parts += [f"MSE {row['mse']:.0f}", f"{row['psnr']:.2f} dB", f"{row['codes_used']:.0%} of codes used"]
    return ", ".join(parts)


def describe(facts: dict[str, Any]) -> str:
    """The facts of `codec.info` in words."""
    known = f"{facts['model']} ({facts['model_id']})" if facts["model"] else f"{facts['model_id']} (not installed here)"
    lines = [
        f"size     {facts['width']} x {facts['height']}, {facts['channels']}",
        f"quality  {facts['quality']:g}",
        f"model    {known}",
        f"format   version {facts['format_version']}",
        f"bytes    {facts['bytes']} ({facts['bpp']:.4f} bpp)",
    ]
    for name, size in facts["sections"].items():
        shape = (facts["codes"] or {}).get(name)
        codes = f"   codes {' x '.join(map(str, shape))} (stages, rows, columns)" if shape else ""
        lines.append(f"  {name:<7}{size:>8} bytes{facts['sections_bpp'][name]:>10.4f} bpp{codes}")
    return "\n".join(lines)


def describe_comparison(facts: dict[str, Any]) -> str:
    """The facts of a comparison in words."""
    psnr = "infinite: the same pixels" if facts["psnr"] is None else f"{facts['psnr']:.2f} dB"
    similarity = "none: the picture is too small for its scales" if facts["ms_ssim"] is None else f"{facts['ms_ssim']:.4f}"
    lines = [
        f"bytes    {facts['bytes']} ({facts['bpp']:.4f} bpp)",
        f"MSE      {facts['mse']:.2f}",
        f"PSNR     {psnr}",
        f"MS-SSIM  {similarity}",
    ]
    return "\n".join([*lines, f"alpha    {facts['alpha']}"] if facts["alpha"] else lines)
