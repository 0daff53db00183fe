"""Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) of RGB images uint8 `(H, W, 3)`.

Written here since no maintained package without torch gives the numbers that papers print: sewar 0.4.10 differs by up to
0.01 and takes several times as long. It agrees with pytorch-msssim, which the published figures use
(tests/test_msssim.py has values from there): a Gaussian window of 11 with sigma 1.5, valid positions only, five scales
by 2 x 2 means, the product over the scales for each channel, then the mean of the channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vqcodec.tiles import Image

Map = NDArray[np.floating]  # (h, w, 3), float32

WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # of the scales, fine to coarse
RADIUS = 5  # pixels of the window beside its centre
SIGMA = 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SMALLEST = 2 * RADIUS * 2 ** (len(WEIGHTS) - 1) + 1  # pixels a side: below, the coarsest scale has no valid position

_WINDOW = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
_WINDOW = (_WINDOW / _WINDOW.sum()).astype(np.float32)


def ms_ssim(a: Image, b: Image) -> float | None:
    """Similarity in 0..1; None where a side has fewer than `SMALLEST` pixels. Raises `ValueError` for unlike shapes."""
    if a.shape != b.shape:
        raise ValueError(f"images of the shapes {a.shape} and {b.shape} cannot be compared")
    if min(a.shape[:2]) < SMALLEST:
        return None
    first, second = a.astype(np.float32), b.astype(np.float32)
    factors = []
    for scale in range(len(WEIGHTS)):
        luminance, structure = _similarity(first, second)
        factors.append(np.maximum((luminance * structure if scale == len(WEIGHTS) - 1 else structure).mean((0, 1)), 0))
        first, second = _half(first), _half(second)
    return float((np.array(factors) ** WEIGHTS[:, None]).prod(0).mean())


def _similarity(a: Map, b: Map) -> tuple[Map, Map]:
    """Luminance, and contrast times structure, at the valid positions of the window."""
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance: Map = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure: Map = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return luminance, structure


def _blur(values: Map) -> Map:
    """The window's mean at its valid positions: (h, w, 3) to (h - 2 RADIUS, w - 2 RADIUS, 3)."""
    return _blur_rows(_blur_rows(values).swapaxes(0, 1)).swapaxes(0, 1)


def _blur_rows(values: Map) -> Map:
    length = len(values) - 2 * RADIUS
    blurred: Map = values[RADIUS : RADIUS + length] * _WINDOW[RADIUS]
    for tap in range(RADIUS):  # the window is symmetric: both rows at once
        other = 2 * RADIUS - tap
        blurred += (values[tap : tap + length] + values[other : other + length]) * _WINDOW[tap]
    return blurred


def _half(values: Map) -> Map:
    """Means of 2 x 2; a side of odd length is first given a zero at both ends, as pytorch-msssim does it."""
    odd = [(length % 2, length % 2) for length in values.shape[:2]]
    padded = np.pad(values, (*odd, (0, 0)))
    height, width = padded.shape[0] // 2, padded.shape[1] // 2
    halved: Map = padded[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
    return halved
