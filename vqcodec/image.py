"""Pictures on disk to uint8 arrays and back, through Pillow. Knows nothing of codecs and models.

Shapes: an image is uint8 `(H, W)` gray, `(H, W, 2)` gray and alpha, `(H, W, 3)` RGB or `(H, W, 4)` RGB and alpha.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from vqcodec import channels, colour, limits
from vqcodec.container import MAX_SIDE, Metadata
from vqcodec.errors import ImageError, LimitError, OutputError
from vqcodec.limits import MAX_PIXELS
from vqcodec.tiles import Image

SUFFIX_DEFAULT = ".png"
NO_METADATA = Metadata()
BAND_PIXELS = 1 << 20
_TURN = threading.Lock()
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
RUNS_PROGRAMS = {"EPS", "WMF", "EMF"}  # Pillow hands these to Ghostscript or to Windows: not for files of strangers
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # bytes 8 to 12 of such a file
WITHOUT_ALPHA = {"JPEG", "BMP", "PPM"}
WITHOUT_METADATA = {"BMP", "PPM"}
XMP_ORIENTATION = re.compile(rb"""tiff:Orientation=["'][0-9]["']|<tiff:Orientation>[0-9]</tiff:Orientation>""")
# a TIFF keeps its EXIF among the tags that say where the pixels lie; these and the EXIF and GPS parts are worth keeping
TIFF_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
}
SIZE_TAGS = {ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength, ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "PNG": {"compress_type": zlib.Z_RLE},  # a third of the time of matches; 3 % more bytes of a photograph, twice of flat graphics
    "WEBP": {"lossless": True},
}


class Picture(NamedTuple):
    """A picture that was read: its pixels, the metadata to keep with them, and remarks on it for the user."""

    pixels: Image
    metadata: Metadata
    notices: tuple[str, ...]


def read(data: bytes, name: str = "the input") -> Image:
    """Decodes a picture in any format that Pillow knows to uint8 (H, W, 3), sRGB, upright; alpha is dropped.

    Raises `ImageError` as `read_picture` does.
    """
    return channels.split(read_picture(data, name).pixels).rgb


