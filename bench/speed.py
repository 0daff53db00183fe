"""How long the parts of the codec take, how that grows with the picture, and against what.

python3 bench/speed.py --sizes 0.4,2,12,50 --threads 1,2 --runs 3 --out runs/speed
python3 bench/speed.py --sizes 0.4,2 --clock cpu --against ../older-checkout      the same of other code, run in turns

Pictures are tiled from the sample photographs. Every run is a process of its own; figures are medians over the runs and compare
within one call only. `--clock cpu` counts the processor's time over all threads, which other work on the machine hardly changes.
Writes speed.json, speed.md (also printed) and speed.png. Needs the extra "bench".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import speed_report
from speed_parts import CLOCKS, Asked

ROOT = Path(__file__).resolve().parent.parent
STARTS = {  # programs whose time is that of starting
    "start: python": "pass",
    "start: the command line": "import vqcodec.cli",
    "start: numpy": "import numpy",
    "start: onnxruntime": "import onnxruntime",
    "start: all imports": "import vqcodec.codec, vqcodec.image, onnxruntime",
    "start: model opened": "from vqcodec.model import load_model; m = load_model({model!r}); m.prior; m.transform",
}
COMMAND = "from vqcodec import cli; getattr(cli, 'run', cli.main)()"  # what the installed command does, in older checkouts too
BATCH = 4  # pictures for --jobs, of the smallest size
BATCH_MEGAPIXELS = 2  # above, there is no batch: it would take longer than all the rest


class Key(NamedTuple):
    """What a figure is of: `tree` is the code, `megapixels` 0 where the size does not matter, `unit` s or MiB."""

    tree: str
    part: str
    threads: int
    megapixels: float
    unit: str = "s"


Figures = dict[Key, list[float]]  # one value for each run


class Bench(NamedTuple):
    """One call. `trees` are checkouts by name, the first one this."""

    trees: dict[str, Path]
    asked: Asked
    threads: list[int]
    jobs: list[int]
    folder: Path


def one_run(bench: Bench, figures: Figures) -> None:
    """Every part once, for each of the trees in turn."""
    for threads in bench.threads:
        for tree in bench.trees:
            own = bench.trees[tree] / "bench" / "speed_parts.py"  # it follows its own code's organisation
            script = own if own.exists() else ROOT / "bench" / "speed_parts.py"
            found = run(bench, tree, threads, [sys.executable, str(script), json.dumps(asdict(bench.asked))])
            for part, megapixels, value in json.loads(found.output):
                figures.setdefault(Key(tree, part, threads, megapixels), []).append(value)
        for tree in bench.trees:
            whole_processes(bench, tree, threads, figures)
    for tree in bench.trees:
        for name, program in STARTS.items():
            found = run(bench, tree, 1, [sys.executable, "-c", program.format(model=bench.asked.model)])
            figures.setdefault(Key(tree, name, 1, 0), []).append(found.seconds)
        for jobs in bench.jobs if bench.asked.sizes[0] <= BATCH_MEGAPIXELS else []:
            found = run(bench, tree, 0, [*command(bench, "compress"), "batch", "-r", "--out-dir", "out", "-j", str(jobs)])
            figures.setdefault(Key(tree, f"{BATCH} pictures by the clock, --jobs {jobs}", 0, bench.asked.sizes[0]), []).append(
                found.elapsed
            )


def whole_processes(bench: Bench, tree: str, threads: int, figures: Figures) -> None:
    """`vqcodec compress` and `decompress`: seconds and the most memory."""
    for megapixels in bench.asked.sizes:
        name = f"{megapixels:g}"
        for verb, arguments in (("compress", [f"{name}.png", f"{name}.vq"]), ("decompress", [f"{name}.vq", "restored.ppm"])):
            found = run(bench, tree, threads, [*command(bench, verb), *arguments])
            figures.setdefault(Key(tree, f"process: {verb}", threads, megapixels), []).append(found.seconds)
            figures.setdefault(Key(tree, f"process: {verb}, memory", threads, megapixels, "MiB"), []).append(found.mebibytes)


def command(bench: Bench, verb: str) -> list[str]:
    """The command line's beginning."""
    quality = ["-q", f"{bench.asked.quality:g}"] if verb == "compress" else []
    return [sys.executable, "-c", COMMAND, verb, "-f", "-m", bench.asked.model, *quality]


class Ended(NamedTuple):
    """A process that has ended well."""

    output: bytes
    seconds: float  # by the clock that was asked for
    elapsed: float
    mebibytes: float


def run(bench: Bench, tree: str, threads: int, arguments: list[str]) -> Ended:
    """Runs a process on a tree's code in the folder of pictures; threads 0 leaves their number to the program."""
    environment = {**os.environ, "PYTHONPATH": str(bench.trees[tree]), "OPENBLAS_NUM_THREADS": "1"}  # one, as the command line has it
    environment |= {"VQCODEC_THREADS": str(threads)} if threads else {}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    start = perf_counter()
    process = subprocess.Popen(arguments, cwd=bench.folder, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    elapsed = perf_counter() - start
    seconds = elapsed if bench.asked.clock == "wall" else used.ru_utime + used.ru_stime
    if process.returncode:
        sys.exit(f"{' '.join(arguments[:4])} ... failed with {tree}; its message stands above")
    return Ended(output, seconds, elapsed, used.ru_maxrss / 1024)


def make_pictures(bench: Bench) -> None:
    """The pictures of all sizes, and a folder of small ones."""
    asked = asdict(bench.asked) | {"pictures": str(bench.folder)}
    run(bench, next(iter(bench.trees)), 1, [sys.executable, str(ROOT / "bench" / "speed_parts.py"), json.dumps(asked)])
    (bench.folder / "batch").mkdir()
    smallest = bench.folder / f"{bench.asked.sizes[0]:g}.png"
    for index in range(BATCH):
        (bench.folder / "batch" / f"{index}.png").write_bytes(smallest.read_bytes())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: sorted(map(float, text.split(","))), default=[0.4, 2.0, 12.0, 50.0], metavar="MP,...")
    parser.add_argument("--threads", type=lambda text: list(map(int, text.split(","))), default=[1, 2], metavar="N,...")
    parser.add_argument("--jobs", type=lambda text: list(map(int, text.split(","))), default=[1, 2], metavar="N,...")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name, or path of a folder")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--peer-limit", type=float, default=12, metavar="MP", help="AVIF up to this size, 0 for none; default 12")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="other code to run in turns with this")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes."""
    options = parse(arguments)
    trees = {"this": ROOT} | ({"against": options.against.resolve()} if options.against else {})
    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    asked = Asked(options.sizes, options.quality, model, options.clock, options.peer_limit)
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="vqcodec-speed-") as folder:
        bench = Bench(trees, asked, options.threads, options.jobs, Path(folder))
        make_pictures(bench)
        for index in range(options.runs):
            print(f"run {index + 1} of {options.runs}", file=sys.stderr, flush=True)
            one_run(bench, figures)
    settings: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    speed_report.write(options.out, settings, figures)


if __name__ == "__main__":
    main()
