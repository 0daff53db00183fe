"""The command line. Only this module exits, and only it and `console` print; each command imports what it needs when it runs."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click

from vqcodec import __version__, console, files
from vqcodec.config import LEVELS
from vqcodec.console import takes_many
from vqcodec.convert import SUFFIX, CompressOptions, DecompressOptions, Job, Options
from vqcodec.errors import OutputError, VQCodecError

# The prior's products are small: more BLAS threads than one slow them down. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

FORMATS = ("png", "jpg", "webp", "tif", "bmp", "ppm")
POSITIVE = click.FloatRange(0, min_open=True)
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


def _number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"'{value}' is no number to aim at; give a finite one.", context, parameter)
    return value


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Bytes such as 500, 20k or 1.5M (thousands and millions)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)([kKmM]?)", value)
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"'{value}' is no size; give bytes such as 500, 20k or 1.5M.", context, parameter)
    return float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]


FORCE = click.option("-f", "--force", is_flag=True, help="Overwrite an existing OUTPUT.")
MODEL = click.option("-m", "--model", metavar="MODEL", help="A model's name, or the path of its folder.")


@main.command()
@takes_many
@click.option(
    "-q", "--quality", type=click.FloatRange(0, 100), callback=_number, help="0 to 100, any number; higher is better. [default: 50]"
)
@click.option("--target-bpp", type=POSITIVE, callback=_number, help="The best quality with at most that many bits per pixel.")
@click.option("--target-size", metavar="BYTES", callback=_size, help="The best quality with at most that many bytes, such as 20k.")
@click.option("--target-psnr", type=POSITIVE, callback=_number, help="The smallest file with at least that PSNR in dB.")
@click.option("--target-mse", type=POSITIVE, callback=_number, help="The smallest file with at most that MSE.")
@click.option("--keep-metadata", is_flag=True, help="Keep EXIF, XMP and the ICC profile, which are left out otherwise.")
@MODEL
@FORCE
@reports_errors
def compress(quality: float | None, keep_metadata: bool, model: str | None, **options: Any) -> None:
    """Compress pictures to .vq files.

    INPUT is any picture that Pillow opens: gray stays gray, alpha is kept losslessly, colours become sRGB. OUTPUT
    defaults to its name with the suffix .vq. "-" is standard input or output.
    """
    goals = [(kind, options.pop(f"target_{kind}")) for kind in ("bpp", "size", "psnr", "mse")]
    given = [goal for goal in goals if goal[1] is not None]
    if len(given) + (quality is not None) > 1:
        raise click.UsageError("give a quality or one target, not both.")
    chosen = CompressOptions(50 if quality is None else quality, given[0] if given else None, keep_metadata, model)
    _convert(chosen, SUFFIX, **options)


@main.command()
@takes_many
@click.option("--levels", type=click.Choice(LEVELS), default=LEVELS[-1], show_default=True, help="The finest level to decode.")
@click.option("--format", "suffix", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="Where no OUTPUT says.")
@MODEL
@FORCE
@reports_errors
def decompress(levels: str, suffix: str, model: str | None, **options: Any) -> None:
    """Decompress .vq files to pictures.

    OUTPUT's suffix chooses the format; it defaults to INPUT's name with the suffix .png. "-" is standard input or
    output. With --levels top or middle, the beginning of a file is enough.
    """
    _convert(DecompressOptions(LEVELS.index(levels) + 1, f".{suffix}", model), f".{suffix}", **options)


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
    if not console.show(batch.run(jobs, chosen, policy), len(jobs), options["as_json"], options["verbose"], options["quiet"]):
        sys.exit(1)


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
    click.echo(json.dumps(facts) if as_json else console.describe(facts))


@main.command()
@click.argument("original", metavar="ORIGINAL")
@click.argument("compressed", metavar="COMPRESSED")
@click.option("--picture", metavar="FILE", help="Write original, reconstruction and error map side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@MODEL
@FORCE
@reports_errors
def compare(original: str, compressed: str, picture: str | None, as_json: bool, model: str | None, force: bool) -> None:
    """Compare a picture with its .vq file: bytes, bpp, MSE and PSNR.

    COMPRESSED can also be a JPEG or WebP file, or whatever else Pillow opens. The error map shows errors eightfold.
    """
    target = files.target(original, picture, "", force) if picture else None
    data = files.read(original), files.read(compressed)
    from vqcodec import compare as comparing
    from vqcodec import image

    if target:
        image.check_suffix(Path(target).suffix)
    found = comparing.compare(*data, (original, compressed), model)
    if target:
        files.write(target, image.write(comparing.panel(found), Path(target).suffix), force)
    click.echo(json.dumps(found.facts) if as_json else console.describe_comparison(found.facts))


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


@main.command()
@click.argument("dataset", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("--codecs", default="vqcodec,jpeg,webp,avif,jpeg2000,jxl,heic", show_default=True, help="What to compare, by commas.")
@click.option("--qualities", multiple=True, metavar="[CODEC=]N,N,...", help="Settings of vqcodec, or of CODEC; can be repeated.")
@click.option("-m", "--model", default="default", show_default=True, help="A model's name, or the path of its folder.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="bench-report", show_default=True, metavar="REPORT_DIR", help="Folder for it all."
)
@click.option("--json", type=click.Path(path_type=Path), metavar="FILE", help="The results as JSON; default: results.json in REPORT_DIR.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes; more than one blurs the timings.")
@click.option("--reference", type=click.Path(path_type=Path), metavar="CSV", help="Published points: codec, bpp, psnr, ms_ssim, source.")
@click.option("--pictures", type=click.Path(path_type=Path), metavar="DIR", help="Photographs that the report shows; default: DATASET's.")
@click.option("--resume", is_flag=True, help="Continue the rows in REPORT_DIR.")
@reports_errors
def bench(dataset: Path, codecs: str, qualities: tuple[str, ...], **options: Any) -> None:
    """Measure rate and distortion of vqcodec and its peers on the pictures below DATASET.

    Writes rows, plots and a report to REPORT_DIR. A picture that cannot be read is skipped, and the exit code is 1.
    Needs the extra "bench" (pip install "vqcodec[bench]").
    """
    try:
        from vqcodec.bench import plan, run
    except ModuleNotFoundError as error:
        raise VQCodecError(f"the bench needs {str(error.name).split('.')[0]}; install the extra: pip install 'vqcodec[bench]'") from error
    asked = plan.Plan(dataset, codecs=plan.parse_codecs(codecs), settings=plan.parse_settings(qualities), **options)
    bar = partial(click.progressbar, label="measuring", file=sys.stderr, show_pos=True)
    skipped = run.bench(asked, lambda line: click.echo(line, err=True), bar)
    if skipped:
        raise VQCodecError(f"{len(skipped)} things were skipped, see above; everything else is in {asked.out}")


if __name__ == "__main__":
    main()
