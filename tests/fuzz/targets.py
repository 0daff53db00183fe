"""What is fed with hostile inputs, and with which intact ones it begins.

A target's `run` either returns (the input was taken) or raises a `VQCodecError` (it was refused); anything else is a bug.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image as Pillow

from tests.fuzz import mutations
from tests.fuzz.mutations import Edit
from tests.support import GOLDENS, noise, swapped
from vqcodec import bitstream, codec, container, image
from vqcodec.config import DEFAULT_EFFORT
from vqcodec.container import Metadata
from vqcodec.errors import VQCodecError
from vqcodec.layers import int64_product
from vqcodec.model import CARD, DECODE, ENCODERS, IMPROVE, IMPROVE_MIDDLE, LAYOUTS, PRIOR, WEIGHTS, Model, load_model
from vqcodec.prior import Prior

MAX_PIXELS = 1_000_000  # of pictures here: their own needs stay far below the limit on memory


class Target(NamedTuple):
    """A target: its name, intact inputs, what is done with an input, how one is spoilt, and its share of all inputs in thousandths."""

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], object]
    spoil: Callable[[bytes, Sequence[Edit], bytes], bytes]
    share: int


@cache
def model() -> Model:
    """The tiny model, opened."""
    opened = load_model(GOLDENS[-1] / "model")
    transform = opened.transform
    _ = opened.prior, [part() for part in (*transform.encoders, *transform.improvers.values(), transform.decoder)]
    return opened


@cache
def files() -> list[bytes]:
    """Small golden files, and ones with everything that a file can hold."""
    golden = [(GOLDENS[-1] / f"{name}.vq").read_bytes() for name in ("dot-q50", "line-q80", "odd-q0", "wide-q100")]
    pictures = [noise(40, 50)[:, :, :channels] for channels in (1, 2)] + [np.dstack([noise(33, 20), noise(33, 20, 1)[:, :, 0]])]
    metadata = Metadata(swapped(), exif(), b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    masked = pictures[2].copy()
    masked[:, :, 3] = np.where(masked[:, :, 3] > 99, 255, 0)
    made = [codec.compress(picture, 50, model(), metadata) for picture in (*pictures, masked)]
    return golden + made


def exif() -> bytes:
    """EXIF with a few tags."""
    tags = Pillow.Exif()
    tags[0x010F], tags[0x8769] = "maker", {0x9003: "2020:02:02 02:02:02", 0x829A: (1, 250)}
    return tags.tobytes().removeprefix(b"Exif\0\0")


def decode_codes(data: bytes) -> None:
    """Codes alone."""
    codes = codec.decode_codes(data, model(), MAX_PIXELS)
    assert all(code_map.dtype == np.int32 for code_map in codes)


def decompress(data: bytes) -> None:
    """As `vqcodec decompress` does, to the formats that keep metadata."""
    pixels = codec.decompress(data, model(), max_pixels=MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert codec.info(data, model())["width"] == pixels.shape[1]
    suffix = (".png", ".webp", ".tif")[len(data) % 3]
    image.write(pixels, suffix, codec.read_metadata(data))


def salvage(data: bytes) -> None:
    """As `vqcodec decompress --salvage` does."""
    found = codec.salvage(data, model(), MAX_PIXELS)
    assert found.image.dtype == np.uint8
    image.write(found.image, ".png", found.metadata)
    with contextlib.suppress(VQCodecError):
        assert np.array_equal(codec.decompress(data, model(), max_pixels=MAX_PIXELS), found.image) or found.lost


def any_codes(data: bytes) -> None:
    """As if the codes' own checksums held, so that any codes are turned into pixels."""
    with mock.patch("vqcodec.bitstream.checksum", return_value=AnyNumber()):
        decompress(data)


