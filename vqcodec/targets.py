"""Compression to a rate or to a distortion: a search for the quality that comes closest to a target and is not worse.

Rate and distortion are taken as monotonous in the quality, which they are but for steps of a few bytes. Each try runs the
encoder once, and then the entropy coder for a rate, or the decoder for a distortion.
"""

from __future__ import annotations

from collections.abc import Callable

from vqcodec import channels, metrics
from vqcodec.codec import NO_METADATA, ModelLike, encode, open_model, pack_codes, take_apart
from vqcodec.codes import Codes
from vqcodec.config import DEFAULT_EFFORT, QUALITY_STEPS
from vqcodec.container import Extras, Metadata
from vqcodec.errors import TargetError
from vqcodec.limits import MAX_PIXELS
from vqcodec.tiles import Image

KINDS = ("bpp", "size", "psnr", "mse")
TOLERANCE = 0.002  # of the size or the MSE: closer to the target than this, a better quality is not looked for


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
    tried: dict[int, tuple[Codes, Extras, bytes]] = {}

    def size(quality: int) -> float:
        codes, beside = encode(opened, rgb, quality / 100, effort, extras)
        tried[quality] = codes, beside, pack_codes(codes, height, width, quality / 100, opened, beside)
        return len(tried[quality][2])

    def distortion(quality: int) -> float:
        codes, beside = encode(opened, rgb, quality / 100, effort, extras)
        tried[quality] = codes, beside, b""
        restored = opened.decode(codes, height, width, quality / 100, adaptation=beside.adaptation)
        return metrics.mse(channels.join(rgb, extras.gray, None), channels.join(restored, extras.gray, None))

    rate = kind in ("bpp", "size")
    limit = value * height * width / 8 if kind == "bpp" else 255**2 * 10.0 ** (-value / 10) if kind == "psnr" else value
    measure = size if rate else lambda step: distortion(QUALITY_STEPS - step)
    step, reached = search(measure, limit)
    if reached > limit:
        raise TargetError(_unreachable(rate, reached, height, width))
    quality = step if rate else QUALITY_STEPS - step
    codes, beside, data = tried[quality]
    return data or pack_codes(codes, height, width, quality / 100, opened, beside)


def search(measure: Callable[[int], float], limit: float) -> tuple[int, float]:
    """Bisects 0..`QUALITY_STEPS` for the step whose rising `measure` is closest to `limit` and not above it.

    Returns the step and its measure: step 0 where even that is above the limit.
    """
    best = 0, measure(0)
    if best[1] > limit:
        return best
    low, high = 0, QUALITY_STEPS + 1
    step = QUALITY_STEPS  # a target beyond what the model can do ends at once
    while high - low > 1 and best[1] < (1 - TOLERANCE) * limit:
        value = measure(step)
        if value <= limit:
            low = step
            best = max(best, (step, value), key=lambda pair: pair[1])
        else:
            high = step
        step = (low + high) // 2
    return best


def _unreachable(rate: bool, reached: float, height: int, width: int) -> str:
    if rate:
        bpp = metrics.bpp(int(reached), height, width)
        return f"this picture takes at least {reached:.0f} bytes ({bpp:.4f} bpp) with this model; ask for that or more"
    return f"this picture reaches {metrics.psnr(reached):.2f} dB (MSE {reached:.2f}) at best with this model; ask for a little less"
