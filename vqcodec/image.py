"""Pictures on disk to uint8 arrays `(H, W, 3)` and back, through Pillow. Knows nothing of codecs and models."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as Pillow

from vqcodec.container import MAX_SIDE
from vqcodec.errors import ImageError, OutputError
from vqcodec.transform import Image

SUFFIX_DEFAULT = ".png"
FORMATS = {  # only those that keep size and colours
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
TURNS = {  # what brings each EXIF orientation upright
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def read(data: bytes, name: str = "the input") -> Image:
    """Decodes a picture in any format that Pillow knows to uint8 (H, W, 3), EXIF orientation applied.

    Alpha is dropped. Raises `ImageError` where Pillow cannot read it, its numbers have no known range, or a side
    exceeds the format's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files are not for the user
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(io.BytesIO(data)) as picture:
                if max(picture.size) > MAX_SIDE:
                    raise ImageError(f"{name} has {picture.width} x {picture.height} pixels; a side can have {MAX_SIDE} at most")
                picture.load()  # Pillow's TIFF reader turns the picture itself while loading
                turn = TURNS.get(_orientation(picture))
                upright = _eight_bit(picture, name) if turn is None else _eight_bit(picture, name).transpose(turn)
                pixels = np.array(upright.convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or the like") from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has too many pixels: {error}") from error
    except Exception as error:  # on damaged files Pillow's plugins raise whatever they stumble over
        raise ImageError(f"{name} is a damaged image ({error}); repair it or save it again") from error
    if not pixels.size:
        raise ImageError(f"{name} has no pixels")
    return pixels


def _orientation(picture: Pillow.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata cannot be read: good pixels are not refused for it."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _eight_bit(picture: Pillow.Image, name: str) -> Pillow.Image:
    """Scales 16-bit gray to 8 bits, which Pillow's own conversion would clip; refuses numbers of unknown range."""
    if picture.mode == "F":
        raise ImageError(f"{name} has floating-point pixels of unknown range; convert it to 8 or 16 bits first")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.array(picture)
        if values.size and not (int(values.min()) >= 0 and int(values.max()) <= 65_535):
            raise ImageError(f"{name} has integers outside 0..65535; convert it to 8 or 16 bits first")
        sixteen = picture.mode != "I" or picture.format in {"PNG", "PPM"} or int(values.max(initial=0)) > 255
        return Pillow.fromarray((values / (257 if sixteen else 1)).round().astype(np.uint8))
    return picture


def check_suffix(suffix: str) -> str:
    """Returns Pillow's name of the format of a suffix such as `.png`; raises `OutputError` for an unknown one."""
    found = FORMATS.get(suffix.lower() or SUFFIX_DEFAULT)
    if found is None:
        raise OutputError(f"no picture can be written with the suffix '{suffix}'; use one of {' '.join(FORMATS)}")
    return found


def write(image: Image, suffix: str = SUFFIX_DEFAULT) -> bytes:
    """Encodes uint8 (H, W, 3) in the format of the suffix. Raises `OutputError` where that fails."""
    kind = check_suffix(suffix)
    buffer = io.BytesIO()
    options = SAVE_OPTIONS.get(kind, {})
    try:
        Pillow.fromarray(image).save(buffer, kind, **options)
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"the picture cannot be written as {kind}: {error}; use .png") from error
    return buffer.getvalue()
