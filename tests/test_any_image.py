"""Any image that a person has: colour spaces, depths, transparency, animation and metadata, in and out again."""

from __future__ import annotations

import io
import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, ImageCms, features
from PIL import Image as Pillow

from tests.support import GOLDEN, SHARED, load_image, noise, run_python, swapped, vqcodec
from vqcodec import codec, image
from vqcodec.container import Metadata
from vqcodec.errors import ImageError, OutputError
from vqcodec.model import Model

MODEL = GOLDEN / "model"
SUITE = SHARED / "robust" / "pngsuite"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:title="Z\xc3\xbcrich"/></x:xmpmeta>'


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(picture: Pillow.Image, kind: str = "PNG", keep: bool = False, **options: Any) -> image.Picture:
    return image.read_picture(encoded(picture, kind, **options), "it", keep)


def exif(**values: Any) -> Pillow.Exif:
    made = Pillow.Exif()
    for name, value in values.items():
        made[ExifTags.Base[name]] = value
    return made


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_gray_is_read_as_gray(mode: str) -> None:
    gray = Pillow.new(mode, (5, 4))
    assert read(gray).pixels.shape == (4, 5)


@pytest.mark.parametrize(("mode", "kind", "channels"), [("LA", "PNG", 2), ("RGBA", "PNG", 4), ("RGBA", "WEBP", 4), ("RGBA", "TIFF", 4)])
def test_alpha_is_read(mode: str, kind: str, channels: int) -> None:
    picture = Pillow.fromarray(np.dstack([noise(4, 6), noise(4, 6, 1)])[:, :, :4]).convert(mode)
    found = read(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert found.pixels.shape == (4, 6, channels)
    assert np.array_equal(found.pixels, np.array(picture))
    assert found.notices == ()


def test_opaque_alpha_is_not_read() -> None:
    assert read(Pillow.new("RGBA", (3, 3), (1, 2, 3, 255))).pixels.shape == (3, 3, 3)


def test_transparent_entries_of_a_palette() -> None:
    palette = Pillow.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert read(palette, transparency=bytes([0, 128])).pixels.tolist() == [[[10, 20, 30, 0], [40, 50, 60, 128]]]
    assert read(palette, transparency=1).pixels[0, :, 3].tolist() == [255, 0]
    assert read(palette, "GIF", transparency=1).pixels[0, :, 3].tolist() == [255, 0]


def test_transparent_colour() -> None:
    gray = Pillow.fromarray(np.array([[7, 8]], np.uint8))
    assert read(gray, transparency=7).pixels.tolist() == [[[7, 0], [8, 255]]]
    rgb = Pillow.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8))
    assert read(rgb, transparency=(1, 2, 4)).pixels[0, :, 3].tolist() == [255, 0]
    deep = Pillow.fromarray(np.array([[257, 258]], np.uint16))
    assert read(deep, transparency=258).pixels.tolist() == [[[1, 255], [1, 0]]]


