"""What each effort of the search is worth: BD-rate against the first one, and the encoder's time.

python3 bench/effort.py PICTURES [--efforts 0,3,9] [--qualities 0,25,50,75,100] [--count 20] [--model MODEL]

Means over pictures spread over the folder, real files, mean PSNR. Seconds are the processor's, over all threads, of finding the codes.
Needs the extra "bench".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import process_time

from vqcodec import codec, image, metrics
from vqcodec.bench.plan import find_pictures
from vqcodec.bench.report import spread
from vqcodec.bench.summary import bd_rate
from vqcodec.model import Model, load_model
from vqcodec.transform import Image


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--efforts", type=lambda text: list(map(int, text.split(","))), default=[0, 3, 9])
    parser.add_argument("--qualities", type=lambda text: sorted(map(float, text.split(","))), default=[0, 25, 50, 75, 100])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--model", default="default")
    given = parser.parse_args()
    model = load_model(given.model)
    found = find_pictures(given.pictures, given.pictures / "report")
    pictures = [image.read(path.read_bytes(), name) for name, path in spread(list(found.items()), given.count)]
    print(f"| effort | BD-rate | seconds a picture | {' | '.join(f'quality {quality:g}' for quality in given.qualities)} |")
    print("|---" * (3 + len(given.qualities)) + "|")
    model.encode(pictures[0], 50)  # opens the graphs
    first: list[tuple[float, float]] = []
    for effort in given.efforts:
        points, seconds = zip(*(point(model, pictures, quality, effort) for quality in given.qualities), strict=True)
        first = first or list(points)
        gain = bd_rate(f"effort {given.efforts[0]}", first, list(points))
        percent = gain.remark if gain.percent is None else f"{gain.percent:+.2f} %"
        figures = " | ".join(f"{bpp:.4f} {psnr:.3f}" for bpp, psnr in points)
        print(f"| {effort} | {percent} | {sum(seconds) / len(seconds):.2f} | {figures} |", flush=True)


def point(model: Model, pictures: list[Image], quality: float, effort: int) -> tuple[tuple[float, float], float]:
    """Mean bpp and PSNR, and the seconds that a picture's codes took."""
    rate = psnr = seconds = 0.0
    for pixels in pictures:
        height, width = pixels.shape[:2]
        start = process_time()
        codes = model.encode(pixels, quality, effort)
        seconds += process_time() - start
        data = codec.pack_codes(codes, height, width, quality, model)
        rate += metrics.bpp(len(data), height, width)
        psnr += metrics.psnr(metrics.mse(pixels, codec.decompress(data, model)))
    return (rate / len(pictures), psnr / len(pictures)), seconds / len(pictures)


if __name__ == "__main__":
    main()
