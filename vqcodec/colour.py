"""Pillow's many modes to 8-bit gray or RGB in sRGB. Knows nothing of files and orientation.

Terms of Pillow: mode `L` is gray, `F` and `I` are floats and integers, `P` a palette; `info["transparency"]` names a colour
that stands for "nothing here" in formats without an alpha channel.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from vqcodec.errors import ImageError

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # modes, and the profiles that can describe them
WITH_ALPHA = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA", "P": "RGBA"}  # and what to read them as
SCALED = "has more than 8 bits per channel; they are scaled to 8"


class Colours(NamedTuple):
    """8-bit colours: a picture of mode L or RGB, the profile that it needs (or nothing: sRGB), and what there is to say."""

    picture: Pillow.Image
    icc: bytes
    notices: tuple[str, ...]


def colours(picture: Pillow.Image, raw_modes: str, keep_icc: bool, name: str) -> Colours:
    """The colours of a loaded picture; alpha is left out, and profiles are applied unless `keep_icc` and the mode is gray or RGB.

    `raw_modes` tells how the file stores pixels: Pillow cuts 16-bit RGB down itself. Raises `ImageError` for numbers of unknown range.
    """
    eight, notice = _eight_bit(picture, name)
    notices: tuple[str, ...] = (notice or SCALED,) if notice or ";16" in raw_modes else ()
    icc = picture.info.get("icc_profile") or b""
    if keep_icc and icc and eight.mode in ("L", "RGB") and _fits(icc, eight.mode):
        return Colours(eight, icc, notices)
    try:
        converted = _to_srgb(eight, icc)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        converted = _to_srgb(eight, b"")
        notices += (f"has an ICC profile that cannot be used ({error}); its colours are taken as sRGB",)
    return Colours(converted, b"", notices)


def alpha(picture: Pillow.Image, raw_modes: str) -> Pillow.Image | None:
    """The alpha of a loaded picture as mode L, or None where it has none."""
    if picture.mode in WITH_ALPHA and picture.has_transparency_data:
        return picture.convert(WITH_ALPHA[picture.mode]).getchannel("A")
    key = picture.info.get("transparency")
    if key is None or not (picture.mode in ("1", "L", "RGB") or picture.mode.startswith("I")):
        return None
    values = np.array(picture)
    # the colour is named in the file's own depth, but Pillow has scaled the pixels to 8 bits
    scales: dict[str, float] = {"L;2": 255 / 3, "L;4": 255 / 15, "RGB;16B": 1 / 256}
    scale = next((factor for raw, factor in scales.items() if raw in raw_modes), 1)
    hidden = values == (np.array(key) * scale).astype(np.int64)
    return Pillow.fromarray(np.where(hidden.all(axis=2) if hidden.ndim == 3 else hidden, 0, 255).astype(np.uint8))


def to_srgb(picture: Pillow.Image, icc: bytes) -> Pillow.Image:
    """A picture of mode L, LA, RGB or RGBA from a profile's colours to sRGB; left alone where the profile does not fit."""
    bands = picture.split()
    opaque = Pillow.merge("RGB", bands[:3]) if len(bands) > 2 else bands[0]
    try:
        converted = _to_srgb(opaque, icc)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture
    if len(bands) in (2, 4):
        converted.putalpha(bands[-1])
    return converted


def _eight_bit(picture: Pillow.Image, name: str) -> tuple[Pillow.Image, str]:
    """The picture in one of the modes of `SPACES`, and a notice where numbers were scaled."""
    if picture.mode == "F":
        return _from_floats(np.array(picture), name)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_integers(picture, name)
    if picture.mode in SPACES:
        return picture, ""
    if picture.mode in ("1", "LA", "La"):
        return (picture.convert("LA") if picture.mode == "La" else picture).convert("L"), ""
    return (picture.convert("RGBA") if picture.mode == "RGBa" else picture).convert("RGB"), ""


def _from_integers(picture: Pillow.Image, name: str) -> tuple[Pillow.Image, str]:
    """Scales 16-bit gray to 8 bits, which Pillow's own conversion would clip."""
    values = np.array(picture)
    if values.size and not (int(values.min()) >= 0 and int(values.max()) <= 65_535):
        raise ImageError(f"{name} has integers outside 0..65535; convert it to 8 or 16 bits first")
    sixteen = picture.mode != "I" or picture.format in {"PNG", "PPM"} or int(values.max(initial=0)) > 255
    return Pillow.fromarray((values / (257 if sixteen else 1)).round().astype(np.uint8)), SCALED if sixteen else ""


def _from_floats(values: NDArray[np.float32], name: str) -> tuple[Pillow.Image, str]:
    """Scales 0..1 to 0..255, and other floats from their smallest to their largest value: nothing says what they mean."""
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has pixels that are infinite or no numbers; replace them first")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low >= 0 and high <= 1:
        low, high, notice = 0.0, 1.0, "has floating-point pixels; 0..1 is scaled to 8 bits"
    else:
        low, high = float(values.min()), float(values.max())
        notice = f"has floating-point pixels; {low:g}..{high:g} is scaled to 8 bits"
    return Pillow.fromarray(
        ((values.astype(np.float64) - low) * (255 / max(high - low, 1e-30))).round().clip(0, 255).astype(np.uint8)
    ), notice


def _fits(icc: bytes, mode: str) -> bool:
    """Whether a profile describes pixels of this mode; a broken one does not."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space.strip() == SPACES[mode]
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False


def _to_srgb(picture: Pillow.Image, icc: bytes) -> Pillow.Image:
    """Mode L, RGB, CMYK or LAB to L or RGB in sRGB; raises `PyCMSError` or `OSError` for a broken profile."""
    if icc:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if source.profile.xcolor_space.strip() != SPACES[picture.mode]:
            icc = b""
    if not icc and picture.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif not icc:
        return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    converted = ImageCms.profileToProfile(
        picture,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # only with inPlace
    return converted.getchannel("G") if picture.mode == "L" else converted
