"""Images to `.vq` files and back: the table of contents of the whole codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqcodec import bitstream, channels, container, limits
from vqcodec.codes import CodeMap, Codes, map_sizes
from vqcodec.config import DEFAULT_EFFORT, LEVELS
from vqcodec.container import Container, Extras, Metadata, Section
from vqcodec.errors import DamagedError, FormatError, ImageError, WrongModelError
from vqcodec.limits import MAX_PIXELS
from vqcodec.model import Model, load_model, model_names, quality_steps
from vqcodec.tiles import Image

ModelLike = Model | str | Path
BytesLike = bytes | bytearray | memoryview
NO_METADATA, NO_EXTRAS = Metadata(), Extras()
ADAPTED_EFFORT = 3  # below, encoding should not take as long as decoding besides


class Salvaged(NamedTuple):
    """What was intact of a file: the image, the metadata, how many levels the image is of, and what was lost, in words."""

    image: Image
    metadata: Metadata
    levels: int
    lost: tuple[str, ...]


def compress(
    image: Image,
    quality: float = 50,
    model: ModelLike = "default",
    metadata: Metadata = NO_METADATA,
    max_pixels: int = MAX_PIXELS,
    effort: int = DEFAULT_EFFORT,
) -> bytes:
    """Compresses an image to the bytes of a `.vq` file.

    The image is uint8 (H, W, 3) RGB, (H, W) or (H, W, 1) gray, (H, W, 4) RGB and alpha, or (H, W, 2) gray and alpha; alpha is kept
    losslessly, and dropped where all of it is opaque. The colours are sRGB unless `metadata` holds an ICC profile.
    `quality` is any number from 0 to 100, higher is better; `effort` from 0 to 9 is how long the encoder searches for better codes.
    Raises `ImageError`, `LimitError` for more than `max_pixels` (which `decompress` would refuse), `ModelError` or `ValueError`.
    """
    opened = open_model(model)
    rgb, extras = take_apart(image, metadata, max_pixels)
    opened.transform.begin_encoding()
    _ = opened.prior  # read meanwhile
    codes, extras = encode(opened, rgb, quality, effort, extras)
    return pack_codes(codes, rgb.shape[0], rgb.shape[1], quality, opened, extras)


def encode(model: Model, rgb: Image, quality: float, effort: int, extras: Extras = NO_EXTRAS) -> tuple[Codes, Extras]:
    """An image's codes, and the extras with what adapts the decoder to it, from `ADAPTED_EFFORT` on."""
    codes = model.encode(rgb, quality, effort)
    return codes, extras._replace(adaptation=model.adapt(rgb, codes, quality) if effort >= ADAPTED_EFFORT else b"")


def take_apart(image: Image, metadata: Metadata, max_pixels: int) -> tuple[Image, Extras]:
    """Splits an image of any kind into RGB uint8 (H, W, 3) for the transform, and what a file keeps beside the codes."""
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise ImageError(f"an image must be a numpy array, this is {kind}; open a file with Pillow, and give np.asarray(image)")
    if max(image.shape, default=0) > container.MAX_SIDE:
        raise ImageError(f"the image is {image.shape}; a side can have {container.MAX_SIDE} pixels at most")
    rgb, gray, alpha = channels.split(image)
    limits.check_pixels(rgb.shape[1], rgb.shape[0], max_pixels)
    return rgb, Extras(gray, b"" if alpha is None else channels.pack_alpha(alpha), metadata)


def pack_codes(codes: Codes, height: int, width: int, quality: float, model: ModelLike = "default", extras: Extras = NO_EXTRAS) -> bytes:
    """Codes of an image of `height` x `width` pixels to the bytes of a `.vq` file. Raises `ValueError` for misfits."""
    opened, steps = open_model(model), quality_steps(quality)
    payloads = bitstream.write(opened.prior, codes, height, width, steps)
    levels = tuple(Section(kind, payload) for kind, payload in enumerate(payloads, 1))
    return container.pack(Container(opened.id, width, height, steps, levels + extras.sections(), extras.gray))


def decompress(data: BytesLike, model: ModelLike | None = None, levels: int = 3, max_pixels: int = MAX_PIXELS) -> Image:
    """Decompresses the bytes of a `.vq` file to an image uint8 of the kind that was compressed.

    That is (H, W, 3) RGB, (H, W) gray, (H, W, 4) RGB and alpha, or (H, W, 2) gray and alpha. `levels` 1 or 2 decodes the coarsest
    levels alone, for which the beginning of a file is enough; alpha comes after the levels, so that it may be lost then.
    `model` is needed only for a file made with a model that does not come with the package.
    Raises `FormatError` for anything wrong in the data, `LimitError` for more than `max_pixels`, and `WrongModelError` where another
    model is needed.
    """
    if not 1 <= levels <= len(LEVELS):
        raise ValueError(f"levels {levels} lies outside 1..{len(LEVELS)}")
    held = container.unpack(_as_bytes(data), levels)
    _check(held, max_pixels)
    opened = find_model(held.model_id, model)
    maps: list[CodeMap] = []
    for code_map in bitstream.read_levels(opened.prior, held.levels[:levels], held.height, held.width, held.quality):
        opened.transform.decoder.begin()  # beside the finer levels, once the top one is intact
        maps.append(code_map)
    codes = bitstream.complete(opened.prior, maps, held.height, held.width)
    rgb = opened.decode(codes, held.height, held.width, held.quality / 100, levels, held.extras.adaptation)
    alpha = channels.unpack_alpha(held.extras.alpha, held.height, held.width) if held.extras.alpha else None
    return channels.join(rgb, held.gray, alpha)


