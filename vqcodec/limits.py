"""What an input may ask for at most. Everything is checked against these limits before memory is taken for it."""

from __future__ import annotations

from vqcodec.errors import LimitError

MAX_PIXELS = 200_000_000  # of a picture, unless the caller says otherwise: about 1.5 GB of memory to decompress
MAX_METADATA = 1 << 24  # bytes of an ICC profile, EXIF or XMP each
MAX_CARD = 1 << 22  # bytes of model.json
MAX_GRAPH = 1 << 24  # bytes of a graph, which holds no weights
MAX_WEIGHTS = 1 << 30  # bytes of a safetensors file
INPUT_PIXEL_BYTES = 16  # the largest pixel there is: four floats
INPUT_BYTES = 1 << 26  # of an input file beside its pixels


def check_pixels(width: int, height: int, limit: int, name: str = "the picture", advice: str = "") -> None:
    """Raises `LimitError` for a picture of more than `limit` pixels; the `advice` is to raise the limit unless given."""
    if width * height > limit:
        raising = f"if you trust it, raise the limit (--max-pixels {width * height}, or the argument max_pixels)"
        raise LimitError(f"{name} has {width} x {height} pixels, more than the limit of {limit}; {advice or raising}")


def check_metadata(name: str, length: int) -> None:
    """Raises `LimitError` for an ICC profile, EXIF or XMP of more bytes than a file may hold."""
    if length > MAX_METADATA:
        raise LimitError(f"the metadata '{name}' has {length} bytes, {MAX_METADATA} is the most; leave it out")


def input_bytes(max_pixels: int) -> int:
    """Bytes of the largest input file that is read."""
    return INPUT_BYTES + INPUT_PIXEL_BYTES * max_pixels
