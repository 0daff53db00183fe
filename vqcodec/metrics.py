"""Rate and distortion: bits per pixel, MSE and PSNR on 8-bit RGB. Shapes: images uint8 `(H, W, 3)`."""

from __future__ import annotations

import math

import numpy as np

from vqcodec.tiles import Image


def bpp(size: int, height: int, width: int) -> float:
    """Bits per pixel of a whole file of `size` bytes."""
    return 8 * size / (height * width)


def mse(a: Image, b: Image) -> float:
    """Mean squared error over all pixels and channels, in squared 8-bit steps; raises `ValueError` for unlike shapes."""
    if a.shape != b.shape:
        raise ValueError(f"images of the shapes {a.shape} and {b.shape} cannot be compared")
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of an MSE; infinite for 0."""
    return math.inf if mean_squared_error == 0 else 10 * math.log10(255**2 / mean_squared_error)
