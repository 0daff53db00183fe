"""Writes a bench's figures of a model into the model's card: per quality the means over the pictures.

python3 bench/card.py RESULTS.json MODEL_DIR --name kodak
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vqcodec import files
from vqcodec.bench.peers import OURS
from vqcodec.errors import VQCodecError
from vqcodec.model import CARD, load_model


def table(results: dict[str, Any]) -> dict[str, Any]:
    """The rate-distortion table of our codec in a bench's results.json."""
    points = [point for point in results["summary"]["points"] if point["codec"] == OURS]
    rows = [
        {
            "quality": point["setting"],
            "bpp": round(point["bpp"], 4),
            "mse": round(point["mse"], 2),
            "psnr_mean": round(point["psnr_mean"], 3),
            "psnr_of_mean_mse": round(point["psnr_of_mean_mse"], 3),
            "bytes_per_level": [round(size) for size in point["level_bytes"]],
        }
        for point in sorted(points, key=lambda point: point["setting"])
    ]
    return {"pictures": len(results["summary"]["images"]), "rows": rows}


def main() -> None:
    """Parses the arguments, refuses another model's results, writes the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("model", type=Path, help="the model's folder")
    parser.add_argument("--name", required=True, help="of the table in the card, such as kodak")
    arguments = parser.parse_args()
    try:
        found = json.loads(arguments.results.read_text(encoding="utf-8"))
        measured, identity = found["head"]["codecs"][OURS]["fixed"], load_model(arguments.model).id.hex()
        rows = table(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{arguments.results} is no results.json of a bench with {OURS}: {error}")
    except VQCodecError as error:
        parser.error(str(error))
    if not measured.endswith(f"({identity})"):  # of another model, or of another effort, which the bench says after it
        parser.error(f"{arguments.results} measured {measured}, and {arguments.model} is {identity}; run the bench with its defaults again")
    path = arguments.model / CARD
    card = json.loads(path.read_text(encoding="utf-8"))
    card.setdefault("rate_distortion", {})[arguments.name] = rows
    files.write(str(path), (json.dumps(card, indent=2) + "\n").encode(), True)
    print(f"{path}: {len(rows['rows'])} qualities on {rows['pictures']} pictures, as {arguments.name}")


if __name__ == "__main__":
    main()
