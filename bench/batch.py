"""Many small pictures: one command for all of them against a process for each, in turns.

python3 bench/batch.py FOLDER [--count 1000] [--alone 20] [--size 64] [--rounds 3] [--model MODEL] [--effort 3]

Cuts `count` pictures out of those in the folder. In every round one command takes all of them, and `alone` of them get a process each.
Prints milliseconds per picture by the clock and of the processor, and the ratios; medians over the rounds come last.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {"compress": (".png", ".vq"), "decompress": (".vq", ".png")}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Figures(NamedTuple):
    """Seconds per picture: by the clock and of the processor, together and alone."""

    together: float
    alone: float
    together_cpu: float
    alone_cpu: float

    def row(self, name: str) -> str:
        """A line of the table, in milliseconds."""
        clock = f"{1e3 * self.together:.1f} | {1e3 * self.alone:.0f} | {self.alone / self.together:.1f}"
        return (
            f"| {name} | {clock} | {1e3 * self.together_cpu:.1f} | {1e3 * self.alone_cpu:.0f} | {self.alone_cpu / self.together_cpu:.1f} |"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("count", 1000), ("alone", 20), ("size", 64), ("rounds", 3), ("effort", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="default")
    given = parser.parse_args()
    options = {"compress": ["-m", given.model, "--effort", str(given.effort)], "decompress": ["-m", given.model]}
    print("| | together, ms | alone, ms | ratio | together, CPU ms | alone, CPU ms | ratio |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        cut(given.folder, Path(folder), given.count, given.size)
        for verb in SUFFIXES:
            rounds: list[Figures] = []
            for number in range(1, given.rounds + 1):
                rounds.append(turn(verb, Path(folder), given.alone, options[verb]))
                print(rounds[-1].row(f"{verb}, round {number}"), flush=True)
            print(Figures(*map(median, zip(*rounds, strict=True))).row(f"**{verb}**"), flush=True)


def cut(source: Path, folder: Path, count: int, size: int) -> None:
    """Square crops of the pictures in a folder, in turns, as PNG files."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES)
    for number in range(count):
        turns, which = divmod(number, len(found))
        with Image.open(found[which]) as opened:
            left, top = (opened.width - size) // 2 + 7 * turns, (opened.height - size) // 2 + 7 * turns
            opened.convert("RGB").crop((left, top, left + size, top + size)).save(folder / f"{number:04}.png")


def turn(verb: str, folder: Path, alone: int, options: list[str]) -> Figures:
    """One round. The outputs of `compress` stay in the folder, for `decompress` to take."""
    source, target = SUFFIXES[verb]
    inputs = sorted(folder.glob(f"*{source}"))
    out = folder if verb == "compress" else folder / "out"
    together = run(verb, *inputs, "--out-dir", out, "--force", *options)
    chosen = inputs[:: max(1, len(inputs) // alone)][:alone]
    each = [run(verb, path, folder / f"alone{target}", "--force", *options) for path in chosen]
    (folder / f"alone{target}").unlink()
    clock, processor = (sum(values) / len(each) for values in zip(*each, strict=True))
    return Figures(together[0] / len(inputs), clock, together[1] / len(inputs), processor)


def run(*arguments: str | Path) -> tuple[float, float]:
    """Seconds of one command by the clock, and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "vqcodec.cli", *map(str, arguments)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
