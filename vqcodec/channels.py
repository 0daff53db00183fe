"""The kinds of images: gray or colour, with alpha or without, against the one kind that the transform takes.

Shapes: an image is uint8 `(H, W)` gray, `(H, W, 2)` gray and alpha, `(H, W, 3)` RGB or `(H, W, 4)` RGB and alpha; `(H, W, 1)` is
taken as gray. The transform sees RGB `(H, W, 3)`; gray fills all three channels. Alpha `(H, W)` is kept losslessly as a PNG.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngImageFile

from vqcodec.errors import DamagedError, ImageError
from vqcodec.tiles import Image

OPAQUE = 255
_PNG_HEAD = struct.Struct(">8s4x4sIIBB")  # signature, type of the first chunk, width, height, bit depth, colour type


class Channels(NamedTuple):
    """An image taken apart: `rgb` uint8 (H, W, 3), whether it is `gray`, `alpha` uint8 (H, W) or None where all is opaque."""

    rgb: Image
    gray: bool
    alpha: Image | None


def split(image: Image) -> Channels:
    """Takes an image of any kind apart; fully opaque alpha is dropped. Raises `ImageError` for another type or shape."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)) or not image.size:
        raise ImageError(f"an image must be uint8 (H, W) or (H, W, 1 to 4), this is {image.dtype} {image.shape}; convert it first")
    if image.ndim == 2:
        image = image[:, :, None]
    count = image.shape[2]
    alpha = image[:, :, -1] if count in (2, 4) else None
    if alpha is not None and bool((alpha == OPAQUE).all()):
        alpha = None
    gray = count < 3
    return Channels(np.repeat(image[:, :, :1], 3, axis=2) if gray else image[:, :, :3], gray, alpha)


def join(rgb: Image, gray: bool, alpha: Image | None) -> Image:
    """Puts an image together again; a gray value is the mean of the three channels."""
    image = (rgb.sum(axis=2, dtype=np.uint16, keepdims=True) + 1) // 3 if gray else rgb
    if alpha is not None:
        return np.concatenate([image, alpha[:, :, None]], axis=2).astype(np.uint8)
    return image[:, :, 0].astype(np.uint8) if gray else image


def pack_alpha(alpha: Image) -> bytes:
    """Alpha uint8 (H, W) as a PNG, with one bit per pixel where it is all or nothing."""
    picture = Pillow.fromarray(alpha)
    if bool(((alpha == 0) | (alpha == OPAQUE)).all()):
        picture = picture.convert("1", dither=Pillow.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def check_alpha(data: bytes, height: int, width: int) -> None:
    """Reads the head of an alpha's PNG; raises `DamagedError` unless it has this size, and one sample of 1 or 8 bits per pixel."""
    signature, kind, found_width, found_height, depth, colours = _PNG_HEAD.unpack(data[: _PNG_HEAD.size].ljust(_PNG_HEAD.size, b"\0"))
    if signature != b"\x89PNG\r\n\x1a\n" or kind != b"IHDR":
        raise DamagedError("the alpha is no PNG; the program that wrote the file is at fault")
    if (found_width, found_height) != (width, height) or depth not in (1, 8) or colours != 0:
        raise DamagedError("the alpha is of another size or kind than the picture; the program that wrote the file is at fault")


def unpack_alpha(data: bytes, height: int, width: int) -> Image:
    """Alpha uint8 (height, width) from its PNG; raises `DamagedError` where it is none of that size."""
    check_alpha(data, height, width)
    try:
        # not Image.open, whose limit on pixels is for strangers: here the size must be that of the picture
        with PngImageFile(io.BytesIO(data)) as picture:
            if picture.size == (width, height) and picture.mode in ("1", "L"):
                return np.array(picture.convert("L"))
    except Exception as error:  # on damaged files Pillow's plugins raise whatever they stumble over
        raise DamagedError(f"the alpha is no PNG ({error}); copy the file again") from error
    raise DamagedError("the alpha's PNG contradicts itself; the program that wrote the file is at fault")
