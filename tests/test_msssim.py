"""MS-SSIM against values of pytorch-msssim 1.0.0 (`ms_ssim(x, y, data_range=255)`, float32), which published figures use."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import IMAGES, load_image, noise
from vqcodec.msssim import SMALLEST, ms_ssim


def coarse(image: np.ndarray) -> np.ndarray:
    """Eight steps a channel."""
    return image // 32 * 32 + 16


@pytest.mark.parametrize(("change", "expected"), [(coarse, 0.936653), (lambda image: np.roll(image, 3, 1), 0.782116)])
def test_values_of_pytorch_msssim(change, expected: float) -> None:  # type: ignore[no-untyped-def]
    image = load_image(IMAGES / "coffee.png")
    assert ms_ssim(image, change(image)) == pytest.approx(expected, abs=2e-5)


def test_noise_against_a_picture() -> None:
    image = load_image(IMAGES / "coffee.png")
    assert ms_ssim(image, noise(*image.shape[:2])) == pytest.approx(0.071367, abs=2e-5)


def test_odd_sides() -> None:
    image = load_image(IMAGES / "coffee.png")[:200, :183]
    assert ms_ssim(image, coarse(image)) == pytest.approx(0.955829, abs=2e-5)


def test_a_picture_equals_itself_and_only_itself() -> None:
    image = noise(SMALLEST, SMALLEST)
    other = image.copy()
    other[40:60, 40:60] //= 2
    assert ms_ssim(image, image) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(image, other) < 0.999


def test_small_pictures_have_none_and_unlike_ones_are_refused() -> None:
    small = noise(SMALLEST - 1, 300)
    assert ms_ssim(small, small) is None
    with pytest.raises(ValueError, match="shapes"):
        ms_ssim(small, small[1:])
