"""Reading pictures: every kind gives uint8 (H, W, 3), and whatever cannot be read is an ImageError."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import SHARED, noise
from vqcodec import image
from vqcodec.errors import ImageError, LimitError, OutputError

ROBUST = SHARED / "robust"
ORIENTATION = 0x0112  # EXIF tag


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(picture: Pillow.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    pixels = image.read(encoded(picture, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return pixels


def test_rgb_is_kept() -> None:
    pixels = noise(5, 7)
    assert np.array_equal(read(Pillow.fromarray(pixels)), pixels)


def test_single_pixel() -> None:
    assert read(Pillow.new("RGB", (1, 1), (1, 2, 3))).tolist() == [[[1, 2, 3]]]


def test_gray_fills_all_channels() -> None:
    gray = noise(5, 7)[:, :, 0]
    assert np.array_equal(read(Pillow.fromarray(gray)), np.repeat(gray[:, :, None], 3, axis=2))


def test_black_and_white() -> None:
    assert read(Pillow.new("1", (3, 2), 1)).tolist() == [[[255] * 3] * 3] * 2


def test_palette_is_looked_up() -> None:
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert read(picture).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_dropped(mode: str) -> None:
    picture = Pillow.fromarray(np.dstack([np.full((4, 6, 3), 90, np.uint8), np.full((4, 6), 128, np.uint8)])).convert(mode)
    assert (read(picture, "TIFF" if mode == "PA" else "PNG") == 90).all()


def test_sixteen_bit_gray_is_scaled() -> None:
    """Pillow's own conversion would clip everything above 255."""
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    assert read(Pillow.fromarray(values))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_jpeg() -> None:
    pixels = read(Pillow.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 3  # cyan


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = noise(4, 6)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Pillow.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read(Pillow.fromarray(np.ascontiguousarray(turned)), kind, exif=exif, **options), upright)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_truncated_file(kind: str) -> None:
    data = encoded(Pillow.fromarray(noise(64, 64)), kind)
    with pytest.raises(ImageError, match=r"here\.pic"):
        image.read(data[: len(data) // 3], "here.pic")


def test_damaged_png() -> None:
    data = bytearray(encoded(Pillow.fromarray(noise(64, 64))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="damaged"):
        image.read(bytes(data))


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_no_image(data: bytes) -> None:
    with pytest.raises(ImageError):
        image.read(data)


def test_side_beyond_the_format() -> None:
    with pytest.raises(ImageError, match="65535"):
        image.read(encoded(Pillow.new("L", (65_536, 1))))


def test_decompression_bomb() -> None:
    """A small file that claims 400 megapixels: refused on its header, before anything is unpacked."""
    data = encoded(Pillow.new("1", (8, 8)))
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + data[24:29]
    with pytest.raises(LimitError, match="--max-pixels"):
        image.read(data[:12] + header + struct.pack(">I", crc32(header)) + data[33:])


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".bmp", ".webp", ""])
def test_write_then_read_is_lossless(suffix: str) -> None:
    pixels = noise(9, 4)
    assert np.array_equal(image.read(image.write(pixels, suffix)), pixels)


def test_write_jpeg() -> None:
    assert image.read(image.write(np.full((8, 8, 3), 77, np.uint8), ".jpg")).shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", [".nothing", ".vq", ".xyz"])
def test_unknown_suffix(suffix: str) -> None:
    with pytest.raises(OutputError, match=suffix):
        image.write(noise(2, 2), suffix)


def robust_files() -> list[Path]:
    folders = [ROBUST / "pngsuite", ROBUST / "exif_orientation", ROBUST / "hostile" / "Tests" / "images"]
    assert all(folder.is_dir() for folder in folders)
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.mark.skipif(not ROBUST.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it repairs
def test_awkward_and_hostile_files_are_read_or_refused() -> None:
    files, readable = robust_files(), 0
    for path in files:
        try:
            pixels = image.read(path.read_bytes(), path.name)
        except (ImageError, LimitError):
            continue
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            readable += 1
    assert len(files) > 270
    assert 190 < readable < len(files)


@pytest.mark.skipif(not ROBUST.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
def test_all_orientations_of_one_photo_are_alike() -> None:
    for shape in ("Landscape", "Portrait"):
        pictures = [
            image.read(path.read_bytes()).astype(np.int16) for path in sorted((ROBUST / "exif_orientation").rglob(f"{shape}_[1-8].jpg"))
        ]
        assert len(pictures) == 8
        for picture in pictures[1:]:
            assert picture.shape == pictures[0].shape
            assert np.abs(picture - pictures[0]).mean() < 6  # each one is a JPEG of its own
