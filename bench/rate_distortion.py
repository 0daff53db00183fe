"""Measures a model on a folder of pictures with real files, and optionally writes the table into the model's card.

python3 bench/rate_distortion.py FOLDER [--model MODEL] [--qualities 0,25,50,75,100] [--card NAME]

Per quality: mean bpp of whole files, mean MSE, the mean of the pictures' PSNRs, the PSNR of the mean MSE, bytes per level.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from vqcodec import codec, image, metrics
from vqcodec.model import CARD, Model, load_model, models_folder


def measure(model: Model, pictures: list[Path], quality: float) -> dict[str, Any]:
    """One row: every picture compressed, decompressed and compared; checks that the codes survive."""
    rows: list[tuple[float, float]] = []
    levels: list[list[int]] = []
    for path in pictures:
        pixels = image.read(path.read_bytes(), path.name)
        codes = model.encode(pixels, quality)
        data = codec.pack_codes(codes, *pixels.shape[:2], quality, model)
        if any((a != b).any() for a, b in zip(codec.decode_codes(data, model), codes, strict=True)):
            raise AssertionError(f"{path.name}: the codes did not survive")
        rows.append((metrics.bpp(len(data), *pixels.shape[:2]), metrics.mse(pixels, codec.decompress(data, model))))
        levels.append(list(codec.info(data, model)["sections"].values()))
    mean_bpp, mean_mse = np.mean(rows, axis=0)
    return {
        "quality": quality,
        "bpp": round(float(mean_bpp), 4),
        "mse": round(float(mean_mse), 2),
        "psnr_mean": round(float(np.mean([metrics.psnr(mse) for _, mse in rows])), 3),
        "psnr_of_mean_mse": round(metrics.psnr(float(mean_mse)), 3),
        "bytes_per_level": [round(float(value)) for value in np.mean(levels, axis=0)],
    }


def main() -> None:
    """Parses the arguments, prints a row per quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--qualities", default="0,25,50,75,100")
    parser.add_argument("--card", metavar="NAME", help="store the table in the card of the model under this name")
    arguments = parser.parse_args()
    pictures = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    if not pictures:
        parser.error(f"no pictures in {arguments.folder}")
    model = load_model(arguments.model)
    table: list[dict[str, Any]] = []
    for quality in map(float, arguments.qualities.split(",")):
        table.append(measure(model, pictures, quality))
        print(json.dumps(table[-1]), flush=True)
    if arguments.card:
        folder = Path(arguments.model) if Path(arguments.model).is_dir() else models_folder() / arguments.model
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        card.setdefault("rate_distortion", {})[arguments.card] = {"pictures": len(pictures), "rows": table}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