class AnyNumber:
    """Equal to every number."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


SPLIT = GOLDENS[-1] / "model"  # of the layout that is written


@cache
def model_file(name: str) -> bytes:
    """A file of the tiny model."""
    return (SPLIT / name).read_bytes()


@cache
def small_picture() -> Any:
    """A picture of one tile, and its codes."""
    picture = noise(64, 64)
    return picture, load_model(SPLIT).encode(picture, 50)


def with_file(name: str, data: bytes) -> Model:
    """The tiny model with one other file."""
    opened = load_model(SPLIT)
    return Model(opened.name, opened.config, opened.card, {**{key: model_file(key) for key in LAYOUTS[6]}, name: data})


def use_prior(data: bytes) -> None:
    """A spoilt prior codes and decodes, if it is taken, and does so in other arithmetic too."""
    opened, codes = with_file(PRIOR, data), small_picture()[1]
    made = codec.pack_codes(codes, 64, 64, 50, opened)
    again = codec.decode_codes(made, opened)
    assert all(np.array_equal(a, b) for a, b in zip(codes, again, strict=True))
    payloads = bitstream.write(Prior(opened.prior.levels, int64_product), codes, 64, 64, 5000)
    assert [section.payload for section in container.unpack(made).sections] == payloads


def use_weights(data: bytes) -> None:
    """Spoilt weights give other pictures and codes, if they are taken."""
    picture, codes = small_picture()
    opened = with_file(WEIGHTS, data)
    opened.decode(codes, 64, 64, 50)
    for effort in (DEFAULT_EFFORT, 9):
        opened.encode(picture, 50, effort)


def use_graph(data: bytes) -> None:
    """A spoilt graph gives other pictures or codes, if it is taken; which one it is, names in it tell."""
    picture, codes = small_picture()
    if b"keep" in data:
        with_file(DECODE, data).decode(codes, 64, 64, 50)
        return
    first, second, third = ENCODERS
    improver = IMPROVE_MIDDLE if b"wanted_middle" in data else IMPROVE if b"wanted" in data else None
    name = improver or (first if b"image" in data else second if b"middle_features" in data else third)
    opened = with_file(name, data)
    for effort in (DEFAULT_EFFORT, 9):
        opened.encode(picture, 50, effort)


@cache
def folder() -> Path:
    """A copy of the tiny model, to spoil its card."""
    made = Path(tempfile.mkdtemp(prefix="vqcodec-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    for name in (CARD, *LAYOUTS[6]):
        (made / name).write_bytes(model_file(name))
    return made


def use_card(data: bytes) -> None:
    """A spoilt card."""
    (folder() / CARD).write_bytes(data)
    opened = load_model(folder())
    codec.decode_codes(codec.pack_codes(small_picture()[1], 64, 64, 50, opened), opened)


@cache
def pictures() -> list[bytes]:
    """Small pictures in every format that Pillow both reads and writes."""
    rgb, gray = Pillow.fromarray(noise(24, 20)), Pillow.fromarray(noise(24, 20)[:, :, 0])
    deep = Pillow.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20) * 131)
    floats = Pillow.fromarray(np.linspace(0, 1, 480, dtype=np.float32).reshape(24, 20))
    kinds: list[tuple[Pillow.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {"icc_profile": swapped(), "exif": exif()}),
        *[(picture, "PNG", {}) for picture in (gray, deep, rgb.convert("RGBA"), rgb.convert("P"), rgb.convert("1"))],
        *[(rgb, "JPEG", {"progressive": flag, "exif": b"Exif\0\0" + exif(), "icc_profile": swapped()}) for flag in (False, True)],
        (rgb.convert("CMYK"), "JPEG", {}),
        *[(rgb.convert("RGBA"), "WEBP", {"lossless": flag, "exif": exif()}) for flag in (False, True)],
        *[(rgb, "TIFF", {"compression": kind}) for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")],
        *[(picture, "TIFF", {}) for picture in (deep, floats, rgb.convert("CMYK"), rgb.convert("LAB"))],
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.convert("P"), gray]}),
        *[(rgb, kind, {}) for kind in ("BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "DIB", "JPEG2000", "QOI", "AVIF")],
        (rgb.convert("P"), "BLP", {}),
        *[(rgb.convert("1"), kind, {}) for kind in ("MSP", "XBM")],
        (floats, "SPIDER", {}),
    ]
    made: list[bytes] = []
    for picture, kind, options in kinds:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, kind, **options)
        except (OSError, KeyError, ValueError):  # a Pillow without that library
            continue
        made.append(buffer.getvalue())
    return made


def read_picture(data: bytes) -> None:
    """As `vqcodec compress` reads its input."""
    pixels = image.read_picture(data, "it", bool(len(data) % 2), MAX_PIXELS).pixels
    assert pixels.dtype == np.uint8
    assert pixels.size


TARGETS = {
    target.name: target
    for target in (
        Target("container", files, decode_codes, mutations.apply, 800),
        Target("sections", files, decompress, mutations.spoil_sealed, 50),
        Target("salvage", files, salvage, mutations.apply, 30),
        Target("payload", files, any_codes, mutations.spoil_payloads, 35),
        Target("picture", pictures, read_picture, mutations.spoil_picture, 70),
        Target("prior", lambda: [model_file(PRIOR)], use_prior, mutations.spoil_tensors, 7),
        Target("card", lambda: [model_file(CARD)], use_card, mutations.spoil_json, 6),
        Target("weights", lambda: [model_file(WEIGHTS)], use_weights, mutations.spoil_tensors, 1),
        Target("graph", lambda: [model_file(name) for name in (*ENCODERS, IMPROVE, IMPROVE_MIDDLE, DECODE)], use_graph, mutations.apply, 1),
    )
}
