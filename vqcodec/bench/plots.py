"""The plots of a report, drawn by matplotlib without a window: each function returns the bytes of a PNG."""

from __future__ import annotations

import io
import math

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vqcodec.bench.peers import OURS
from vqcodec.bench.summary import Point, Summary
from vqcodec.config import LEVELS

SIZE = (7.2, 4.6)  # inches
DPI = 150
COLOURS = {
    OURS: "#c4204f",
    "jpeg": "#8c564b",
    "webp": "#e08214",
    "avif": "#1b7f4d",
    "jpeg2000": "#2c7fb8",
    "jxl": "#6a51a3",
    "heic": "#4d4d4d",
}
LEVEL_COLOURS = ("#7a0c2e", "#c4204f", "#f0a3b5")
GRAYS = ("#b0b0b0", "#707070")  # published curves, in turns, with the dashes
DASHES = ("--", ":", "-.", (0, (6, 1)), (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), "-")


def draw_all(summary: Summary) -> dict[str, bytes]:
    """PNG bytes of each plot that the summary has figures for, by its file's name."""
    plots = {"bpp-mse.png": _rate_mse(summary), "bpp-psnr.png": _rate_psnr(summary)}
    if _timed(summary):
        plots["speed.png"] = _speed(summary)
    if any(point.ms_ssim is not None for point in summary.points):
        plots["bpp-msssim.png"] = _rate_ms_ssim(summary)
    if any(point.level_bytes for point in summary.points):
        plots["levels.png"] = _levels(summary)
    return plots


def _rate_mse(summary: Summary) -> bytes:
    figure, axes = _axes("bits per pixel of whole files", "mean squared error, 8-bit RGB")
    for codec in summary.codecs:
        _curve(axes, codec, [(point.bpp, point.mse) for point in summary.curve(codec)])
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _label_log(axis)
    axes.set_title("Lower and further left is better", loc="left", fontsize=9)
    return _png(figure)


def _rate_psnr(summary: Summary) -> bytes:
    figure, axes = _axes("bits per pixel of whole files", "PSNR in dB, mean over pictures")
    for codec in summary.codecs:
        _curve(axes, codec, [(point.bpp, point.psnr_mean) for point in summary.curve(codec)])
    published: dict[str, list[tuple[float, float]]] = {}
    for point in summary.reference:
        published.setdefault(point.codec, []).append((point.bpp, point.psnr))
    _published(axes, summary, published)
    axes.set_title("Higher and further left is better", loc="left", fontsize=9)
    return _png(figure)


def _rate_ms_ssim(summary: Summary) -> bytes:
    figure, axes = _axes("bits per pixel of whole files", "MS-SSIM in dB, -10 log10(1 - MS-SSIM)")
    for codec in summary.codecs:
        _curve(axes, codec, [(point.bpp, _decibel(point.ms_ssim)) for point in summary.curve(codec)])
    published: dict[str, list[tuple[float, float]]] = {}
    for point in summary.reference:
        if point.ms_ssim is not None:
            published.setdefault(point.codec, []).append((point.bpp, _decibel(point.ms_ssim)))
    _published(axes, summary, published)
    axes.set_title("Higher and further left is better", loc="left", fontsize=9)
    return _png(figure)


def _decibel(similarity: float | None) -> float:
    return math.nan if similarity is None or similarity >= 1 else -10 * math.log10(1 - similarity)


def _timed(summary: Summary) -> list[Point]:
    """Each codec's setting in the middle, where its rows have the processor's time; the first codec last."""
    points = [summary.curve(codec)[len(summary.curve(codec)) // 2] for codec in reversed(summary.codecs)]
    return [point for point in points if point.encode_cpu_s_per_megapixel and point.decode_cpu_s_per_megapixel]


def _speed(summary: Summary) -> bytes:
    """Bars: the processor's seconds per megapixel, at each codec's setting in the middle."""
    figure, axes = _axes("processor seconds per megapixel over all threads, warm, in process (log scale)", "")
    points = _timed(summary)
    for offset, name, tone in ((0.2, "encode", 1.0), (-0.2, "decode", 0.5)):
        seconds = [getattr(point, f"{name}_cpu_s_per_megapixel") for point in points]
        bars = axes.barh(
            [index + offset for index in range(len(points))], seconds, 0.38, color=[_colour(p.codec) for p in points], alpha=tone
        )
        axes.bar_label(bars, [f" {name} {value:.3g} s" for value in seconds], fontsize=8)
    axes.set_yticks(range(len(points)), [point.codec for point in points])
    axes.set_xscale("log")
    _label_log(axes.xaxis)
    axes.margins(x=0.25)
    axes.grid(visible=False, axis="y")
    return _png(figure, legend=False)


def _levels(summary: Summary) -> bytes:
    """Stacked bars: bytes of each level at each quality of our codec."""
    figure, axes = _axes("quality", "bytes, mean over pictures")
    points = [point for point in summary.curve(OURS) if point.level_bytes]
    below = [0.0] * len(points)
    for level, name in enumerate(LEVELS):
        heights = [point.level_bytes[level] for point in points]
        axes.bar(range(len(points)), heights, 0.7, below, color=LEVEL_COLOURS[level], label=name)
        below = [sum(pair) for pair in zip(below, heights, strict=True)]
    axes.set_xticks(range(len(points)), [f"{point.setting:g}\n{point.bpp:.3f} bpp" for point in points])
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper right", ncols=len(LEVELS), frameon=False, fontsize=8)
    return _png(figure, legend=False)


def _label_log(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of each decade."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(SIZE, DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(axes: Axes, codec: str, points: list[tuple[float, float]]) -> None:
    ours = codec == OURS
    across, up = [point[0] for point in points], [point[1] for point in points]
    axes.plot(
        across,
        up,
        "o-",
        color=_colour(codec),
        label=codec,
        linewidth=2.6 if ours else 1.3,
        markersize=5 if ours else 3,
        zorder=3 if ours else 2,
    )


def _published(axes: Axes, summary: Summary, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Published curves in gray, cut to the rates that were measured here."""
    limit = 1.1 * max(point.bpp for point in summary.points)
    for index, (name, points) in enumerate(curves.items()):
        shown = sorted(point for point in points if point[0] <= limit)
        axes.plot(
            [p[0] for p in shown],
            [p[1] for p in shown],
            linestyle=DASHES[index % len(DASHES)],
            color=GRAYS[index % 2],
            linewidth=1.2,
            label=name,
            zorder=1,
        )


def _colour(codec: str) -> str:
    return COLOURS[codec]


def _png(figure: Figure, *, legend: bool = True) -> bytes:
    if legend:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