@pytest.mark.skipif(not SUITE.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
@pytest.mark.parametrize("name", ["tbbn0g04", "tbwn0g16", "tbbn2c16", "tbgn2c16", "tbrn2c08", "tbbn3p08", "tm3n3p02", "tp1n3p08"])
def test_transparency_of_every_depth_in_pngsuite(name: str) -> None:
    pixels = image.read_picture(next(SUITE.rglob(f"{name}.png")).read_bytes()).pixels
    assert pixels.ndim == 3
    assert pixels.shape[2] in (2, 4)
    assert set(np.unique(pixels[:, :, -1])) >= {0, 255}
    assert 0.1 < (pixels[:, :, -1] == 0).mean() < 0.9


@pytest.mark.skipif(not SUITE.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
def test_every_valid_file_of_pngsuite_goes_round(model: Model) -> None:
    valid = [path for path in sorted(SUITE.rglob("*.png")) if not path.name.startswith("x")]
    assert len(valid) == 161
    for path in valid:
        picture = image.read_picture(path.read_bytes(), path.name)
        restored = codec.decompress(codec.compress(picture.pixels, 50, model), model)
        assert restored.shape == picture.pixels.shape
        again = image.read_picture(image.write(restored))
        assert np.array_equal(again.pixels, restored)


@pytest.mark.skipif(not SUITE.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
def test_damaged_files_of_pngsuite_are_refused() -> None:
    """All but one, whose pixels have a wrong checksum, which Pillow does not look at."""
    damaged = sorted(SUITE.rglob("x*.png"))
    assert len(damaged) == 14
    for path in damaged:
        if path.name != "xcsn0g01.png":
            with pytest.raises(ImageError, match=path.name):
                image.read_picture(path.read_bytes(), path.name)


def test_floats_and_deep_pixels_say_that_they_are_scaled() -> None:
    unit = read(Pillow.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF")
    assert (unit.pixels.tolist(), len(unit.notices)) == ([[0, 128, 255]], 1)
    wide = read(Pillow.fromarray(np.array([[-1000, 0, 1000]], np.float32)), "TIFF")
    assert wide.pixels.tolist() == [[0, 128, 255]]
    assert "-1000..1000" in wide.notices[0]
    below = read(Pillow.fromarray(np.array([[-3, -2, -1]], np.float32)), "TIFF")
    assert below.pixels.tolist() == [[0, 128, 255]]
    flat = read(Pillow.fromarray(np.full((2, 2), 7, np.float32)), "TIFF")
    assert flat.pixels.tolist() == [[0, 0], [0, 0]]
    assert "8 bits" in read(Pillow.fromarray(np.array([[0, 65_535]], np.uint16))).notices[0]
    assert read(Pillow.new("L", (2, 2))).notices == ()


@pytest.mark.skipif(not SUITE.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")
@pytest.mark.parametrize("name", ["basn0g16", "basn2c16", "basn4a16", "basn6a16"])
def test_sixteen_bits_of_every_kind_are_noticed(name: str) -> None:
    assert len(image.read_picture(next(SUITE.rglob(f"{name}.png")).read_bytes()).notices) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_without_a_value_are_refused(value: float) -> None:
    with pytest.raises(ImageError, match="no numbers"):
        read(Pillow.fromarray(np.array([[0, value]], np.float32)), "TIFF")


def test_profiles_are_applied() -> None:
    red = Pillow.new("RGB", (4, 4), (250, 10, 10))
    assert np.abs(read(red, icc_profile=SRGB).pixels.astype(int) - [250, 10, 10]).max() <= 1
    assert np.abs(read(red, icc_profile=swapped()).pixels.astype(int) - [10, 250, 10]).max() <= 1
    found = read(Pillow.new("RGBA", (4, 4), (250, 10, 10, 9)), icc_profile=swapped()).pixels
    assert np.abs(found[:, :, :3].astype(int) - [10, 250, 10]).max() <= 1
    assert (found[:, :, 3] == 9).all()


def gray_ink() -> bytes:
    """An ICC profile for CMYK whose inks are all gray: full cyan has L* 50, which no conversion without the profile would give."""
    corners = [(1 - min(1, cyan * 0.5 + magenta + yellow + black)) for cyan, magenta, yellow, black in product((0, 1), repeat=4)]
    table = b"".join(struct.pack("3B", round(255 * lightness), 128, 128) for lightness in corners)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65_536 if place % 4 == 0 else 0 for place in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    lut += bytes(-len(lut) % 4)
    head = b"lcms" + bytes([2, 16, 0, 0]) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63_190, 65_536, 54_061)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(lut))
    body = head.ljust(124, b"\0") + tags + lut
    return struct.pack(">I", len(body) + 4) + body


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(kind: str) -> None:
    cyan = Pillow.new("CMYK", (16, 16), (255, 0, 0, 0))
    options = {"quality": 100} if kind == "JPEG" else {}
    for keep in (False, True):  # the profile is of no use once the pixels are RGB
        found = read(cyan, kind, keep=keep, icc_profile=gray_ink(), **options)
        assert found.pixels.shape == (16, 16, 3)
        assert np.abs(found.pixels.astype(int) - 119).max() <= 3  # L* 50 in sRGB
        assert found.metadata.icc == b""
    assert np.abs(read(cyan, kind, **options).pixels.astype(int) - [0, 255, 255]).max() <= 3


def test_lab_is_converted() -> None:
    """L* 100 is white and 0 black; Pillow itself cannot convert this mode."""
    for lightness, value in ((255, 255), (0, 0)):
        picture = Pillow.fromarray(np.full((2, 2, 3), [lightness, 128, 128], np.uint8), "RGB")
        lab = Pillow.frombytes("LAB", (2, 2), bytes([lightness, 0, 0]) * 4)
        assert picture.size == lab.size
        assert np.abs(read(lab, "TIFF").pixels.astype(int) - value).max() <= 1


@pytest.mark.parametrize("profile", [LAB, SRGB], ids=["of another space", "of colours"])
def test_profiles_that_do_not_describe_the_pixels_are_left_out(profile: bytes) -> None:
    gray = read(Pillow.new("L", (4, 4), 99), keep=True, icc_profile=profile)
    assert (gray.pixels == 99).all()
    assert gray.metadata.icc == b""


def test_a_broken_profile_is_said_and_left_out() -> None:
    found = read(Pillow.new("RGB", (4, 4), (9, 8, 7)), keep=True, icc_profile=SRGB[:200])
    assert found.pixels[0, 0].tolist() == [9, 8, 7]
    assert found.metadata.icc == b""
    assert "ICC" in found.notices[0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    found = read(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    assert found.pixels[..., :3].reshape(-1, 3)[0].tolist() == [255, 0, 0]
    assert found.notices == ("has 3 frames; only the first one is taken",)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_first_page_of_a_tiff_that_is_cut_off(compression: str | None) -> None:
    """Counting the pages ends at the damage, and the page before it is not the first one."""
    pages = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    first = encoded(pages[0], "TIFF", compression=compression)
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression=compression)
    for end in range(len(first), len(data)):
        found = image.read_picture(data[:end])
        assert found.pixels.reshape(-1, 3)[0].tolist() == [255, 0, 0]


def test_the_extra_pictures_of_camera_files_are_no_animation() -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    found = image.read_picture(data)
    assert found.pixels.shape == (8, 8, 3)
    assert found.notices == ()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif() -> None:
    assert read(Pillow.new("RGBA", (16, 16), (9, 200, 9, 128)), "AVIF").pixels.shape == (16, 16, 4)


HEIC = """
import sys
import numpy as np, pillow_heif
from PIL import Image
pixels = np.full((64, 96, 3), (200, 90, 30), np.uint8)
pixels[:32] = 0, 90, 200
exif = Image.Exif()
exif[0x0112] = 6
pillow_heif.register_heif_opener()
Image.fromarray(pixels).save(sys.stdout.buffer, "HEIF", quality=95, exif=exif.tobytes())
"""
READ = """
import sys
from vqcodec import image
assert "pillow_heif" not in sys.modules
if "without" in sys.argv:
    sys.modules["pillow_heif"] = None
try:
    found = image.read_picture(sys.stdin.buffer.read(), "a.heic")
    print(*found.pixels.shape, *found.pixels[48, 16], *found.pixels[48, 48])
except image.ImageError as error:
    print(error)
"""


def test_heic() -> None:
    """Read upright with pillow-heif, which is imported for such a file only; without it the message names the extra."""
    pytest.importorskip("pillow_heif", reason="needs the extra heic")
    made = run_python("-c", HEIC)
    assert made.stdout[4:8] == b"ftyp", made.stderr
    found = run_python("-c", READ, stdin=made.stdout).stdout.split()
    assert np.abs(np.array(found, int) - [96, 64, 3, 200, 90, 30, 0, 90, 200]).max() <= 6, found
    assert found[:2] == [b"96", b"64"]  # turned by 90 degrees: what was above is at the right
    assert b"pip install 'vqcodec[heic]'" in run_python("-c", READ, "without", stdin=made.stdout).stdout
    assert b"damaged" in run_python("-c", READ, stdin=made.stdout[:300]).stdout
    assert b"damaged" in run_python("-c", READ, stdin=b"0000ftypheic").stdout


def test_notices_are_printed_once_on_stderr(tmp_path: Path) -> None:
    Pillow.fromarray(np.array([[0, 65_535]], np.uint16)).save(tmp_path / "a.png")
    result = vqcodec("compress", "a.png", "-m", MODEL, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"")
    assert result.stderr == b"vqcodec: a.png has more than 8 bits per channel; they are scaled to 8\n"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_metadata_is_kept_on_request_only(kind: str) -> None:
    picture = Pillow.new("RGB", (6, 4))
    made = exif(Orientation=6, Make="camera")
    made[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 400}
    made[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSMapDatum: "WGS-84"}
    options: dict[str, Any] = {"exif": made.tobytes(), "icc_profile": swapped()}
    if kind in ("JPEG", "WEBP"):
        options["xmp"] = XMP
    assert read(picture, kind, **options).metadata == Metadata()
    found = read(picture, kind, keep=True, **options)
    assert found.pixels.shape == (6, 4, 3)
    assert found.metadata.icc == swapped()
    held = Pillow.Exif()
    held.load(found.metadata.exif)
    assert held[ExifTags.Base.Make] == "camera"
    assert ExifTags.Base.Orientation not in held
    assert held.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
    assert held.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] == "WGS-84"
    if "xmp" in options:
        assert found.metadata.xmp == XMP.replace(b'tiff:Orientation="6"', b"")


def test_exif_of_an_upright_picture_is_kept_to_the_byte() -> None:
    made = exif(Make="camera")
    assert read(Pillow.new("RGB", (4, 4)), "JPEG", keep=True, exif=made).metadata.exif == made.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_metadata_comes_back(suffix: str, channels: int, model: Model) -> None:
    options = {"icc_profile": swapped()} if channels == 3 else {}
    picture = Pillow.fromarray(noise(9, 7)[:, :, :channels].squeeze())
    found = read(picture, "JPEG", keep=True, exif=exif(Make="camera", Orientation=3), xmp=XMP, **options)
    data = codec.compress(found.pixels, 50, model, found.metadata)
    written = image.write(codec.decompress(data, model), suffix, codec.read_metadata(data))
    with Pillow.open(io.BytesIO(written)) as back:
        assert back.getexif()[ExifTags.Base.Make] == "camera"
        assert back.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert back.info.get("icc_profile") == options.get("icc_profile")
        assert b"Z\xc3\xbcrich" in back.info["xmp"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_turned_picture_does_not_keep_the_size_that_it_had(kind: str) -> None:
    made = exif(Orientation=6, Make="camera", ImageWidth=6, ImageLength=4)
    made[ExifTags.IFD.Exif] = {
        ExifTags.Base.ISOSpeedRatings: 400,
        ExifTags.Base.ExifImageWidth: 6,
        ExifTags.Base.ExifImageHeight: 4,
    }
    held = Pillow.Exif()
    held.load(read(Pillow.new("RGB", (6, 4)), kind, keep=True, exif=made.tobytes()).metadata.exif)
    assert set(held) == {ExifTags.Base.Make, ExifTags.IFD.Exif}
    assert held.get_ifd(ExifTags.IFD.Exif) == {ExifTags.Base.ISOSpeedRatings: 400}


@pytest.mark.parametrize("xmp", [b"", b"<x/>"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ImageWidth", 5),
        ("ImageLength", 40),
        ("PhotometricInterpretation", 0),
        ("FillOrder", 2),
        ("Orientation", 6),
        ("PlanarConfiguration", 2),
        ("ExtraSamples", 2),
        ("SampleFormat", 3),
    ],
)
def test_kept_tags_of_the_original_do_not_describe_the_pixels_of_a_tiff(name: str, value: int, xmp: bytes) -> None:
    made = exif(Make="camera", **{name: value})
    made[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 400}
    made[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSMapDatum: "WGS-84"}
    for pixels in (noise(9, 7), noise(9, 7)[:, :, 0], noise(9, 7)[:, :, :2]):
        written = image.write(pixels, ".tif", Metadata(exif=made.tobytes(), xmp=xmp))
        assert np.array_equal(image.read_picture(written).pixels, pixels)
        with Pillow.open(io.BytesIO(written)) as back:
            held = back.getexif()
            assert held[ExifTags.Base.Make] == "camera"
            assert held.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
            assert held.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] == "WGS-84"
            assert back.info.get("xmp", b"") == xmp


def test_metadata_on_the_command_line(tmp_path: Path) -> None:
    Pillow.fromarray(noise(9, 7)).save(tmp_path / "a.jpg", exif=exif(Make="camera"))
    for option, kept in (((), False), (("--keep-metadata",), True)):
        assert vqcodec("compress", "a.jpg", "a.vq", "-f", *option, "-m", MODEL, cwd=tmp_path).returncode == 0
        assert vqcodec("decompress", "a.vq", "b.webp", "-f", "-m", MODEL, cwd=tmp_path).returncode == 0
        with Pillow.open(tmp_path / "b.webp") as back:
            assert (ExifTags.Base.Make in back.getexif()) == kept


def test_formats_without_profiles_get_srgb() -> None:
    red = np.full((4, 4, 3), (250, 10, 10), np.uint8)
    written = image.write(red, ".bmp", Metadata(icc=swapped()))
    assert np.abs(image.read(written).astype(int) - [10, 250, 10]).max() <= 1


@pytest.mark.parametrize("suffix", sorted(image.FORMATS))
@pytest.mark.parametrize(
    "junk", [b"junk", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01\x0f", bytes(3_000), SRGB[:200], b"\xff" * 70_000]
)
def test_damaged_metadata_in_a_file_is_one_error_at_most(suffix: str, junk: bytes) -> None:
    pixels = noise(8, 8)
    for metadata in (
        Metadata(icc=junk),
        Metadata(exif=junk),
        Metadata(xmp=junk),
        Metadata(exif=junk, xmp=b"<x/>"),
        Metadata(junk, junk, junk),
    ):
        try:
            written = image.write(pixels, suffix, metadata)
        except OutputError:
            continue
        assert image.read(written).shape == pixels.shape
        assert image.read_picture(written, "it", keep_metadata=True).pixels.shape == pixels.shape


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".ppm"])
def test_transparency_is_not_lost_silently(suffix: str) -> None:
    with pytest.raises(OutputError, match=r"use \.png"):
        image.write(np.zeros((4, 4, 4), np.uint8), suffix)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_written(suffix: str, channels: int) -> None:
    pixels = np.dstack([noise(5, 4), noise(5, 4, 1)])[:, :, :channels]
    if channels == 2 and suffix == ".webp":
        pixels = pixels[:, :, [0, 0, 0, 1]]  # this format has no gray
    assert np.array_equal(image.read_picture(image.write(pixels, suffix)).pixels, pixels)


def test_the_command_line_keeps_gray_and_alpha(tmp_path: Path) -> None:
    pixels = np.dstack([noise(20, 30)[:, :, 0], noise(20, 30, 1)[:, :, 0]])
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    assert vqcodec("compress", "a.png", "-m", MODEL, cwd=tmp_path).returncode == 0
    assert vqcodec("decompress", "a.vq", "b.png", "-m", MODEL, cwd=tmp_path).returncode == 0
    with Pillow.open(tmp_path / "b.png") as back:
        assert back.mode == "LA"
        assert np.array_equal(np.array(back.getchannel("A")), pixels[:, :, 1])
    text = vqcodec("info", "a.vq", "-m", MODEL, cwd=tmp_path).stdout.decode()
    assert "gray+alpha" in text
    assert load_image(tmp_path / "b.png").shape == (20, 30, 3)
