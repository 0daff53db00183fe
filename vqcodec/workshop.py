"""The commands of the workshop: train models, measure them, look into them and at what they do, check the machine."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vqcodec import console, files, limits
from vqcodec.config import DEFAULT_EFFORT, LEVELS
from vqcodec.errors import VQCodecError
from vqcodec.options import FORCE, MODEL, POSITIVE, naming, number, reports_errors, shape


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="MODEL_DIR", type=click.Path(path_type=Path), help="Folder for the model and its checkpoints."
)
@click.option(
    "--preset", type=click.Choice(["default", "vqvae", "vqvae2", "tiny"]), default="default", show_default=True, help="Network and recipe."
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(0.05),
    default=120,
    show_default=True,
    callback=number,
    help="Time for transform and prior together.",
)
@click.option("--valid", metavar="DIR", type=click.Path(path_type=Path), help="Photographs to report on; default: a few of DIR, held out.")
@click.option("--from", "start", metavar="MODEL_DIR", type=click.Path(path_type=Path), help="Start from this model.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Crops a step, of each process.")
@click.option("--crop", type=click.IntRange(64), help="Pixels a side, a multiple of 32. [default: the preset's]")
@click.option("--learning-rate", type=POSITIVE, callback=number, help="Of the transform's networks; default: the preset's.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: torch's choice.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of weights and crops.")
@click.option("--compile/--no-compile", "compiled", default=None, help="Use torch.compile; default: on accelerators alone.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoints in MODEL_DIR.")
@reports_errors
def train(folder: Path, out: Path, **options: Any) -> None:
    """Train a model on the photographs below DIR.

    Trains the transform, then the prior on its codes, and exports a model folder that -m takes. "vqvae" and "vqvae2" are the papers'
    recipes, "tiny" is for tests. Several processes train together under torchrun. Needs the extra "train" (pip install
    "vqcodec[train]").
    """
    if options["crop"] and options["crop"] % 32:
        raise click.BadParameter(f"{options['crop']} is no multiple of 32.", param_hint="--crop")
    try:
        from vqcodec.training.train import TrainOptions
        from vqcodec.training.train import train as run
    except ModuleNotFoundError as error:
        raise VQCodecError(f"training needs {error.name}; install the extra: pip install 'vqcodec[train]'") from error
    with console.TrainingDisplay() as display:
        run(folder, out, TrainOptions(**options), display)


@click.command()
@click.argument("output", type=console.PATH, metavar="OUT.png")
@click.option("--size", "shape", default="384x256", show_default=True, metavar="WxH", callback=shape, help="Pixels of the picture.")
@click.option(
    "-q",
    "--quality",
    type=click.FloatRange(0, 100),
    callback=number,
    default=50,
    show_default=True,
    help="The quality whose codes are drawn.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed gives another picture.")
@click.option(
    "--from", "source", type=console.PATH, metavar="FILE", help="Keep the coarse levels of this .vq file, and draw the finer ones."
)
@click.option("--keep", type=click.Choice(LEVELS[:-1]), default=LEVELS[0], show_default=True, help="The finest level to keep.")
@MODEL
@FORCE
@reports_errors
def sample(output: str, shape: tuple[int, int], source: str | None, keep: str, **options: Any) -> None:
    """Draw a picture from the prior: what it has learned.

    With --from, the coarse levels are a file's, and the picture shows what the prior makes of them.
    """
    context = click.get_current_context()
    shape_given, quality_given, keep_given = (
        context.get_parameter_source(name) is not ParameterSource.DEFAULT for name in ("shape", "quality", "keep")
    )
    if source is None and keep_given:
        raise click.UsageError("--keep is about the levels of a file; name one with --from.")
    if source is not None and (shape_given or quality_given):
        raise click.UsageError("with --from, size and quality are the file's; leave out --size and --quality.")
    target = files.target(files.STREAM if source is None else source, output, "", options["force"])
    data = b"" if source is None else files.read(source, limits.input_bytes(limits.MAX_PIXELS))
    from vqcodec import image
    from vqcodec import sample as sampling

    image.check_suffix(Path(target).suffix)
    if source is not None:
        with naming(source):
            picture = sampling.sample_from(data, LEVELS.index(keep) + 1, options["seed"], options["model"])
    else:
        model = "default" if options["model"] is None else options["model"]
        picture = sampling.sample(shape[1], shape[0], options["quality"], options["seed"], model)
    files.write(target, image.write(picture, Path(target).suffix), options["force"])


@click.command()
@click.argument("dataset", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("--codecs", default="vqcodec,jpeg,webp,avif,jpeg2000,jxl,heic", show_default=True, help="What to compare, by commas.")
@click.option("--qualities", multiple=True, metavar="[CODEC=]N,N,...", help="Settings of vqcodec, or of CODEC; can be repeated.")
@click.option(
    "-m",
    "--model",
    type=console.PATH,
    metavar="MODEL",
    default="default",
    show_default=True,
    help="A model's name, or the path of its folder.",
)
@click.option("--effort", type=click.IntRange(0, 9), default=DEFAULT_EFFORT, show_default=True, help="Of vqcodec's search, as in compress.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="bench-report", show_default=True, metavar="REPORT_DIR", help="Folder for it all."
)
@click.option("--json", type=click.Path(path_type=Path), metavar="FILE", help="The results as JSON; default: results.json in REPORT_DIR.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes; more than one blurs the timings.")
@click.option("--reference", type=click.Path(path_type=Path), metavar="CSV", help="Published points: codec, bpp, psnr, ms_ssim, source.")
@click.option("--pictures", type=click.Path(path_type=Path), metavar="DIR", help="Photographs that the report shows; default: DATASET's.")
@click.option("--resume", is_flag=True, help="Continue the rows in REPORT_DIR.")
@click.option("--again", default="", metavar="CODEC,...", help="With --resume: drop the rows of these and measure them anew.")
@reports_errors
def bench(dataset: Path, codecs: str, qualities: tuple[str, ...], again: str, **options: Any) -> None:
    """Measure rate and distortion of vqcodec and its peers on the pictures below DATASET.

    Writes rows, plots and a report to REPORT_DIR. A picture that cannot be read is skipped, and the exit code is 1.
    Needs the extra "bench" (pip install "vqcodec[bench]").
    """
    try:
        from vqcodec.bench import plan, run
    except ModuleNotFoundError as error:
        raise VQCodecError(f"the bench needs {str(error.name).split('.')[0]}; install the extra: pip install 'vqcodec[bench]'") from error
    names, settings = plan.parse_codecs(codecs), plan.parse_settings(qualities)
    asked = plan.Plan(dataset, codecs=names, settings=settings, again=plan.parse_codecs(again), **options)
    bar = partial(click.progressbar, label="measuring", file=sys.stderr, show_pos=True)
    skipped = run.bench(asked, lambda line: click.echo(line, err=True), bar)
    if skipped:
        raise VQCodecError(f"{len(skipped)} things were skipped, see above; everything else is in {asked.out}")


@click.command()
@click.argument("path", metavar="[FILE|DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port on this machine; default: a free one.")
@click.option("--no-browser", is_flag=True, help="Print the page's address and open no browser.")
@MODEL
@reports_errors
def view(path: Path | None, port: int, no_browser: bool, model: str | None) -> None:
    """Compress pictures in the browser and look at them.

    Serves a page on this machine alone, with the pictures of FILE or DIR and those that are dropped on it: a quality slider,
    the original and the reconstruction under a wipe, level by level. Needs the extra "view" (pip install "vqcodec[view]").
    """
    import webbrowser

    try:
        from vqcodec.view import server, session
    except ModuleNotFoundError as error:
        raise VQCodecError(f"the page needs {error.name}; install the extra: pip install 'vqcodec[view]'") from error

    def ready(address: str) -> None:
        click.echo(f"{address}  (Ctrl-C ends it)")
        if not no_browser and server.has_screen():
            webbrowser.open(address)

    looked_at = session.Session(session.find(path), model)
    if path is not None and not path.is_dir():
        looked_at.describe(0)
    server.serve(looked_at, port, ready)


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
