"""`vqcodec compare`: rate, distortion and the picture of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, load_image, noise, swapped, vqcodec
from vqcodec import codec, image, metrics
from vqcodec.compare import compare, panel
from vqcodec.console import describe_comparison
from vqcodec.container import Metadata
from vqcodec.errors import ImageError
from vqcodec.model import Model
from vqcodec.msssim import ms_ssim

MODEL = GOLDEN / "model"
NAMES = ("a", "b")


def test_figures_and_picture(tmp_path: Path, model: Model) -> None:
    original = noise(20, 30)
    data = codec.compress(original, 50, model)
    (tmp_path / "a.png").write_bytes(image.write(original))
    (tmp_path / "a.vq").write_bytes(data)
    result = vqcodec("compare", "a.png", "a.vq", "--json", "--picture", "p.png", "-m", MODEL, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    facts = json.loads(result.stdout)
    restored = codec.decompress(data, model)
    mse = metrics.mse(original, restored)
    expected = {"bytes": len(data), "bpp": 8 * len(data) / 600, "mse": mse, "psnr": metrics.psnr(mse)}
    assert facts == {**expected, "ms_ssim": None, "alpha": None}
    shown = load_image(tmp_path / "p.png")
    assert shown.shape == (20, 90, 3)
    assert np.array_equal(shown[:, :30], original)
    assert np.abs(shown[:, 30:60].astype(int) - restored).max() <= 1
    text = vqcodec("compare", "a.png", "a.vq", "-m", MODEL, cwd=tmp_path).stdout.decode()
    for expected in (f"{len(data)} ", f"{mse:.2f}", f"{metrics.psnr(mse):.2f} dB"):
        assert expected in text
    again = vqcodec("compare", "a.png", "a.vq", "--picture", "p.png", "-m", MODEL, cwd=tmp_path)
    assert again.returncode == 1
    assert b"exists" in again.stderr
    mixed = vqcodec("compare", "a.png", "a.vq", "--picture", "-", "-m", MODEL, cwd=tmp_path)
    assert (mixed.returncode, mixed.stdout) == (2, b"")


def test_error_map() -> None:
    first = np.full((4, 4, 3), 100, np.uint8)
    second = first.copy()
    second[1, 2] = [103, 97, 100]
    found = compare(image.write(first), image.write(second), NAMES)
    errors = panel(found)[:, 8:]
    assert errors[1, 2].tolist() == [16, 16, 16]
    assert errors.sum() == 48


def test_another_codec_and_identical_pixels(tmp_path: Path) -> None:
    Pillow.fromarray(noise(8, 8)).save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    result = vqcodec("compare", "a.png", "a.webp", cwd=tmp_path)
    assert result.returncode == 0
    assert b"infinite" in result.stdout


def test_ms_ssim_is_that_of_the_decoded_pixels() -> None:
    pixels = noise(200, 180)
    other = pixels // 2
    found = compare(image.write(pixels), image.write(other), NAMES).facts
    assert 0 < found["ms_ssim"] == ms_ssim(pixels, other) < 1
    assert f"MS-SSIM  {found['ms_ssim']:.4f}" in describe_comparison(found)


def test_alpha_is_compared(model: Model) -> None:
    pixels = np.dstack([noise(8, 8), noise(8, 8, 1)[:, :, 0]])
    data = codec.compress(pixels, 50, model)
    assert compare(image.write(pixels), data, NAMES, model).facts["alpha"] == "same"
    assert compare(image.write(pixels[:, :, :3]), data, NAMES, model).facts["alpha"] == "different"


def test_both_are_seen_in_the_colours_of_the_file(model: Model) -> None:
    """A file that keeps a profile holds the pixels as they were, so that the original must not be converted."""
    metadata = Metadata(icc=swapped())
    original = image.write(noise(8, 8), ".png", metadata)
    data = codec.compress(noise(8, 8), 50, model, metadata)
    assert np.array_equal(compare(original, data, NAMES, model).original, noise(8, 8))


def test_unlike_sizes() -> None:
    with pytest.raises(ImageError, match="9 x 8"):
        compare(image.write(noise(8, 9)), image.write(noise(8, 8)), NAMES)
