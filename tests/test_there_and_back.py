"""Pictures of every kind through the command line there and back, with the shipped model: upright, in their colours, of their kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as Pillow

from tests.support import IMAGES, SHARED, Array, load_image, swapped, vqcodec

pytestmark = pytest.mark.weights

ORIENTATIONS = SHARED / "robust" / "exif_orientation"
PHOTO = load_image(IMAGES / "chelsea.png")[60:156, 120:248]
SHAPE = np.add.outer(np.arange(96) * 3, np.arange(128)).astype(np.uint8)  # of transparency
NEAR = 8  # steps that a picture of the shipped model differs by on average; a wrong colour or side is 20 and more away


class Case(NamedTuple):
    """A file, what it must look like in the end, its alpha, and a word that must stand in the notice about it."""

    data: bytes
    colours: Array
    alpha: Array | None = None
    notice: str = ""


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def cases() -> dict[str, Case]:
    rgb, others = Pillow.fromarray(PHOTO), Pillow.fromarray(255 - PHOTO)
    gray = np.array(rgb.convert("L"))
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 6
    mask = np.where(SHAPE > 99, 255, 0).astype(np.uint8)
    palette = rgb.quantize(255)
    return {
        "icc.png": Case(encoded(rgb, icc_profile=swapped()), PHOTO[:, :, [1, 0, 2]]),
        "icc.jpg": Case(encoded(rgb, "JPEG", quality=95, icc_profile=swapped()), PHOTO[:, :, [1, 0, 2]]),
        "cmyk.jpg": Case(encoded(rgb.convert("CMYK"), "JPEG", quality=95), PHOTO),
        "cmyk.tif": Case(encoded(rgb.convert("CMYK"), "TIFF"), PHOTO),
        "deep.png": Case(encoded(Pillow.fromarray(gray.astype(np.uint16) * 257)), gray, notice="8 bits"),
        "floats.tif": Case(encoded(Pillow.fromarray(gray.astype(np.float32) / 255), "TIFF"), gray, notice="scaled"),
        "gray.png": Case(encoded(Pillow.fromarray(gray)), gray),
        "black-and-white.png": Case(encoded(Pillow.fromarray(mask).convert("1")), mask),
        "palette.png": Case(encoded(palette), np.array(palette.convert("RGB"))),
        "alpha.png": Case(encoded(Pillow.fromarray(np.dstack([PHOTO, SHAPE]))), PHOTO, SHAPE),
        "alpha.webp": Case(encoded(Pillow.fromarray(np.dstack([PHOTO, SHAPE])), "WEBP", lossless=True, exact=True), PHOTO, SHAPE),
        "gray-alpha.png": Case(encoded(Pillow.fromarray(np.dstack([gray, mask]))), gray, mask),
        "opaque.png": Case(encoded(rgb.convert("RGBA")), PHOTO),
        "animation.gif": Case(encoded(palette, "GIF", save_all=True, append_images=[others]), PHOTO, notice="frames"),
        "animation.webp": Case(encoded(rgb, "WEBP", save_all=True, append_images=[others], lossless=True), PHOTO, notice="frames"),
        "lying.jpg": Case(encoded(rgb, "JPEG", quality=95, exif=exif), np.rot90(PHOTO, -1)),
    }


def there_and_back(folder: Path, quality: int = 100) -> dict[str, dict[str, Any]]:
    """All pictures in `folder / "in"`, each by its name, as what the commands say of it and as `pixels`."""
    for command in (["compress", "in", "-r", "--out-dir", "vq", "-q", str(quality)], ["decompress", "vq", "-r", "--out-dir", "back"]):
        result = vqcodec(*command, "--json", cwd=folder)
        assert (result.returncode, b"Traceback" in result.stderr) == (0, False)
        if command[0] == "compress":
            found = {Path(row["input"]).name: row for row in map(json.loads, result.stdout.splitlines())}
    for name, row in found.items():
        with Pillow.open(folder / "back" / Path(name).with_suffix(".png")) as picture:
            row["pixels"] = np.array(picture)
    return found


def test_made_pictures_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    made = {f"{number} {name}": case for number, (name, case) in enumerate(cases().items())}  # a stem of its own for each
    for name, case in made.items():
        (tmp_path / "in" / name).write_bytes(case.data)
    found = there_and_back(tmp_path)
    assert set(found) == set(made)
    for name, case in made.items():
        pixels, notices = found[name]["pixels"], " ".join(found[name]["notices"])
        assert (case.notice in notices) if case.notice else not notices, (name, notices)
        if case.alpha is not None:
            assert np.array_equal(pixels[..., -1], case.alpha), name
            visible, pixels = case.alpha > 0, pixels[..., :-1].squeeze()
        else:
            visible = np.ones(case.colours.shape[:2], bool)
        assert pixels.shape == case.colours.shape, name
        away = np.abs(pixels[visible].astype(int) - case.colours[visible]).mean()
        assert away < NEAR, (name, away)


@pytest.mark.skipif(not ORIENTATIONS.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
def test_all_orientations_end_upright(tmp_path: Path) -> None:
    """At an eighth of their size, with the EXIF that they have."""
    (tmp_path / "in").mkdir()
    for path in ORIENTATIONS.glob("*_[1-8].jpg"):
        with Pillow.open(path) as picture:
            (tmp_path / "in" / path.name).write_bytes(encoded(picture.reduce(8), "JPEG", quality=95, exif=picture.getexif()))
    found = there_and_back(tmp_path)
    assert len(found) == 16
    for shape, size in (("Landscape", (150, 225, 3)), ("Portrait", (225, 150, 3))):
        with Pillow.open(tmp_path / "in" / f"{shape}_1.jpg") as picture:
            upright = np.array(picture).astype(int)
        for number in range(1, 9):
            pixels = found[f"{shape}_{number}.jpg"]["pixels"]
            assert pixels.shape == size
            assert np.abs(pixels - upright).mean() < NEAR
            assert np.abs(pixels[::-1] - upright).mean() > 2 * NEAR
            assert np.abs(pixels[:, ::-1] - upright).mean() > 2 * NEAR
