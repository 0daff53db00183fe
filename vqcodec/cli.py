"""The command line. Only this module prints and exits; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click

from vqcodec import __version__, files
from vqcodec.errors import VQCodecError

# The prior's products are small: more BLAS threads than one slow them down. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

SUFFIX = ".vq"
P = ParamSpec("P")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vqcodec")
def main() -> None:
    """A learned image codec: photographs to small .vq files and back."""


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a `VQCodecError` in one line on stderr and exits with 1."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except VQCodecError as error:
            _fail(str(error))
        except MemoryError:
            _fail("not enough memory for this picture; make it smaller")
        except OSError as error:  # what the commands themselves do not foresee, such as a full disk behind standard output
            _fail(f"{error}; check the disk and the paths")

    return run


def _fail(message: str) -> NoReturn:
    click.echo(f"vqcodec: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if value != value:
        raise click.BadParameter("'nan' is no quality; give a number from 0 to 100.", context, parameter)
    return value


FORCE = click.option("-f", "--force", is_flag=True, help="Overwrite an existing OUTPUT.")
MODEL = click.option("-m", "--model", metavar="MODEL", help="A model's name, or the path of its folder.")


@main.command()
@click.argument("input", metavar="INPUT")
@click.argument("output", metavar="[OUTPUT]", required=False)
@click.option(
    "-q",
    "--quality",
    type=click.FloatRange(0, 100),
    default=50,
    show_default=True,
    callback=_number,
    help="0 to 100, any number; higher is better.",
)
@click.option("--keep-metadata", is_flag=True, help="Keep EXIF, XMP and the ICC profile, which are left out otherwise.")
@MODEL
@FORCE
@reports_errors
def compress(input: str, output: str | None, quality: float, keep_metadata: bool, model: str | None, force: bool) -> None:
    """Compress a picture to a .vq file.

    INPUT is any picture that Pillow opens: gray stays gray, alpha is kept losslessly, colours become sRGB. OUTPUT
    defaults to its name with the suffix .vq. "-" is standard input or output.
    """
    target = files.target(input, output, SUFFIX, force)
    data = files.read(input)
    from vqcodec import codec, image

    picture = image.read_picture(data, input, keep_metadata)
    for notice in picture.notices:
        click.echo(f"vqcodec: {input} {notice}", err=True)
    files.write(target, codec.compress(picture.pixels, quality, model or "default", picture.metadata), force)


@main.command()
@click.argument("input", metavar="INPUT")
@click.argument("output", metavar="[OUTPUT]", required=False)
@MODEL
@FORCE
@reports_errors
def decompress(input: str, output: str | None, model: str | None, force: bool) -> None:
    """Decompress a .vq file to a picture.

    OUTPUT's suffix chooses the format; it defaults to INPUT's name with the suffix .png. "-" is standard input or
    output (PNG).
    """
    target = files.target(input, output, ".png", force)
    data = files.read(input)
    from vqcodec import codec, image

    suffix = ".png" if target == files.STREAM else Path(target).suffix
    image.check_suffix(suffix)
    pixels = codec.decompress(data, model)
    files.write(target, image.write(pixels, suffix, codec.read_metadata(data)), force)


@main.command()
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@MODEL
@reports_errors
def info(file: str, as_json: bool, model: str | None) -> None:
    """Describe a .vq file without decoding it."""
    data = files.read(file)
    from vqcodec import codec

    facts = codec.info(data, model)
    if as_json:
        import json

        click.echo(json.dumps(facts))
        return
    click.echo(_describe(facts))


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="MODEL_DIR", type=click.Path(path_type=Path), help="Folder for the model and its checkpoints."
)
@click.option("--preset", type=click.Choice(["default", "tiny"]), default="default", show_default=True, help="Network size.")
@click.option("--max-minutes", type=click.FloatRange(0.05), default=120, show_default=True, help="Time for transform and prior together.")
@click.option("--valid", metavar="DIR", type=click.Path(path_type=Path), help="Photographs to report on; default: a few of DIR, held out.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: torch's choice.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and crops.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoints in MODEL_DIR.")
@reports_errors
def train(folder: Path, out: Path, **options: Any) -> None:
    """Train a model on the photographs below DIR.

    Trains the transform, then the prior on its codes, and exports a model folder that -m takes. Needs the extra
    "train" (pip install "vqcodec[train]").
    """
    try:
        from vqcodec.training.train import train as run
    except ModuleNotFoundError as error:
        raise VQCodecError(f"training needs {error.name}; install the extra: pip install 'vqcodec[train]'") from error
    run(folder, out, progress=lambda line: click.echo(line, err=True), **options)


def _describe(facts: dict[str, Any]) -> str:
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


if __name__ == "__main__":
    main()
