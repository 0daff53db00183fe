"""The command line. Only this module prints and exits; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click

from vqcodec import __version__
from vqcodec.errors import ImageError, OutputError, VQCodecError

# The prior's products are small: more BLAS threads than one slow them down. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

STREAM = "-"
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
@MODEL
@FORCE
@reports_errors
def compress(input: str, output: str | None, quality: float, model: str | None, force: bool) -> None:
    """Compress a picture to a .vq file.

    INPUT is any picture that Pillow opens; OUTPUT defaults to its name with the suffix .vq. "-" is standard input
    or output.
    """
    target = _target(input, output, SUFFIX, force)
    data = _read(input)
    from vqcodec import codec, image

    _write(target, codec.compress(image.read(data, input), quality, model or "default"), force)


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
    target = _target(input, output, ".png", force)
    data = _read(input)
    from vqcodec import codec, image

    suffix = ".png" if target == STREAM else Path(target).suffix
    image.check_suffix(suffix)
    _write(target, image.write(codec.decompress(data, model), suffix or ".png"), force)


@main.command()
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@MODEL
@reports_errors
def info(file: str, as_json: bool, model: str | None) -> None:
    """Describe a .vq file without decoding it."""
    data = _read(file)
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


def _describe(facts: dict[str, Any]) -> str:
    known = f"{facts['model']} ({facts['model_id']})" if facts["model"] else f"{facts['model_id']} (not installed here)"
    lines = [
        f"size     {facts['width']} x {facts['height']}",
        f"quality  {facts['quality']:g}",
        f"model    {known}",
        f"format   version {facts['format_version']}",
        f"bytes    {facts['bytes']} ({facts['bpp']:.4f} bpp)",
    ]
    for name, size in facts["sections"].items():
        shape = f"   codes {' x '.join(map(str, facts['codes'][name]))} (stages, rows, columns)" if facts["codes"] else ""
        lines.append(f"  {name:<7}{size:>8} bytes{shape}")
    return "\n".join(lines)


def _target(source: str, output: str | None, suffix: str, force: bool) -> str:
    """The output's name; refuses what cannot be written before any work is done."""
    if output is None:
        if source != STREAM and not Path(source).name:
            raise ImageError(f"{source or 'the empty path'} is no file; name a file")
        output = STREAM if source == STREAM else str(Path(source).with_suffix(suffix))
    if output == STREAM:
        return output
    path = Path(output)
    try:
        if path.is_dir():
            raise OutputError(f"{output} is a directory; name a file")
        if path.exists() and not force:
            raise OutputError(f"{output} exists; use --force to overwrite it, or name another OUTPUT")
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path.parent} is no directory; create it first")
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise OutputError(f"{output} cannot be written: {error}; choose another name") from error
    return output


def _read(source: str) -> bytes:
    if source == STREAM:
        if sys.stdin is None:
            raise ImageError("there is no standard input; name a file")
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{source} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{source} is a directory; name a file in it") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{source} cannot be read: {error}") from error


def _write(target: str, data: bytes, force: bool) -> None:
    """Writes all of `data` or nothing: to a temporary file beside the target, which is then renamed."""
    import tempfile

    try:
        if target == STREAM:
            if sys.stdout is None:
                raise OutputError("there is no standard output; name a file")
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        path = Path(target)
        if path.exists() and not path.is_file():  # a device or pipe cannot be replaced by renaming
            path.write_bytes(data)
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.absolute().parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path) if force else _rename_new(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}; nothing was kept") from error


def _rename_new(temporary: Path, path: Path) -> None:
    """Renames without replacing a file that appeared meanwhile, where the file system has hard links."""
    try:
        path.hardlink_to(temporary)
        temporary.unlink()
    except FileExistsError:
        raise OutputError(f"{path} exists by now; use --force to overwrite it, or name another OUTPUT") from None
    except OSError:  # a file system without hard links
        temporary.replace(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


if __name__ == "__main__":
    main()
