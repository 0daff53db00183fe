"""The codecs that a bench compares, each as two functions: image -> bytes of a file, and back.

All peers run at their best settings for the MSE, in one thread where the library lets one choose. Shapes: images
uint8 `(H, W, 3)`. A codec's setting is a number on its own scale: a quality, a compression ratio or a distance.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import features

from vqcodec import __version__, codec
from vqcodec.bench.machine import package_version, source
from vqcodec.config import DEFAULT_EFFORT
from vqcodec.errors import BenchError, MissingLibraryError
from vqcodec.image import read
from vqcodec.model import load_model
from vqcodec.tiles import Image

OURS = "vqcodec"


@dataclass(frozen=True)
class Coder:
    """One codec. `settings` are the defaults, and `knob` says what they mean; `fixed` is all that stays the same.

    `ends` are the settings of the smallest and the largest file; `whole` is true where only integers are allowed.
    """

    name: str
    library: str
    knob: str
    fixed: str
    settings: tuple[float, ...]
    ends: tuple[float, float]
    whole: bool
    compress: Callable[[Image, float], bytes]
    decompress: Callable[[bytes], Image]


def open_coder(name: str, model: str, effort: int = DEFAULT_EFFORT) -> Coder:
    """Opens a codec by its name; `model` and `effort` are what `vqcodec` uses.

    Raises `MissingLibraryError` where its library is not installed and `BenchError` for an unknown name.
    """
    makers: dict[str, Callable[[], Coder]] = {
        OURS: partial(_vqcodec, model, effort),
        "jpeg": _jpeg,
        "webp": _webp,
        "avif": _avif,
        "jpeg2000": _jpeg2000,
        "jxl": _jxl,
        "heic": _heic,
    }
    if name not in makers:
        raise BenchError(f"no codec '{name}'; choose from {','.join(makers)}")
    return makers[name]()


def _vqcodec(model: str, effort: int) -> Coder:
    opened = load_model(model)

    def compress(image: Image, setting: float) -> bytes:
        return codec.compress(image, setting, opened, effort=effort)

    def decompress(data: bytes) -> Image:
        return codec.decompress(data, opened)

    fixed = f"model {opened.name} ({opened.id.hex()})" + (f", effort {effort}" if effort != DEFAULT_EFFORT else "")
    parts = ", ".join(f"{name} {package_version(name)}" for name in ("numpy", "onnxruntime", "constriction"))
    library = f"vqcodec {__version__} (source {source()}, {parts})"
    return Coder(OURS, library, "quality", fixed, (0, 20, 40, 60, 80, 100), (0, 100), False, compress, decompress)


def _jpeg() -> Coder:
    save = partial(_save, "JPEG", optimize=True, progressive=True, subsampling="4:2:0")
    library = _pillow("jpg", "libjpeg_turbo")
    return Coder("jpeg", library, "quality", "optimised, progressive, 4:2:0", (3, 5, 8, 12, 18, 25), (1, 95), True, save, read)


def _webp() -> Coder:
    library = _pillow("webp", "webp")
    return Coder(
        "webp", library, "quality", "method 6, 4:2:0", (0, 1, 5, 10, 20, 30), (0, 100), True, partial(_save, "WEBP", method=6), read
    )


def _avif() -> Coder:
    options: dict[str, Any] = {"codec": "aom", "speed": 4, "subsampling": "4:4:4", "advanced": {"tune": "psnr"}, "max_threads": 1}
    library = _pillow("avif", "avif")
    save = partial(_save, "AVIF", **options)
    return Coder("avif", library, "quality", "aom, speed 4, tune=psnr, 4:4:4, 8 bits", (0, 5, 10, 20, 30, 40), (0, 100), True, save, read)


def _jpeg2000() -> Coder:
    library = _pillow("jpg_2000", "jpg_2000")

    def compress(image: Image, ratio: float) -> bytes:
        return _encode(image, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1)

    fixed = "wavelet 9/7, colour transform, one layer, 4:4:4"
    return Coder("jpeg2000", library, "compression ratio", fixed, (480, 240, 120, 80, 60, 40), (1000, 4), False, compress, read)


def _jxl() -> Coder:
    jxl = _library("imagecodecs", "jxl")

    def compress(image: Image, distance: float) -> bytes:
        return bytes(jxl.jpegxl_encode(image, distance=distance, effort=7, numthreads=1))

    def decompress(data: bytes) -> Image:
        return np.asarray(jxl.jpegxl_decode(data, numthreads=1))

    library = f"{jxl.jpegxl_version()} (imagecodecs {version('imagecodecs')})"
    return Coder("jxl", library, "distance", "effort 7, 4:4:4", (25, 18, 12, 8, 5, 3.5), (25, 0.1), False, compress, decompress)


def _heic() -> Coder:
    heif = _library("pillow_heif", "heic")

    def compress(image: Image, quality: float) -> bytes:
        buffer = io.BytesIO()
        picture = heif.from_pillow(Pillow.fromarray(image))
        picture.save(buffer, quality=int(quality), chroma="420", enc_params={"preset": "slow", "tune": "psnr"})
        return buffer.getvalue()

    def decompress(data: bytes) -> Image:
        return np.asarray(heif.open_heif(data, convert_hdr_to_8bit=True))

    library = f"x265 in libheif {heif.libheif_version()} (pillow-heif {version('pillow-heif')})"
    fixed = "preset slow, tune psnr, 4:2:0, 8 bits"
    return Coder("heic", library, "quality", fixed, (0, 5, 10, 20, 30, 35), (0, 100), True, compress, decompress)


def _pillow(feature: str, versioned: str) -> str:
    """Pillow's and the feature's versions in words; raises `MissingLibraryError` where Pillow was built without it."""
    if not features.check(feature):
        raise MissingLibraryError(f"this Pillow was built without {feature}; install one from the package index")
    number = features.version(versioned) or features.version(feature)
    return f"{versioned.replace('jpg_2000', 'openjpeg').replace('avif', 'libavif')} {number} (Pillow {version('pillow')})"


def _library(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingLibraryError(f"{name} needs {module}; install the extra: pip install 'vqcodec[bench]'") from error


def _save(kind: str, image: Image, quality: float, **options: Any) -> bytes:
    return _encode(image, kind, quality=int(quality), **options)


def _encode(image: Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
