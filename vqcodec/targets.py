"""Compression to a rate or to a distortion: a search for the quality that comes closest to a target and is not worse.

Rate and distortion are taken as monotonous in the quality, which they are but for steps of a few bytes. Each try runs the
encoder once, and then the entropy coder for a rate, or the decoder for a distortion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import itemgetter

from vqcodec import channels, metrics
from vqcodec.codec import NO_METADATA, ModelLike, encode, open_model, pack_codes, take_apart
from vqcodec.config import DEFAULT_EFFORT, QUALITY_STEPS
from vqcodec.container import Metadata
from vqcodec.errors import TargetError
from vqcodec.limits import MAX_PIXELS
from vqcodec.tiles import Image

KINDS = ("bpp", "size", "psnr", "mse")
TOLERANCE = 0.002  # of the size or the MSE: closer to the target than this, a better quality is not looked for
TRUNCATION = 0.01  # of what is left, towards its middle: so both ends come nearer


def compress_to(
    image: Image,
    kind: str,
    value: float,
    model: ModelLike = "default",
    metadata: Metadata = NO_METADATA,
    max_pixels: int = MAX_PIXELS,
    effort: int = DEFAULT_EFFORT,
) -> bytes:
    """Compresses an image, of any kind that `compress` takes, to a target: the bytes of a `.vq` file.

    `kind` is "bpp" or "size" (bits per pixel or bytes of the whole file, at most `value`), "psnr" (dB, at least `value`) or
    "mse" (at most `value`); distortion is that of the colours. `effort` is as in `compress`.
    Raises `TargetError` where no quality reaches the target, else as `compress`.
    """
    if kind not in KINDS or not value > 0:
        raise ValueError(f"a target is one of {', '.join(KINDS)} with a value above 0, not {kind} {value}")
    rgb, extras = take_apart(image, metadata, max_pixels)
    opened, (height, width) = open_model(model), rgb.shape[:2]
    rate = kind in ("bpp", "size")
    limit = value * height * width / 8 if kind == "bpp" else 255**2 * 10.0 ** (-value / 10) if kind == "psnr" else value
    closest: list[tuple[float, Callable[[], bytes]]] = []  # one try and how to write it: the codes of them all would take much memory

    def measure(step: int) -> float:
        quality = step if rate else QUALITY_STEPS - step
        codes, beside = encode(opened, rgb, quality / 100, effort, extras)
        pack = partial(pack_codes, codes, height, width, quality / 100, opened, beside)
        if rate:
            data = pack()
            measured, pack = float(len(data)), partial(bytes, data)
        else:
            restored = opened.decode(codes, height, width, quality / 100, adaptation=beside.adaptation)
            measured = metrics.mse(channels.join(rgb, extras.gray, None), channels.join(restored, extras.gray, None))
        if measured <= limit and (not closest or measured > closest[0][0]):  # as `search` chooses
            closest[:] = [(measured, pack)]
        return measured

    _, reached = search(measure, limit)
    if not closest:
        raise TargetError(_unreachable(kind, reached, height, width))
    return closest[0][1]()


def search(measure: Callable[[int], float], limit: float) -> tuple[int, float]:
    """Looks among 0..`QUALITY_STEPS` for the step whose rising `measure` is closest to `limit` and not above it.

    Returns the step and its measure: step 0 where even that is above the limit. The logarithm of the measure is nearly linear in the
    step, so each try interpolates it, a little towards the middle, but never so far from there that bisection would end sooner
    (Oliveira and Takahashi 2020, "An enhancement of the bisection method average performance preserving minmax optimality").
    """
    best = 0, measure(0)
    if best[1] > limit:
        return best
    low, high = best, (QUALITY_STEPS + 1, math.inf)
    step, slack = QUALITY_STEPS, 1 << QUALITY_STEPS.bit_length()  # a target beyond what the model can do ends at once
    while high[0] - low[0] > 1 and best[1] < (1 - TOLERANCE) * limit:
        value = measure(step)
        if value <= limit:
            low = step, value
            best = max(best, low, key=itemgetter(1))
        else:
            high = step, value
        slack >>= 1
        step = _between(low, high, (1 - TOLERANCE / 2) * limit, slack)
    return best


def _between(low: tuple[int, float], high: tuple[int, float], aim: float, slack: int) -> int:
    """A step between two others with their measures: where the measure may be `aim`, but what is left then no wider than `slack`."""
    width, middle = high[0] - low[0], (low[0] + high[0]) / 2
    found = middle
    if 0 < low[1] < aim < high[1] < math.inf:
        found = low[0] + width * math.log(aim / low[1]) / math.log(high[1] / low[1])
        found += min(TRUNCATION * width, abs(middle - found)) * math.copysign(1, middle - found)
    reach = max(0.0, slack - width / 2)
    return min(max(round(min(max(found, middle - reach), middle + reach)), low[0] + 1), high[0] - 1)


def _unreachable(kind: str, reached: float, height: int, width: int) -> str:
    if kind in ("bpp", "size"):
        bpp = metrics.bpp(int(reached), height, width)
        return f"this picture takes at least {reached:.0f} bytes ({bpp:.4f} bpp) with this model; ask for that or more"
    best = f"{metrics.psnr(reached):.2f} dB (MSE {reached:.2f}) at best"
    return f"this picture reaches {best} with this model; ask for a little {'less' if kind == 'psnr' else 'more'}"
