"""Measures a model, or one of Pillow's codecs, on a folder of pictures with real files.

python3 bench/rate_distortion.py FOLDER [--codec MODEL|jpeg|webp] [--qualities 0,25,50,75,100] [--card NAME]

Per quality: mean bpp of whole files, mean MSE, the mean of the pictures' PSNRs, the PSNR of the mean MSE, bytes per level.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from vqcodec import codec, image, metrics
from vqcodec.model import CARD, Model, load_model, models_folder
from vqcodec.transform import Image

PILLOW = {  # at their best settings for size
    "jpeg": {"format": "JPEG", "optimize": True, "progressive": True},
    "webp": {"format": "WEBP", "method": 6},
}


def through_model(model: Model, pixels: Image, quality: float) -> tuple[bytes, Image]:
    """File and reconstruction; checks that the codes survive."""
    codes = model.encode(pixels, quality)
    data = codec.pack_codes(codes, *pixels.shape[:2], quality, model)
    if any((a != b).any() for a, b in zip(codec.decode_codes(data, model), codes, strict=True)):
        raise AssertionError("the codes did not survive")
    return data, codec.decompress(data, model)


def through_pillow(name: str, pixels: Image, quality: float) -> tuple[bytes, Image]:
    """File and reconstruction of a codec that Pillow has."""
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, quality=int(quality), **PILLOW[name])
    return buffer.getvalue(), image.read(buffer.getvalue())


def measure(coder: Model | str, pictures: list[Path], quality: float) -> dict[str, Any]:
    """One row: every picture compressed, decompressed and compared."""
    rows: list[tuple[float, float]] = []
    levels: list[list[int]] = []
    for path in pictures:
        pixels = image.read(path.read_bytes(), path.name)
        data, restored = through_pillow(coder, pixels, quality) if isinstance(coder, str) else through_model(coder, pixels, quality)
        rows.append((metrics.bpp(len(data), *pixels.shape[:2]), metrics.mse(pixels, restored)))
        if not isinstance(coder, str):
            levels.append(list(codec.info(data, coder)["sections"].values()))
    mean_bpp, mean_mse = np.mean(rows, axis=0)
    row: dict[str, Any] = {
        "quality": quality,
        "bpp": round(float(mean_bpp), 4),
        "mse": round(float(mean_mse), 2),
        "psnr_mean": round(float(np.mean([metrics.psnr(mse) for _, mse in rows])), 3),
        "psnr_of_mean_mse": round(metrics.psnr(float(mean_mse)), 3),
    }
    if levels:
        row["bytes_per_level"] = [round(float(value)) for value in np.mean(levels, axis=0)]
    return row


def main() -> None:
    """Parses the arguments, prints a row per quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", default="default", help="a model's name or folder, jpeg or webp")
    parser.add_argument("--qualities", default="0,25,50,75,100")
    parser.add_argument("--card", metavar="NAME", help="store the table in the card of the model under this name")
    arguments = parser.parse_args()
    pictures = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    if not pictures:
        parser.error(f"no pictures in {arguments.folder}")
    coder = arguments.codec if arguments.codec in PILLOW else load_model(arguments.codec)
    table: list[dict[str, Any]] = []
    for quality in map(float, arguments.qualities.split(",")):
        table.append(measure(coder, pictures, quality))
        print(json.dumps(table[-1]), flush=True)
    if arguments.card:
        folder = Path(arguments.codec) if Path(arguments.codec).is_dir() else models_folder() / arguments.codec
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        card.setdefault("rate_distortion", {})[arguments.card] = {"pictures": len(pictures), "rows": table}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
