"""Pictures on disk to uint8 arrays `(H, W, 3)` and back, through Pillow. Knows nothing of codecs and models."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from vqcodec.container import MAX_SIDE
from vqcodec.errors import ImageError, OutputError
from vqcodec.transform import Image

SUFFIX_DEFAULT = ".png"
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def read(data: bytes, name: str = "the input") -> Image:
    """Decodes a picture in any format that Pillow knows to uint8 (H, W, 3), EXIF orientation applied.

    Alpha is dropped. Raises `ImageError` where Pillow cannot read it or a side exceeds the format's limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files are not for the user
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(io.BytesIO(data)) as picture:
                if max(picture.size) > MAX_SIDE:
                    raise ImageError(f"{name} has {picture.width} x {picture.height} pixels; a side can have {MAX_SIDE} at most")
                pixels = np.array(ImageOps.exif_transpose(_eight_bit(picture)).convert("RGB"))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or the like") from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has too many pixels: {error}") from error
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ImageError(f"{name} is a damaged image ({error}); repair it or save it again") from error
    if not pixels.size:
        raise ImageError(f"{name} has no pixels")
    return pixels


def _eight_bit(picture: Pillow.Image) -> Pillow.Image:
    """Scales 16-bit gray to 8 bits: Pillow's own conversion would clip it."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return Pillow.fromarray((np.array(picture).clip(0, 65_535) / 257).round().astype(np.uint8))
    return picture


def check_suffix(suffix: str) -> str:
    """Returns Pillow's name of the format of a suffix such as `.png`; raises `OutputError` for an unknown one."""
    known = Pillow.registered_extensions()
    found = known.get(suffix.lower() or SUFFIX_DEFAULT)
    if found is None or found not in Pillow.SAVE:
        raise OutputError(f"no picture format has the suffix '{suffix}'; use .png, .jpg, .webp, .tif or another that Pillow writes")
    return found


def write(image: Image, path_or_suffix: str | Path = SUFFIX_DEFAULT) -> bytes:
    """Encodes uint8 (H, W, 3) in the format of the suffix. Raises `OutputError` where that fails."""
    text = str(path_or_suffix)
    kind = check_suffix(text if text.startswith(".") else Path(text).suffix)
    buffer = io.BytesIO()
    options = SAVE_OPTIONS.get(kind, {})
    try:
        Pillow.fromarray(image).save(buffer, kind, **options)
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"the picture cannot be written as {kind}: {error}; use .png") from error
    return buffer.getvalue()
