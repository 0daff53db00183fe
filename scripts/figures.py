"""Writes what the README says of the codec's quality from the results of two benches, and with them the card and the picture.

python3 scripts/figures.py          README, the card of the shipped model, docs/pictures/astronaut.png
python3 scripts/figures.py --check  compares the README only; exit code 1 where it says something else
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results" / "kodak" / "results.json"
THOROUGH = ROOT / "bench" / "results" / "kodak-effort9" / "results.json"  # the same with the longest search
BEGIN, END = "<!-- figures: `python3 scripts/figures.py` writes what follows -->", "<!-- end of the figures -->"
OURS = "vqcodec"
NAMES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jpeg2000": "JPEG 2000", "jxl": "JPEG XL", "heic": "HEIC"}

Curve = list[tuple[float, float]]  # (log2 of bpp, PSNR), from few bits to many
Point = dict[str, Any]


def block(results: dict[str, Any], thorough: dict[str, Any]) -> str:
    """All that the README says of the results of a bench, and of one with a longer search, in Markdown."""
    points = results["summary"]["points"]
    codecs = list(dict.fromkeys(point["codec"] for point in points if point["codec"] != OURS))
    curves = {name: curve([point for point in points if point["codec"] == name]) for name in [OURS, *codecs]}
    published: dict[str, list[Point]] = {}
    for point in results["summary"]["reference"]:
        published.setdefault(point["codec"], []).append(point | {"psnr_mean": point["psnr"]})
    curves |= {name: curve(found) for name, found in published.items()}
    ours = sorted((point for point in points if point["codec"] == OURS), key=lambda point: point["setting"])
    return "\n\n".join(
        [
            measured(results),
            quality_table(ours, {name: curves[name] for name in codecs}),
            rate_table(results["summary"]["rates"], {rate["anchor"]: rate for rate in thorough["summary"]["rates"]}, curves, published),
            command_times(results["rows"], results["head"]["machine"]["cores"], results["head"]["codecs"][OURS]),
            longer_search(thorough),
        ]
    )


def measured(results: dict[str, Any]) -> str:
    """What was measured and where."""
    head, count = results["head"], len(results["summary"]["images"])
    machine, ours = head["machine"], head["codecs"][OURS]
    where = f"{machine['processor']} with {machine['cores']} cores"
    return (
        f"{count} photographs, {ours['fixed']}, {where}, {ours['started'][:10]}. The peers' columns are their mean PSNR\n"
        "at the rate of that line, between their measured points (straight over the logarithm of the rate); `-`: not measured there."
    )


def quality_table(ours: list[Point], peers: dict[str, Curve]) -> str:
    """Our points, and what the peers reach at the same rates."""
    names = ["quality", "bpp", "MSE", "PSNR", *(NAMES.get(name, name) for name in peers)]
    rows = []
    for point in ours:
        reached = [interpolate(peer, math.log2(point["bpp"])) for peer in peers.values()]
        figures = f"{point['setting']:g}", f"{point['bpp']:.3f}", f"{point['mse']:.1f}", f"**{point['psnr_mean']:.2f}**"
        rows.append([*figures, *("-" if psnr is None else f"{psnr:.2f}" for psnr in reached)])
    return table(names, rows)


def rate_table(
    rates: list[dict[str, Any]], longer: dict[str, dict[str, Any]], curves: dict[str, Curve], others: dict[str, list[Point]]
) -> str:
    """BD-rates, those of the longer search by the codecs' names, and the rates at which ours has the higher PSNR."""
    rows = []
    for rate in rates:
        name = rate["anchor"]
        shown = f"{name}, {origin(others[name])}" if name in others else NAMES.get(name, name)
        bounds = "-" if rate["percent"] is None else f"{rate['low']:.1f} to {rate['high']:.1f} dB"
        rows.append([shown, percent(rate), percent(longer[name]) if name in longer else "-", bounds, ahead(curves[OURS], curves[name])])
    return table(["against", "BD-rate", "with `--effort 9`", "over", "vqcodec has the higher PSNR"], rows)


def origin(points: list[Point]) -> str:
    """Whether figures of others are a paper's, or were measured without this code (bench/reference/README.md)."""
    return "measured elsewhere" if points[0]["source"].startswith("measured") else "published"


def percent(rate: dict[str, Any]) -> str:
    """A BD-rate, or why there is none."""
    return str(rate["remark"]) if rate["percent"] is None else f"{rate['percent']:+.1f} %"


