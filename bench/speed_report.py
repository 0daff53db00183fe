"""What bench/speed.py writes: the figures as JSON, a table in Markdown, a plot over the sizes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from vqcodec.bench.machine import describe, moment

if TYPE_CHECKING:
    from speed import Figures, Key

PLOTTED = ("encode", "adapt", "write", "read", "decode", "avif encode", "avif decode", "process: compress", "process: decompress")
POSITIONS = 1 / 32**2 + 1 / 16**2 + 1 / 8**2  # of all levels, for each pixel
Medians = dict["Key", float]


def write(out: Path, settings: dict[str, Any], figures: Figures) -> None:
    """Writes speed.json, speed.md and speed.png below `out`, and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    head = describe() | moment() | {"cores_allowed": len(os.sched_getaffinity(0)), "settings": settings}
    records = [key._asdict() | {"values": values} for key, values in figures.items()]
    (out / "speed.json").write_text(json.dumps(head | {"figures": records}, indent=1) + "\n", encoding="utf-8")
    medians = {key: median(values) for key, values in figures.items()}
    text = f"{heading(head)}\n\n{growth_table(medians)}\n\n{fixed_table(medians)}\n\n{ratio_table(medians)}\n"
    (out / "speed.md").write_text(text, encoding="utf-8")
    plot(medians, settings["clock"]).savefig(out / "speed.png", dpi=150)
    print(text)


def heading(head: dict[str, Any]) -> str:
    """Where and when."""
    machine, settings = head["machine"], head["settings"]
    clock = "seconds by the clock" if settings["clock"] == "wall" else "seconds of the processor, over all threads"
    where = f"{machine['processor']}, {head['cores_allowed']} of {machine['cores']} cores allowed, load {head['load']}"
    return f"{clock}, medians of {settings['runs']} runs; quality {settings['quality']:g}; {where}; commit {head['commit']}"


def growth_table(medians: Medians) -> str:
    """Every part that has sizes: a column each, seconds per megapixel at the largest, and the slope in log-log."""
    sizes = sorted({key.megapixels for key in medians if key.megapixels})
    rows = []
    for (tree, part, threads, unit), curve in curves(medians).items():
        cells = [f"{curve[size]:.3g}" if size in curve else "-" for size in sizes]
        largest = max(curve)
        growth = slope(curve)
        per = f"{curve[largest] / largest:.3g}"
        rows.append([tree, part, str(threads or "-"), unit, *cells, per, "-" if growth is None else f"{growth:.2f}"])
    return table(["code", "part", "threads", "unit", *(f"{size:g} MP" for size in sizes), "per MP", "grows as MP^"], rows)


def curves(medians: Medians) -> dict[tuple[str, str, int, str], dict[float, float]]:
    """For each tree, part, number of threads and unit: figures by megapixels."""
    found: dict[tuple[str, str, int, str], dict[float, float]] = {}
    for key, value in medians.items():
        if key.megapixels:
            found.setdefault((key.tree, key.part, key.threads, key.unit), {})[key.megapixels] = value
    return dict(sorted(found.items()))


def slope(curve: dict[float, float]) -> float | None:
    """The exponent of growth, by least squares over the logarithms; None for a single size."""
    if len(curve) < 2 or min(curve.values()) <= 0:
        return None
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def fixed_table(medians: Medians) -> str:
    """What does not depend on the size."""
    rows = [[key.tree, key.part, str(key.threads), f"{value:.3g}"] for key, value in sorted(medians.items()) if not key.megapixels]
    return table(["code", "part", "threads", "s"], rows)


def ratio_table(medians: Medians) -> str:
    """What compares within one call."""
    rows: list[list[str]] = []
    at = {tuple(key[:4]): value for key, value in medians.items()}

    def ratio(name: str, over: list[tuple[Any, ...]], under: list[tuple[Any, ...]]) -> None:
        if all(key in at for key in over + under):
            rows.append([name, f"{sum(at[key] for key in over) / sum(at[key] for key in under):.3g}"])

    for tree, threads, size in sorted({(key.tree, key.threads, key.megapixels) for key in medians}):
        where = f"{tree}, threads {threads}, {size:g} MP"
        for verb, all_of_ours in (("encode", ("encode", "adapt", "write")), ("decode", ("read", "decode"))):
            ours = [part for part in all_of_ours if part != "adapt" or (tree, part, threads, size) in at]
            parts = [(tree, part, threads, size) for part in ours]
            ratio(f"{' + '.join(ours)} / avif {verb} ({where})", parts, [(tree, f"avif {verb}", threads, size)])
        single = at.get((tree, "position, one by one", threads, 0))
        if single and (tree, "read", threads, size) in at:
            waves = at[tree, "read", threads, size] / (size * 1e6 * POSITIONS)
            rows.append([f"prior, a position one by one in a small crop / in wavefronts ({where})", f"{single / waves:.3g}"])
    for key in sorted(medians):
        if key.threads > 1:
            ratio(f"{key.part}, {key.megapixels:g} MP: {key.threads} threads / 1 ({key.tree})", [key[:4]], [(*key[:2], 1, key.megapixels)])
        if key.tree != "this":
            ratio(f"{key.part}, {key.megapixels:g} MP, {key.threads or 'all'} threads: {key.tree} / this", [key[:4]], [("this", *key[1:4])])
        if ", --jobs " in key.part and not key.part.endswith(" 1"):
            one = key.part.rsplit(" ", 1)[0] + " 1"
            ratio(f"{key.part} / --jobs 1 ({key.tree})", [key[:4]], [(key.tree, one, *key[2:4])])
    return table(["ratio", ""], rows)


def table(names: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows])


def plot(medians: Medians, clock: str) -> Figure:
    """Seconds over megapixels, both logarithmic; dashed with more than one thread, faint where it is other code."""
    figure = Figure((8, 5.2), layout="constrained")
    axes = figure.subplots()
    for (tree, part, threads, _), curve in curves(medians).items():
        if part in PLOTTED:
            style = "-" if threads == 1 else "--"
            label = f"{part}, {threads} threads" + ("" if tree == "this" else f", {tree}")
            colour = f"C{PLOTTED.index(part)}"
            axes.loglog(list(curve), list(curve.values()), f"o{style}", color=colour, alpha=1 if tree == "this" else 0.4, label=label)
    axes.set_xlabel("megapixels")
    axes.set_ylabel(f"seconds ({clock})")
    axes.grid(visible=True, which="both", color="#e4e4e4", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