def read_picture(data: bytes, name: str = "the input", keep_metadata: bool = False, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decodes a picture in any format that Pillow knows to 8 bits, gray or RGB, with alpha where it has any, upright.

    Colours become sRGB. With `keep_metadata`, EXIF and XMP are kept, and gray and RGB stay in the colours of their ICC
    profile, which is kept. Of an animation the first frame is taken. Raises `ImageError` where Pillow cannot read it, its
    numbers have no known range, or a side exceeds the format's limit, and `LimitError` for more than `max_pixels`.
    """
    try:
        with _pillow(max_pixels), _open(data) as picture:
            _check(picture, name, max_pixels)
            found = _decode(picture, name, keep_metadata)
    except (ImageError, LimitError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is {_unknown(data)}") from error
    except Pillow.DecompressionBombError as error:
        raise LimitError(f"{name} has more than {max_pixels} pixels; if you trust it, raise the limit (--max-pixels)") from error
    except Exception as error:  # on damaged files Pillow's plugins raise whatever they stumble over
        raise ImageError(f"{name} is a damaged image ({error}); repair it or save it again") from error
    if not found.pixels.size:
        raise ImageError(f"{name} has no pixels")
    return found


@contextmanager
def _pillow(max_pixels: int) -> Iterator[None]:
    """Pillow with our limit instead of its own, which is a global: threads that read pictures take turns."""
    with _TURN, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files are not for the user
        before = Pillow.MAX_IMAGE_PIXELS
        Pillow.MAX_IMAGE_PIXELS = max_pixels  # it refuses twice as much, before we see the size
        try:
            yield
        finally:
            Pillow.MAX_IMAGE_PIXELS = before


def _check(picture: Pillow.Image, name: str, max_pixels: int) -> None:
    """What can be told from the head of a picture, before there is memory for its pixels."""
    if max(picture.size) > MAX_SIDE:
        raise ImageError(f"{name} has {picture.width} x {picture.height} pixels; a side can have {MAX_SIDE} at most")
    limits.check_pixels(*picture.size, max_pixels, name)
    if picture.format in RUNS_PROGRAMS:
        raise ImageError(f"{name} is {picture.format}, which another program would have to draw; save it as a PNG first")


def _open(data: bytes) -> Pillow.Image:
    """Opens a picture; where Pillow does not know it, once more with pillow-heif, if that is installed."""
    try:
        return Pillow.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if not _is_heic(data) or find_spec("pillow_heif") is None:
            raise
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return Pillow.open(io.BytesIO(data))


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS


def _unknown(data: bytes) -> str:
    """What to say of data that cannot be opened."""
    if _is_heic(data) and find_spec("pillow_heif") is None:
        return "a HEIC picture; install the extra for them: pip install 'vqcodec[heic]'"
    if _is_heic(data):
        return "a damaged HEIC picture; copy it again"
    return "no image that Pillow can read; give a PNG, JPEG, WebP, TIFF or the like"


def _decode(picture: Pillow.Image, name: str, keep_metadata: bool) -> Picture:
    frames = _frames(picture)
    raw_modes = " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))  # gone once it is loaded
    picture.load()  # Pillow's TIFF reader turns the picture itself while loading
    turn = TURNS.get(_orientation(picture))
    exif, xmp = _metadata(picture, turn is not None) if keep_metadata else (b"", b"")
    alpha = colour.alpha(picture, raw_modes)
    upright, icc, notices = colour.colours(picture, raw_modes, keep_metadata, name)
    if alpha is not None and alpha.getextrema() != (255, 255):
        upright = upright.copy()
        upright.putalpha(alpha)
    if turn is not None:
        upright = upright.transpose(turn)
    if frames > 1:
        notices += (f"has {frames} frames; only the first one is taken",)
    return Picture(_pixels(upright), Metadata(icc, exif, xmp), notices)


def _pixels(picture: Pillow.Image) -> Image:
    """The pixels as an array, band by band: numpy and Pillow together would hold them three times for a while."""
    width, height = picture.size
    bands = len(picture.getbands())
    pixels = np.empty((height, width) if bands == 1 else (height, width, bands), np.uint8)
    rows = max(1, BAND_PIXELS // max(1, width))
    for row in range(0, height, rows):
        pixels[row : row + rows] = np.asarray(picture.crop((0, row, width, min(height, row + rows))))
    return pixels


def _frames(picture: Pillow.Image) -> int:
    """Frames of an animation or pages; 1 where they cannot be counted. The extra images of camera files do not count."""
    try:
        return 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
    except Exception:
        picture.seek(0)  # counting has left it at the page before the damage
        return 1


def _orientation(picture: Pillow.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata cannot be read: good pixels are not refused for it."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _metadata(picture: Pillow.Image, turned: bool) -> tuple[bytes, bytes]:
    """EXIF and XMP of a picture without an orientation that is applied already, and the sizes before; what is unreadable is left out."""
    xmp = picture.info.get("xmp") or b""
    xmp = XMP_ORIENTATION.sub(b"", xmp.encode() if isinstance(xmp, str) else xmp)
    exif = picture.info.get("exif") or b""
    if turned or picture.format == "TIFF":
        try:
            kept = _chosen(picture.getexif(), picture.format == "TIFF")
            exif = kept.tobytes() if len(kept) else b""
        except Exception:  # the directories of EXIF are as a camera left them
            exif = b""
    return exif.removeprefix(b"Exif\0\0"), xmp


def _chosen(held: Pillow.Exif, tiff: bool) -> Pillow.Exif:
    """EXIF without what is said of the pixels: orientation and size, in a TIFF also where and how they lie."""
    kept = Pillow.Exif()
    for tag, value in held.items():
        if tag in TIFF_TAGS or (not tiff and tag != ExifTags.Base.Orientation and tag not in SIZE_TAGS):
            kept[tag] = value
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if values := held.get_ifd(part):
            kept[part] = {tag: value for tag, value in values.items() if tag not in SIZE_TAGS}
    return kept


def check_suffix(suffix: str) -> str:
    """Returns Pillow's name of the format of a suffix such as `.png`; raises `OutputError` for an unknown one."""
    found = FORMATS.get(suffix.lower() or SUFFIX_DEFAULT)
    if found is None:
        raise OutputError(f"no picture can be written with the suffix '{suffix}'; use one of {' '.join(FORMATS)}")
    return found


def write(image: Image, suffix: str = SUFFIX_DEFAULT, metadata: Metadata = NO_METADATA) -> bytes:
    """Encodes an image in the format of the suffix, with its metadata; BMP and PPM have none, and get sRGB.

    Raises `OutputError` where that fails, or where the format has no alpha and the image does.
    """
    kind = check_suffix(suffix)
    picture = Pillow.fromarray(image)
    if kind in WITHOUT_ALPHA and picture.mode in ("LA", "RGBA"):
        raise OutputError(f"{kind} cannot hold the picture's transparency; use .png, .webp or .tif")
    buffer = io.BytesIO()
    try:
        if kind in WITHOUT_METADATA:
            picture, metadata = colour.to_srgb(picture, metadata.icc), NO_METADATA
        picture.save(buffer, kind, **SAVE_OPTIONS.get(kind, {}), **_saved(metadata, kind))
    except MemoryError:
        raise
    except Exception as error:  # on damaged metadata Pillow's plugins raise whatever they stumble over
        raise OutputError(f"the picture cannot be written as {kind}: {error}; use .png") from error
    return buffer.getvalue()


def _saved(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Metadata as options of Pillow's `save`."""
    names = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}
    options: dict[str, Any] = {names[key]: value for key, value in metadata._asdict().items() if value}
    if kind == "JPEG" and "exif" in options:
        options["exif"] = b"Exif\0\0" + options["exif"]
    if kind == "PNG" and "xmp" in options:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode(errors="replace"))
    if kind == "TIFF" and (metadata.exif or metadata.xmp):
        held = Pillow.Exif()
        held.load(metadata.exif)
        tags = _chosen(held, tiff=True)
        if metadata.xmp:  # there it is a tag like those of EXIF
            tags[ExifTags.Base.XMLPacket] = options.pop("xmp")
        options["exif"] = tags.tobytes()
    return options
