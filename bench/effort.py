"""What each effort of the search is worth, or other rate weights in it: BD-rate against the first one, and the encoder's time.

python3 bench/effort.py PICTURES [--efforts 0,3,9] [--qualities 0,25,50,75,100] [--count 20] [--model MODEL]
python3 bench/effort.py PICTURES --efforts 3 --rate-weights 1,1,1 0.35,0.85,1       what a bit counts at top, middle and bottom

Means over pictures spread over the folder, real files, mean PSNR. Seconds are the processor's, over all threads, of finding the codes.
Needs the extra "bench".
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import process_time

from vqcodec import codec, image, metrics
from vqcodec.bench.plan import find_pictures
from vqcodec.bench.report import spread
from vqcodec.bench.summary import bd_rate
from vqcodec.model import Model, load_model
from vqcodec.tiles import Image


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--efforts", type=lambda text: list(map(int, text.split(","))), default=[0, 3, 9])
    parser.add_argument("--qualities", type=lambda text: sorted(map(float, text.split(","))), default=[0, 25, 50, 75, 100])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--model", default="default")
    parser.add_argument("--rate-weights", type=lambda text: tuple(map(float, text.split(","))), nargs="+", metavar="T,M,B")
    given = parser.parse_args()
    model = load_model(given.model)
    own = tuple(level.rate_weight for level in model.config.transform.levels)
    found = find_pictures(given.pictures, given.pictures / "report")
    pictures = [image.read(path.read_bytes(), name) for name, path in spread(list(found.items()), given.count)]
    print(f"| effort | rate weights | BD-rate | seconds a picture | {' | '.join(f'quality {quality:g}' for quality in given.qualities)} |")
    print("|---" * (4 + len(given.qualities)) + "|")
    model.encode(pictures[0], 50)  # opens the graphs
    first: list[tuple[float, float]] = []
    for effort, weights in product(given.efforts, given.rate_weights or [own]):
        used = weighed(model, weights)
        points, seconds = zip(*(point(used, pictures, quality, effort) for quality in given.qualities), strict=True)
        first = first or list(points)
        gain = bd_rate("the first", first, list(points))
        percent = gain.remark if gain.percent is None else f"{gain.percent:+.2f} %"
        figures = " | ".join(f"{bpp:.4f} {psnr:.3f}" for bpp, psnr in points)
        print(f"| {effort} | {weights} | {percent} | {sum(seconds) / len(seconds):.2f} | {figures} |", flush=True)


def weighed(model: Model, weights: tuple[float, ...]) -> Model:
    """The model with other rate weights of its levels; it decodes what it encodes."""
    transform = model.config.transform
    levels = tuple(replace(level, rate_weight=weight) for level, weight in zip(transform.levels, weights, strict=True))
    return Model(model.name, replace(model.config, transform=replace(transform, levels=levels)), model.card, model.files)


def point(model: Model, pictures: list[Image], quality: float, effort: int) -> tuple[tuple[float, float], float]:
    """Mean bpp and PSNR, and the seconds that a picture's codes took."""
    rate = psnr = seconds = 0.0
    for pixels in pictures:
        height, width = pixels.shape[:2]
        start = process_time()
        codes, extras = codec.encode(model, pixels, quality, effort)
        seconds += process_time() - start
        data = codec.pack_codes(codes, height, width, quality, model, extras)
        rate += metrics.bpp(len(data), height, width)
        psnr += metrics.psnr(metrics.mse(pixels, codec.decompress(data, model)))
    return (rate / len(pictures), psnr / len(pictures)), seconds / len(pictures)


if __name__ == "__main__":
    main()