def salvage(data: BytesLike, model: ModelLike | None = None, max_pixels: int = MAX_PIXELS) -> Salvaged:
    """Decompresses what is intact of a damaged or truncated `.vq` file: the levels from the coarsest on, alpha and metadata.

    The image is as from `decompress`; what is lost is left out, alpha as if all were opaque. Raises as `decompress` does where the
    header or the top level is not intact.
    """
    held, lost = container.salvage(_as_bytes(data))
    limits.check_pixels(held.width, held.height, max_pixels)
    opened = find_model(held.model_id, model)
    maps: list[CodeMap] = []
    try:
        for code_map in bitstream.read_levels(opened.prior, held.levels, held.height, held.width, held.quality):
            maps.append(code_map)
    except DamagedError as error:
        if not maps:
            raise
        lost.append(str(error).split(";")[0])
        lost += [container.builds_on_lost(name) for name in LEVELS[len(maps) + 1 : len(held.levels)]]
    codes = bitstream.complete(opened.prior, maps, held.height, held.width)
    try:
        rgb = opened.decode(codes, held.height, held.width, held.quality / 100, len(maps), held.extras.adaptation)
    except DamagedError as error:
        rgb = opened.decode(codes, held.height, held.width, held.quality / 100, len(maps))
        lost.append(str(error).split(";")[0])
    try:
        alpha = channels.unpack_alpha(held.extras.alpha, held.height, held.width) if held.extras.alpha else None
    except DamagedError as error:
        alpha = None
        lost.append(str(error).split(";")[0])
    return Salvaged(channels.join(rgb, held.gray, alpha), held.extras.metadata, len(maps), tuple(lost))


def decode_codes(data: BytesLike, model: ModelLike | None = None, max_pixels: int = MAX_PIXELS) -> Codes:
    """Entropy decoding alone: the codes in a `.vq` file. Raises as `decompress` does."""
    held = container.unpack(_as_bytes(data))
    _check(held, max_pixels)
    opened = find_model(held.model_id, model)
    return bitstream.read(opened.prior, held.levels, held.height, held.width, held.quality)


def read_metadata(data: BytesLike, levels: int = 3) -> Metadata:
    """The metadata that a `.vq` file keeps; it needs no model. `levels` and `FormatError` are as in `decompress`."""
    return container.unpack(_as_bytes(data), levels).extras.metadata


def info(data: BytesLike, model: ModelLike | None = None) -> dict[str, Any]:
    """Describes a `.vq` file without decoding it: what `vqcodec info --json` prints.

    `model` (its name) and `codes` (shapes) are None where the file's model is not at hand.
    """
    data = _as_bytes(data)
    held = container.unpack(data)
    try:
        opened = find_model(held.model_id, model)
    except WrongModelError:
        opened = None
    sizes = {s.name: s.size for s in held.sections}
    return {
        "width": held.width,
        "height": held.height,
        "quality": held.quality / 100,
        "model": opened.name if opened else None,
        "model_id": held.model_id.hex(),
        "format_version": container.VERSION,
        "bytes": len(data),
        "bpp": 8 * len(data) / (held.width * held.height),
        "channels": ("gray" if held.gray else "rgb") + ("+alpha" if held.extras.alpha else ""),
        "sections": sizes,
        "sections_bpp": {name: 8 * size / (held.width * held.height) for name, size in sizes.items()},
        "codes": _code_shapes(opened, held) if opened else None,
    }


def find_model(model_id: bytes, model: ModelLike | None) -> Model:
    """Returns the model with this id: the given one, or one that comes with the package.

    Raises `WrongModelError` where the ids differ.
    """
    candidates = [open_model(model)] if model is not None else [load_model(name) for name in model_names()]
    for candidate in candidates:
        if candidate.id == model_id:
            return candidate
    known = ", ".join(f"{m.name} ({m.id.hex()})" for m in candidates) or "none"
    shipped = model is not None and any(load_model(name).id == model_id for name in model_names())
    advice = "leave out --model, for that one comes with the package" if shipped else "give its folder with --model"
    raise WrongModelError(f"the file needs the model {model_id.hex()}, here is {known}; {advice}")


def _as_bytes(data: BytesLike) -> bytes:
    """A file's bytes from whatever holds bytes; raises `FormatError` for what does not, such as a file's name."""
    try:
        return data if isinstance(data, bytes) else bytes(memoryview(data))
    except TypeError as error:
        raise FormatError(f"this is {type(data).__name__}, not the bytes of a .vq file; give Path(name).read_bytes()") from error


def _check(held: Container, max_pixels: int) -> None:
    """Refuses what a file asks for in vain or in excess before anything is decoded."""
    limits.check_pixels(held.width, held.height, max_pixels)
    if held.extras.alpha:
        channels.check_alpha(held.extras.alpha, held.height, held.width)


def _code_shapes(model: Model, held: Container) -> dict[str, list[int]]:
    sizes = map_sizes(held.height, held.width)
    return {name: [level.stages, *size] for name, level, size in zip(LEVELS, model.config.transform.levels, sizes, strict=True)}


def open_model(model: ModelLike) -> Model:
    """An opened model as it is, another one by its name or folder."""
    return model if isinstance(model, Model) else load_model(model)
