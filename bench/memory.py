"""Peak memory of whole commands over the size of the picture: compress and decompress, each in a process of its own.

python3 bench/memory.py [--sizes 0.4,2,12,50,100] [--model MODEL] [--picture FILE] [--effort 3]

The pictures are a photograph, repeated and mirrored to the size asked for, as JPEG files. Prints a table: megapixels, peak resident
memory in MB (the kernel's figure for the process) and seconds. Needs a system that tells the memory of a process (not Windows).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPH = ROOT / "tests" / "images" / "coffee.png"
KILOBYTES = 1024 if sys.platform != "darwin" else 1  # the unit of ru_maxrss is kB, on macOS bytes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.4,2,12,50,100", help="Megapixels, by commas.")
    parser.add_argument("--model", default="default")
    parser.add_argument("--picture", type=Path, default=PHOTOGRAPH)
    parser.add_argument("--effort", type=int, default=3)
    given = parser.parse_args()
    print("| picture | compress MB | s | decompress MB | s | bytes |\n|---|---|---|---|---|---|")
    for size in map(float, given.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            width, height = sides(size)
            print(row(Path(folder), width, height, given.picture, given.model, given.effort), flush=True)


def sides(megapixels: float) -> tuple[int, int]:
    """Width and height in the ratio of 10 to 7, such as 12000 x 8400 for 100."""
    height = round((megapixels * 1e6 * 0.7) ** 0.5 / 100) * 100 if megapixels >= 1 else round((megapixels * 1e6 * 0.7) ** 0.5)
    return round(megapixels * 1e6 / height / 100) * 100 or 100, height


def row(folder: Path, width: int, height: int, picture: Path, model: str, effort: int) -> str:
    """One line of the table."""
    with Image.open(picture) as opened:
        photograph = np.array(opened.convert("RGB"))
    photograph = np.concatenate([photograph, photograph[::-1]])
    photograph = np.concatenate([photograph, photograph[:, ::-1]], axis=1)
    times = -(-height // photograph.shape[0]), -(-width // photograph.shape[1]), 1
    Image.fromarray(np.tile(photograph, times)[:height, :width]).save(folder / "a.jpg", quality=90)
    compressed = measure("compress", folder / "a.jpg", folder / "a.vq", "-m", model, "--effort", str(effort))
    size = (folder / "a.vq").stat().st_size
    decompressed = measure("decompress", folder / "a.vq", folder / "b.png", "-m", model)
    figures = f"{compressed[0]:.0f} | {compressed[1]:.1f} | {decompressed[0]:.0f} | {decompressed[1]:.1f}"
    return f"| {width} x {height}, {width * height / 1e6:.1f} MP | {figures} | {size} |"


def measure(verb: str, source: Path, target: Path, *options: str) -> tuple[float, float]:
    """Peak resident memory in MB, and seconds, of one command."""
    command = [sys.executable, "-m", "vqcodec.cli", verb, str(source), str(target), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * KILOBYTES / 1e6, time.perf_counter() - start


if __name__ == "__main__":
    main()
