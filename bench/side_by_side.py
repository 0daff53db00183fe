"""Draws a picture beside its reconstruction, with bpp and PSNR below: the README's picture.

python3 bench/side_by_side.py PICTURE QUALITY OUT.png [--model MODEL]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vqcodec import codec, image, metrics
from vqcodec.model import load_model

GAP, CAPTION = 8, 24  # pixels


def main() -> None:
    """Parses the arguments and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("quality", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    original = image.read(arguments.picture.read_bytes(), arguments.picture.name)
    data = codec.compress(original, arguments.quality, arguments.model)
    restored = codec.decompress(data, arguments.model)
    height, width = original.shape[:2]
    bpp, psnr = metrics.bpp(len(data), height, width), metrics.psnr(metrics.mse(original, restored))
    canvas = np.full((height + CAPTION, 2 * width + GAP, 3), 255, np.uint8)
    canvas[:height, :width], canvas[:height, width + GAP :] = original, restored
    drawn = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(16)
    draw.text((4, height + 3), f"original, {width} x {height}", "black", font)
    caption = f"quality {arguments.quality:g}: {len(data):,} bytes, {bpp:.3f} bpp, {psnr:.2f} dB"
    draw.text((width + GAP + 4, height + 3), caption, "black", font)
    facts = PngInfo()
    facts.add_text("model", load_model(arguments.model).id.hex())  # tests/test_figures.py compares it
    drawn.save(arguments.out, optimize=True, pnginfo=facts)
    print(caption)


if __name__ == "__main__":
    main()
