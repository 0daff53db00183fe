"""A compressed picture beside its original: rate, distortion, and a picture of where the errors lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vqcodec import channels, codec, container, image, metrics
from vqcodec.channels import Channels
from vqcodec.errors import ImageError
from vqcodec.limits import MAX_PIXELS
from vqcodec.msssim import ms_ssim
from vqcodec.tiles import Image

ERROR_GAIN = 8  # of the error map: a codec's errors are a few steps of 255, too dark to see as they are


class Comparison(NamedTuple):
    """`facts` are bytes, bpp, mse, psnr (None where nothing differs), ms_ssim (None for small pictures) and alpha.

    The images are uint8 (H, W, 3).
    """

    facts: dict[str, Any]
    original: Image
    restored: Image


def compare(
    original: bytes, compressed: bytes, names: tuple[str, str], model: codec.ModelLike | None = None, max_pixels: int = MAX_PIXELS
) -> Comparison:
    """Compares a picture with a `.vq` file, or with a file of any other codec that Pillow reads.

    The distortion is that of the colours; `alpha` says whether that is "same" or "different", and is None where there is none.
    Raises `ImageError` for pictures of unlike sizes, else as `read_picture` and `decompress` do.
    """
    if compressed.startswith(container.MAGIC):
        pixels, keeps_profile = codec.decompress(compressed, model, max_pixels=max_pixels), bool(codec.read_metadata(compressed).icc)
        second = channels.split(pixels)
    else:
        second, keeps_profile = channels.split(image.read_picture(compressed, names[1], max_pixels=max_pixels).pixels), False
    first = channels.split(image.read_picture(original, names[0], keeps_profile, max_pixels).pixels)
    (height, width), other = first.rgb.shape[:2], second.rgb.shape[:2]
    if (height, width) != other:
        raise ImageError(f"{names[0]} has {width} x {height} pixels and {names[1]} {other[1]} x {other[0]}; give pictures of one size")
    mse = metrics.mse(first.rgb, second.rgb)
    facts = {
        "bytes": len(compressed),
        "bpp": metrics.bpp(len(compressed), height, width),
        "mse": mse,
        "psnr": metrics.psnr(mse) if mse else None,
        "ms_ssim": ms_ssim(first.rgb, second.rgb),
        "alpha": _alpha(first, second),
    }
    return Comparison(facts, first.rgb, second.rgb)


def panel(comparison: Comparison) -> Image:
    """Original, reconstruction and error map side by side, uint8 (H, 3W, 3); errors are the mean over channels, made visible."""
    error = np.abs(comparison.original.astype(np.int16) - comparison.restored).mean(axis=2, keepdims=True)
    shown = np.repeat((error * ERROR_GAIN).clip(0, 255).round().astype(np.uint8), 3, axis=2)
    return np.concatenate([comparison.original, comparison.restored, shown], axis=1)


def _alpha(first: Channels, second: Channels) -> str | None:
    if first.alpha is None and second.alpha is None:
        return None
    same = first.alpha is not None and second.alpha is not None and np.array_equal(first.alpha, second.alpha)
    return "same" if same else "different"
