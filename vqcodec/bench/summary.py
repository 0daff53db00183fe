"""Rows to what people compare: a point per codec and setting, and BD-rates. Published points enter here too."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bjontegaard import bd_rate as bjontegaard_rate

from vqcodec import metrics
from vqcodec.bench.peers import OURS
from vqcodec.bench.rows import Row
from vqcodec.errors import BenchError

REFERENCE_COLUMNS = {"codec", "bpp", "psnr", "ms_ssim", "source"}


@dataclass(frozen=True)
class Point:
    """A codec at a setting, over all pictures. Times are medians in seconds per megapixel; level bytes are means.

    `*_cpu_*` is the processor's time over all threads; None where the rows do not have it.
    """

    codec: str
    setting: float
    bpp: float
    mse: float
    psnr_mean: float  # mean of the pictures' PSNRs, as papers print it
    psnr_of_mean_mse: float
    ms_ssim: float | None
    encode_s_per_megapixel: float
    decode_s_per_megapixel: float
    encode_cpu_s_per_megapixel: float | None
    decode_cpu_s_per_megapixel: float | None
    level_bytes: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    """A published point; PSNR in dB is the mean of the pictures' PSNRs."""

    codec: str
    bpp: float
    psnr: float
    ms_ssim: float | None
    source: str


@dataclass(frozen=True)
class BDRate:
    """Bits that vqcodec spends beyond the anchor at equal PSNR, in per cent, over `low`..`high` dB; or a remark."""

    anchor: str
    percent: float | None
    low: float | None
    high: float | None
    remark: str


@dataclass(frozen=True)
class Summary:
    """All of a table. `images` went through every codec at every setting; `left_out` did not and count nowhere."""

    images: tuple[str, ...]
    left_out: tuple[str, ...]
    points: tuple[Point, ...]
    rates: tuple[BDRate, ...]
    reference: tuple[Reference, ...]

    def curve(self, codec: str) -> list[Point]:
        """The codec's points from few bits to many."""
        return sorted((point for point in self.points if point.codec == codec), key=lambda point: point.bpp)

    @property
    def codecs(self) -> list[str]:
        """Names of the codecs that were measured, in the order of the table."""
        return list(dict.fromkeys(point.codec for point in self.points))


def summarise(rows: Sequence[Row], reference: Sequence[Reference] = ()) -> Summary:
    """Averages over the pictures that every codec and setting has, so that all points speak of the same pictures."""
    settings = list(dict.fromkeys((row.codec, row.setting) for row in rows))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.image] = counts.get(row.image, 0) + 1
    images = sorted(name for name, count in counts.items() if count == len(settings))
    chosen = [row for row in rows if row.image in set(images)]
    points = [_point([row for row in chosen if (row.codec, row.setting) == key]) for key in settings if images]
    left_out = tuple(sorted(set(counts) - set(images)))
    rates = _rates(points, reference)
    return Summary(tuple(images), left_out, tuple(points), tuple(rates), tuple(reference))


def _point(rows: list[Row]) -> Point:
    mse = float(np.mean([row.mse for row in rows]))
    similarities = [row.ms_ssim for row in rows if row.ms_ssim is not None]
    levels = [sizes for row in rows if (sizes := row.level_bytes)]
    return Point(
        codec=rows[0].codec,
        setting=rows[0].setting,
        bpp=float(np.mean([row.bpp for row in rows])),
        mse=mse,
        psnr_mean=float(np.mean([row.psnr for row in rows])),
        psnr_of_mean_mse=metrics.psnr(mse),
        ms_ssim=float(np.mean(similarities)) if len(similarities) == len(rows) else None,
        **{f"{name}_per_megapixel": _speed(rows, name) for name in ("encode_s", "decode_s", "encode_cpu_s", "decode_cpu_s")},
        level_bytes=tuple(float(value) for value in np.mean(levels, axis=0)) if levels else (),
    )


def _speed(rows: list[Row], name: str) -> Any:
    """Median seconds per megapixel of one of the rows' times, where all have it."""
    seconds = [getattr(row, name) for row in rows]
    return None if None in seconds else median(value / row.width / row.height * 1e6 for value, row in zip(seconds, rows, strict=True))


def _rates(points: list[Point], reference: Sequence[Reference]) -> list[BDRate]:
    """vqcodec against every other curve."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        curves.setdefault(point.codec, []).append((point.bpp, point.psnr_mean))
    ours = curves.pop(OURS, [])
    for published in reference:
        curves.setdefault(published.codec, []).append((published.bpp, published.psnr))
    return [bd_rate(name, curve, ours) for name, curve in curves.items()] if ours else []


def bd_rate(name: str, anchor: list[tuple[float, float]], test: list[tuple[float, float]]) -> BDRate:
    """BD-rate of `test` against `anchor`, each (bpp, PSNR), by piecewise cubic interpolation inside both curves only."""
    curves = [sorted(anchor), sorted(test)]
    for curve, whose in zip(curves, (name, OURS), strict=True):
        if len(curve) < 2:
            return BDRate(name, None, None, None, f"{whose} has fewer than two points")
        if any(after[1] <= before[1] or not math.isfinite(after[1]) for before, after in pairwise(curve)):
            return BDRate(name, None, None, None, f"the curve of {whose} does not rise everywhere")
    low, high = max(curve[0][1] for curve in curves), min(curve[-1][1] for curve in curves)
    if low >= high:
        return BDRate(name, None, None, None, "no overlap")
    (rates_a, psnrs_a), (rates_b, psnrs_b) = (np.array(curve).T for curve in curves)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a narrow overlap, which the printed range shows
        percent = bjontegaard_rate(rates_a, psnrs_a, rates_b, psnrs_b, method="pchip", require_matching_points=False, min_overlap=0)
    return BDRate(name, float(percent), low, high, "")


def read_reference(path: Path) -> list[Reference]:
    """Published points from a CSV with the columns codec, bpp, psnr, ms_ssim (may be empty) and source.

    Raises `BenchError` for a file that is not so.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        table = csv.DictReader(line for line in lines if not line.startswith("#"))
        if set(table.fieldnames or ()) != REFERENCE_COLUMNS:
            raise ValueError(f"it needs the columns {', '.join(sorted(REFERENCE_COLUMNS))}")
        return [
            Reference(row["codec"], float(row["bpp"]), float(row["psnr"]), float(row["ms_ssim"]) if row["ms_ssim"] else None, row["source"])
            for row in table
        ]
    except (OSError, ValueError, TypeError) as error:
        raise BenchError(f"{path} is no table of published points: {error}") from error


def write_json(path: Path, head: dict[str, Any], rows: list[Row], summary: Summary, failures: list[str]) -> None:
    """Head, summary, failures and rows as one JSON object; an infinite PSNR is null."""
    content = {"head": head, "summary": asdict(summary), "failures": failures, "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