def longer_search(thorough: dict[str, Any]) -> str:
    """The points of the longer search, and what it takes."""
    ours = sorted((point for point in thorough["summary"]["points"] if point["codec"] == OURS), key=lambda point: point["setting"])
    seconds = median(row["process_encode_s"] for row in thorough["rows"] if row["process_encode_s"] is not None)
    points = ", ".join(f"{point['bpp']:.3f}/{point['psnr_mean']:.2f}" for point in ours)
    return f"With `--effort 9` that `compress` took {seconds:.1f} s, and the same qualities give {points} bpp/dB. Decoding stays as it is."


def command_times(rows: list[dict[str, Any]], cores: int, ours: dict[str, Any]) -> str:
    """Whole processes of the command line, and whether other work ran beside them."""
    timed = [row for row in rows if row["process_encode_s"] is not None]
    first = timed[0]
    seconds = [median(row[f"process_{name}_s"] for row in timed) for name in ("encode", "decode")]
    size = f"{first['width']} x {first['height']} pixels"
    took = f"took {seconds[0]:.2f} s, `decompress` {seconds[1]:.2f} s"
    return f"A whole `vqcodec compress` of {first['image']} ({size}) {took}: medians over the qualities{_busy(cores, ours)}."


def _busy(cores: int, ours: dict[str, Any]) -> str:
    """What a reader must know of times that were not taken on a free machine."""
    if ours["load"] + ours["jobs"] <= cores:
        return ""
    return f", on a machine with much other work (load {ours['load']:.0f} on {cores} cores), so that only the order of magnitude counts"


def curve(points: list[Point]) -> Curve:
    """The points of a codec over the logarithm of the rate."""
    return sorted((math.log2(point["bpp"]), point["psnr_mean"]) for point in points)


def interpolate(points: Curve, place: float) -> float | None:
    """PSNR at a rate between the points; None outside."""
    for (before, low), (after, high) in pairwise(points):
        if before <= place <= after:
            return low + (high - low) * (place - before) / (after - before)
    return None


def ahead(ours: Curve, theirs: Curve) -> str:
    """The rates at which ours has the higher PSNR, in words."""
    first, last = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
    if first >= last:
        return "no rate in common"
    places = sorted({first, last, *(place for place, _ in ours + theirs if first < place < last)})
    leads = [(place, (interpolate(ours, place) or 0) - (interpolate(theirs, place) or 0)) for place in places]
    spans: list[list[float]] = []
    for (start, lead), (stop, later) in pairwise(leads):
        if max(lead, later) <= 0:
            continue
        zero = start + (stop - start) * lead / (lead - later) if min(lead, later) < 0 else start  # straight in between
        span = [start if lead >= 0 else zero, stop if later >= 0 else zero]
        if spans and spans[-1][1] == span[0]:
            spans[-1][1] = span[1]
        else:
            spans.append(span)
    if spans == [[first, last]]:
        return f"everywhere ({bits(first)} to {bits(last)})"
    return " and ".join(f"{bits(start)} to {bits(stop)}" for start, stop in spans) or f"nowhere ({bits(first)} to {bits(last)})"


def bits(place: float) -> str:
    """A rate in words."""
    return f"{2**place:.2f} bpp"


def table(names: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows])


def insert(readme: str, figures: str) -> str:
    """The README with these figures between its marks; raises `ValueError` where it has no marks."""
    head, _, rest = readme.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"{README.name} lacks the lines '{BEGIN}' and '{END}'")
    return f"{head}{BEGIN}\n\n{figures}\n\n{END}{tail}"


def main(arguments: list[str]) -> None:
    """Writes or compares."""
    readme = README.read_text(encoding="utf-8")
    new = insert(readme, block(*(json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, THOROUGH))))
    if arguments == ["--check"]:
        results = " and ".join(str(path.relative_to(ROOT)) for path in (RESULTS, THOROUGH))
        sys.exit(f"{README.name} says something else than {results}; run scripts/figures.py" if new != readme else 0)
    if arguments:
        sys.exit(__doc__)
    README.write_text(new, encoding="utf-8")
    commands = [
        ["bench/card.py", str(RESULTS), "models/default", "--name", "kodak"],
        ["bench/side_by_side.py", "tests/images/astronaut.png", "60", "docs/pictures/astronaut.png"],
    ]
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        if done.returncode:
            sys.exit(f"{README.name} is written, but {command[0]} failed, see above; it needs this project installed")


if __name__ == "__main__":
    main(sys.argv[1:])
