"""The command line: what everyone uses; `workshop` adds the commands of those who make and measure models.

Only the commands exit, and only they and `console` print; each imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from vqcodec import __version__, console, files, limits, workshop
from vqcodec.config import DEFAULT_EFFORT, LEVELS
from vqcodec.console import PATH, takes_many
from vqcodec.convert import SUFFIX, CompressOptions, DecompressOptions, Job, Options
from vqcodec.errors import OutputError
from vqcodec.options import FORCE, MAX_PIXELS, MODEL, POSITIVE, naming, number, reports_errors, size

# The prior's products are small: more BLAS threads than one slow them down. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

FORMATS = ("png", "jpg", "webp", "tif", "bmp", "ppm")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vqcodec")
def main() -> None:
    """A learned image codec: photographs to small .vq files and back."""


@main.command()
@takes_many
@click.option(
    "-q", "--quality", type=click.FloatRange(0, 100), callback=number, help="0 to 100, any number; higher is better. [default: 50]"
)
@click.option("--target-bpp", type=POSITIVE, callback=number, help="The best quality with at most that many bits per pixel.")
@click.option("--target-size", metavar="BYTES", callback=size, help="The best quality with at most that many bytes, such as 20k.")
@click.option("--target-psnr", type=POSITIVE, callback=number, help="The smallest file with at least that PSNR in dB.")
@click.option("--target-mse", type=POSITIVE, callback=number, help="The smallest file with at most that MSE.")
@click.option(
    "--effort",
    type=click.IntRange(0, 9),
    default=DEFAULT_EFFORT,
    show_default=True,
    help="How long to search: 0 is quick, 9 takes a minute a megapixel.",
)
@click.option("--keep-metadata", is_flag=True, help="Keep EXIF, XMP and the ICC profile, which are left out otherwise.")
@MODEL
@MAX_PIXELS
@FORCE
@reports_errors
def compress(quality: float | None, effort: int, keep_metadata: bool, model: str | None, max_pixels: int, **options: Any) -> None:
    """Compress pictures to .vq files.

    INPUT is any picture that Pillow opens: gray stays gray, alpha is kept losslessly, colours become sRGB. OUTPUT
    defaults to its name with the suffix .vq. "-" is standard input or output.
    """
    goals = [(kind, options.pop(f"target_{kind}")) for kind in ("bpp", "size", "psnr", "mse")]
    given = [goal for goal in goals if goal[1] is not None]
    if len(given) + (quality is not None) > 1:
        raise click.UsageError("give a quality or one target, not both.")
    target = given[0] if given else None
    chosen = CompressOptions(50 if quality is None else quality, target, keep_metadata, model, max_pixels, effort)
    _convert(chosen, SUFFIX, **options)


@main.command()
@takes_many
@click.option("--levels", type=click.Choice(LEVELS), default=LEVELS[-1], show_default=True, help="The finest level to decode.")
@click.option("--salvage", is_flag=True, help="Show what is intact of a damaged file; exit with 3 where something is lost.")
@click.option("--format", "suffix", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="Where no OUTPUT says.")
@MODEL
@MAX_PIXELS
@FORCE
@reports_errors
def decompress(levels: str, salvage: bool, suffix: str, model: str | None, max_pixels: int, **options: Any) -> None:
    """Decompress .vq files to pictures.

    OUTPUT's suffix chooses the format; it defaults to INPUT's name with the suffix .png. "-" is standard input or
    output. With --levels top or middle, the beginning of a file is enough.
    """
    if salvage and levels != LEVELS[-1]:
        raise click.UsageError("--salvage shows every level that is intact; leave out --levels.")
    _convert(DecompressOptions(LEVELS.index(levels) + 1, f".{suffix}", model, max_pixels, salvage), f".{suffix}", **options)


def _convert(chosen: Options, suffix: str, inputs: tuple[str, ...], out_dir: str | None, recursive: bool, **options: Any) -> None:
    """Plans and does the jobs, shows what becomes of them, and exits with 1 where one failed."""
    from vqcodec import batch

    policy = batch.Policy(options["force"], options["skip_existing"], options["jobs"])
    if out_dir is not None or recursive:
        jobs = batch.plan(inputs, chosen, suffix, out_dir, recursive)
        for job in jobs:
            files.make_parent(job.target)
    elif len(inputs) > 2:
        raise click.UsageError("several inputs need --out-dir DIR.")
    else:
        if isinstance(chosen, CompressOptions) and Path(inputs[-1]).suffix.lower() in batch.PICTURES and len(inputs) > 1:
            raise OutputError(f"{inputs[-1]} is named like a picture, not like a .vq file; to compress both, give --out-dir DIR")
        overwrite = policy.force or policy.skip_existing
        jobs = [Job(inputs[0], files.target(inputs[0], inputs[1] if len(inputs) > 1 else None, suffix, overwrite))]
    if options["as_json"] and any(job.target == files.STREAM for job in jobs):
        raise click.UsageError("--json would mix with the data on standard output; name an OUTPUT.")
    code = console.show(batch.run(jobs, chosen, policy), len(jobs), options["as_json"], options["verbose"], options["quiet"])
    if code:
        sys.exit(code)


@main.command()
@click.argument("file", type=PATH, metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@MODEL
@reports_errors
def info(file: str, as_json: bool, model: str | None) -> None:
    """Describe a .vq file without decoding it."""
    data = files.read(file, limits.input_bytes(limits.MAX_PIXELS))
    from vqcodec import codec

    with naming(file):
        facts = codec.info(data, model)
    click.echo(json.dumps(facts) if as_json else console.describe(facts))


@main.command()
@click.argument("original", type=PATH, metavar="ORIGINAL")
@click.argument("compressed", type=PATH, metavar="COMPRESSED")
@click.option("--picture", type=PATH, metavar="FILE", help="Write original, reconstruction and error map side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@MODEL
@MAX_PIXELS
@FORCE
@reports_errors
def compare(original: str, compressed: str, picture: str | None, as_json: bool, max_pixels: int, **options: Any) -> None:
    """Compare a picture with its .vq file: bytes, bpp, MSE, PSNR and MS-SSIM.

    COMPRESSED can also be a JPEG or WebP file, or whatever else Pillow opens. The error map shows errors eightfold.
    """
    if picture == files.STREAM:
        raise click.UsageError("--picture would mix with the figures on standard output; name a FILE.")
    if original == compressed == files.STREAM:
        raise click.UsageError("standard input cannot be both; name a file for one of them.")
    force, limit = options["force"], limits.input_bytes(max_pixels)
    if picture is not None:
        files.target(compressed, picture, "", force=True)  # it may replace a file, but neither of these
        files.target(original, picture, "", force)
    data = files.read(original, limit), files.read(compressed, limit)
    from vqcodec import compare as comparing
    from vqcodec import image

    if picture is not None:
        image.check_suffix(Path(picture).suffix)
    with files.silenced(), naming(compressed):
        found = comparing.compare(*data, (original, compressed), options["model"], max_pixels)
    if picture is not None:
        files.write(picture, image.write(comparing.panel(found), Path(picture).suffix), force)
    click.echo(json.dumps(found.facts) if as_json else console.describe_comparison(found.facts))


for command in (workshop.train, workshop.sample, workshop.bench, workshop.view, workshop.selftest):
    main.add_command(command)


def run() -> None:
    """The installed command. It ends without taking apart what the system takes back anyway, which takes 0.07 s.

    `python -m vqcodec` is the same. `python -m vqcodec.cli` ends in the usual way, for profilers and the like.
    """
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int) or "multiprocessing" in sys.modules:  # which tidies up in the end
            raise
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # full, closed or not there: Python says so at its own end
            raise end from None
        os._exit(end.code)


if __name__ == "__main__":
    main()
