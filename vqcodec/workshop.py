"""The commands of the workshop: train models, measure them, check the machine."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from vqcodec.errors import VQCodecError
from vqcodec.options import reports_errors


@click.command()
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


@click.command()
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


@click.command()
@click.option("--quiet", is_flag=True, help="Only what fails.")
@reports_errors
def selftest(quiet: bool) -> None:
    """Check that this machine decodes as all others do.

    Golden files that come with the package must give the codes and bytes that they gave where they were made. Takes seconds.
    """
    from vqcodec import selftest as testing

    failed = number = 0
    for check in testing.checks():
        number, failed = number + 1, failed + (not check.holds)
        if not (check.holds and quiet):
            click.echo(f"ok      {check.name}" if check.holds else f"FAILED  {check.name}: {check.found}")
    if failed:
        raise VQCodecError(f"{failed} of {number} checks failed on {testing.machine()}; please report this")
    if not quiet:
        click.echo(f"{number} checks passed on {testing.machine()}")
