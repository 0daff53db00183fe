"""The pictures of a report: crops of every codec at equal rate, and our codec's levels one by one.

Shapes: images uint8 `(H, W, 3)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vqcodec import codec, container, metrics
from vqcodec.bench.peers import OURS, Coder
from vqcodec.bench.rows import level_sizes
from vqcodec.config import LEVELS
from vqcodec.container import HEADER_BYTES
from vqcodec.errors import VQCodecError
from vqcodec.model import load_model
from vqcodec.tiles import Image

SIDE = 384  # pixels of a crop
SEARCH_STEPS = 9  # halvings of a codec's range of settings
CLOSE = 0.01  # of the rate: near enough to stop the search
TOLERANCE = 0.1  # of the rate: further off, a caption says so
STEP = 32  # pixels between the windows that are tried


@dataclass(frozen=True)
class Shown:
    """A crop with the figures of its whole picture. `equal` is false where the codec cannot reach the rate."""

    label: str
    crop: Image
    bpp: float
    psnr: float
    equal: bool = True


def side_by_side(pixels: Image, coders: list[Coder], setting: float) -> list[Shown]:
    """The original, ours at `setting`, and each peer as near as it comes to the rate that ours has there."""
    ours = next(coder for coder in coders if coder.name == OURS)
    target = len(ours.compress(pixels, setting))
    window = detailed_window(pixels)
    shown = [Shown("original", pixels[window], 24.0, math.inf)]
    for coder in coders:
        try:
            chosen = setting if coder.name == OURS else setting_for(coder, pixels, target)
            data = coder.compress(pixels, chosen)
            restored = coder.decompress(data)
        except VQCodecError:
            raise
        except Exception:  # noqa: S112 - a peer that stumbles over this picture is missing beside it
            continue
        equal = abs(len(data) / target - 1) <= TOLERANCE
        label = f"{coder.name} {coder.knob} {chosen:.4g}"
        shown.append(Shown(label, restored[window], _bpp(len(data), pixels), metrics.psnr(metrics.mse(pixels, restored)), equal))
    return shown


def setting_for(coder: Coder, pixels: Image, target: int) -> float:
    """The setting whose file is nearest to `target` bytes, by halving the codec's range: sizes rise along `ends`."""
    smallest, largest = coder.ends
    low, high = 0.0, 1.0  # positions between the ends
    best: tuple[int, float] | None = None
    for _ in range(SEARCH_STEPS):
        position = (low + high) / 2
        setting = _between(smallest, largest, position, coder.whole)
        size = len(coder.compress(pixels, setting))
        if best is None or abs(size - target) < best[0]:
            best = abs(size - target), setting
        if best[0] <= target * CLOSE:
            break
        low, high = (low, position) if size > target else (position, high)
    assert best is not None
    return best[1]


def _between(smallest: float, largest: float, position: float, whole: bool) -> float:
    """A setting between the ends: geometrically where it falls as files grow (ratios, distances), else in even steps."""
    if smallest > largest:
        return float(smallest * (largest / smallest) ** position)
    setting = smallest + (largest - smallest) * position
    return float(round(setting)) if whole else float(setting)


def levels(pixels: Image, model: str, setting: float) -> list[Shown]:
    """What a file's beginning shows: top; top and middle; all three levels. The rate counts the header too."""
    opened = load_model(model)
    height, width = pixels.shape[:2]
    data = codec.compress(pixels, setting, opened)
    codes, adaptation = codec.decode_codes(data, opened), container.unpack(data).extras.adaptation
    sizes = list(level_sizes(data).values())
    shown: list[Shown] = []
    for count in range(1, len(LEVELS) + 1):
        restored = opened.decode(codes, height, width, setting, count, adaptation)
        rate = _bpp(HEADER_BYTES + sum(sizes[:count]) if count < len(LEVELS) else len(data), pixels)
        shown.append(Shown(" + ".join(LEVELS[:count]), restored, rate, metrics.psnr(metrics.mse(pixels, restored))))
    return shown


def detailed_window(pixels: Image) -> tuple[slice, slice]:
    """Rows and columns of the window with the strongest gradients, at most `SIDE` pixels a side."""
    height, width = pixels.shape[:2]
    gray = pixels.astype(np.float32).mean(2)
    strength = np.zeros((height + 1, width + 1))
    strength[1:height, 1:width] = np.abs(np.diff(gray, axis=0))[:, 1:] + np.abs(np.diff(gray, axis=1))[1:]
    sums = strength.cumsum(0).cumsum(1)
    tall, wide = min(SIDE, height), min(SIDE, width)

    def total(row: int, column: int) -> float:
        return float(sums[row + tall, column + wide] - sums[row, column + wide] - sums[row + tall, column] + sums[row, column])

    corners = [(row, column) for row in range(0, height - tall + 1, STEP) for column in range(0, width - wide + 1, STEP)]
    row, column = max(corners, key=lambda corner: total(*corner))
    return slice(row, row + tall), slice(column, column + wide)


def _bpp(size: int, pixels: Image) -> float:
    return metrics.bpp(size, pixels.shape[0], pixels.shape[1])
