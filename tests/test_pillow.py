"""The Pillow plugin: `.vq` files open, say their size, load and are saved like any other."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, ImageCms, ImageOps
from PIL import Image as Pillow

import vqcodec.pillow
from tests.support import GOLDEN, GOLDENS, noise
from vqcodec import codec
from vqcodec.model import Model, load_model

FILE = GOLDEN / "photo-q60.vq"


@pytest.fixture(autouse=True)
def _golden_model_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqcodec.model.models_folder", lambda: GOLDEN)


def test_open_knows_the_size_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "decompress", lambda data: pytest.fail("it was decoded"))
    with Pillow.open(FILE) as picture:
        assert (picture.size, picture.mode, picture.format) == ((104, 88), "RGB", "VQ")
        assert picture.info == {"quality": 60}
        assert picture.get_format_mimetype() == "image/x-vqcodec"


def test_pixels_are_those_of_decompress(model: Model) -> None:
    with Pillow.open(FILE) as picture:
        assert np.array_equal(np.asarray(picture), codec.decompress(FILE.read_bytes(), model))
        assert picture.getpixel((3, 4)) == tuple(np.asarray(picture)[4, 3].tolist())
    with Pillow.open(io.BytesIO(FILE.read_bytes())) as picture:
        assert picture.resize((8, 8)).size == (8, 8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_save_then_open(mode: str, tmp_path: Path, model: Model) -> None:
    picture = Pillow.fromarray(np.dstack([noise(12, 9), noise(12, 9, 1)])[:, :, :4]).convert(mode)
    picture.save(tmp_path / "a.vq", quality=60, model=model)
    assert (tmp_path / "a.vq").read_bytes() == codec.compress(np.asarray(picture), 60, model)
    with Pillow.open(tmp_path / "a.vq") as back:
        assert (back.mode, back.size) == (mode, (9, 12))
        assert np.array_equal(np.asarray(back), codec.decompress((tmp_path / "a.vq").read_bytes(), model))


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_file_larger_than_its_pixels(mode: str, tmp_path: Path, model: Model) -> None:
    """Pillow maps files that could hold the pixels as they are in memory, and shows what is there."""
    picture = Pillow.fromarray(np.dstack([noise(12, 9), noise(12, 9, 1)])[:, :, :4]).convert(mode)
    picture.save(tmp_path / "a.vq", model=model, xmp=bytes(1000))
    with Pillow.open(tmp_path / "a.vq") as back:
        assert back.mode == mode
        assert np.array_equal(np.asarray(back), codec.decompress((tmp_path / "a.vq").read_bytes(), model))


def test_effort(tmp_path: Path) -> None:
    model = load_model(GOLDENS[-1] / "model")
    quick, longer = (codec.compress(noise(40, 50), 60, model, effort=effort) for effort in (0, 9))
    assert quick != longer
    for effort, data in ((0, quick), (9, longer)):
        Pillow.fromarray(noise(40, 50)).save(tmp_path / "a.vq", quality=60, model=model, effort=effort)
        assert (tmp_path / "a.vq").read_bytes() == data


def test_metadata(tmp_path: Path, model: Model) -> None:
    exif = Pillow.Exif()
    exif[ExifTags.Base.Make] = "camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Pillow.new("RGB", (8, 4)).save(tmp_path / "a.vq", model=model, exif=exif, icc_profile=profile, xmp=b"<x/>")
    with Pillow.open(tmp_path / "a.vq") as back:
        assert back.getexif()[ExifTags.Base.Make] == "camera"
        assert (back.info["icc_profile"], back.info["xmp"]) == (profile, b"<x/>")


def test_a_picture_that_lies_on_its_side_is_refused(tmp_path: Path, model: Model) -> None:
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = Pillow.new("RGB", (8, 4))
    for given in (exif, exif.tobytes()):
        with pytest.raises(OSError, match="exif_transpose"):
            picture.save(tmp_path / "a.vq", model=model, exif=given)
    picture.getexif()[ExifTags.Base.Orientation] = 6
    upright = ImageOps.exif_transpose(picture)
    assert upright is not None
    upright.save(tmp_path / "b.vq", model=model, exif=upright.getexif())
    with Pillow.open(tmp_path / "b.vq") as back:
        assert back.size == (4, 8)


def test_other_modes_and_options_are_refused(tmp_path: Path, model: Model) -> None:
    with pytest.raises(OSError, match="CMYK"):
        Pillow.new("CMYK", (4, 4)).save(tmp_path / "a.vq", model=model)
    with pytest.raises(OSError, match="no_such_model"):
        Pillow.new("RGB", (4, 4)).save(tmp_path / "b.vq", model="no_such_model")
    for options, said in (
        ({"quality": 101}, "101"),
        ({"effort": 99}, "99"),
        ({"xmp": "text"}, "bytes"),
        ({"icc_profile": 7}, "bytes|len"),
        ({"exif": b"junk"}, "EXIF"),
    ):
        with pytest.raises(OSError, match=said):
            Pillow.new("RGB", (4, 4)).save(tmp_path / "c.vq", model=model, **options)
    assert not list(tmp_path.iterdir())


def test_damaged_files() -> None:
    data = FILE.read_bytes()
    with pytest.raises(OSError, match="copy the file again"):
        Pillow.open(io.BytesIO(data[:-9]))
    with pytest.raises(Pillow.UnidentifiedImageError):
        Pillow.open(io.BytesIO(b"?" + data[1:]))
    other = bytearray(codec.container.unpack(data).model_id)
    other[0] ^= 1
    held = codec.container.unpack(data)
    strange = codec.container.pack(codec.container.Container(bytes(other), held.width, held.height, held.quality, held.sections))
    with Pillow.open(io.BytesIO(strange)) as picture, pytest.raises(OSError, match="needs the model"):
        picture.load()


def test_it_is_registered() -> None:
    assert Pillow.registered_extensions()[".vq"] == vqcodec.pillow.FORMAT
