"""One input file to one output file, in either direction. Imports what is heavy when it is first needed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vqcodec import files
from vqcodec.config import DEFAULT_EFFORT
from vqcodec.limits import MAX_PIXELS, input_bytes

if TYPE_CHECKING:
    from vqcodec.tiles import Image

SUFFIX = ".vq"


class Job(NamedTuple):
    """An input and its output, as paths or "-"."""

    source: str
    target: str


@dataclass(frozen=True)
class CompressOptions:
    """How to compress: at a quality, or to a `goal` (a kind of `targets.KINDS` and its value)."""

    quality: float = 50
    goal: tuple[str, float] | None = None
    keep_metadata: bool = False
    model: str | None = None
    max_pixels: int = MAX_PIXELS
    effort: int = DEFAULT_EFFORT


@dataclass(frozen=True)
class DecompressOptions:
    """How to decompress: the number of levels, coarse to fine, and the format where the output's name has no suffix."""

    levels: int = 3
    suffix: str = ".png"
    model: str | None = None
    max_pixels: int = MAX_PIXELS
    salvage: bool = False


Options = CompressOptions | DecompressOptions


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `status` is done, skipped, salvaged or failed; `bytes` are those of the `.vq` file, whichever side it is.

    `lost` says what a salvaged file no longer has.
    """

    input: str
    output: str
    status: str
    bytes: int = 0
    width: int = 0
    height: int = 0
    seconds: float = 0
    notices: tuple[str, ...] = ()
    error: str = ""
    lost: tuple[str, ...] = ()

    @property
    def pixels(self) -> int:
        """Pixels of the picture; 0 unless the job is done."""
        return self.width * self.height


def convert(job: Job, options: Options, force: bool) -> Outcome:
    """Reads, converts and writes one file; raises a `VQCodecError` for whatever is wrong with it."""
    start = time.perf_counter()
    data = files.read(job.source, input_bytes(options.max_pixels))
    lost: tuple[str, ...] = ()
    if isinstance(options, CompressOptions):
        written, image, notices = _compress(data, job, options)
    elif options.salvage:
        written, image, lost = _salvage(data, job, options)
        notices = tuple(f"is damaged: {part}" for part in lost)
    else:
        written, image, notices = _decompress(data, job, options)
    files.write(job.target, written, force)
    size = len(written if isinstance(options, CompressOptions) else data)
    status, seconds = "salvaged" if lost else "done", time.perf_counter() - start
    return Outcome(job.source, job.target, status, size, image.shape[1], image.shape[0], seconds, notices, lost=lost)


def _compress(data: bytes, job: Job, options: CompressOptions) -> tuple[bytes, Image, tuple[str, ...]]:
    from vqcodec import codec, image, targets

    model = codec.open_model("default" if options.model is None else options.model)
    model.transform.begin_encoding()  # while the picture is read
    with files.silenced():
        pixels, metadata, notices = image.read_picture(data, job.source, options.keep_metadata, options.max_pixels)
    if options.goal:
        return targets.compress_to(pixels, *options.goal, model, metadata, options.max_pixels, options.effort), pixels, notices
    return codec.compress(pixels, options.quality, model, metadata, options.max_pixels, options.effort), pixels, notices


def _decompress(data: bytes, job: Job, options: DecompressOptions) -> tuple[bytes, Image, tuple[str, ...]]:
    from vqcodec import codec, container, image

    suffix = _suffix(job, options)
    image.check_suffix(suffix)
    pixels = codec.decompress(data, options.model, options.levels, options.max_pixels)
    held = container.unpack(data, options.levels)
    notices = (f"ends before its {', '.join(held.lacking)}; the picture is without",) if held.lacking else ()
    return image.write(pixels, suffix, held.extras.metadata), pixels, notices


def _salvage(data: bytes, job: Job, options: DecompressOptions) -> tuple[bytes, Image, tuple[str, ...]]:
    from vqcodec import codec, image

    suffix = _suffix(job, options)
    image.check_suffix(suffix)
    found = codec.salvage(data, options.model, options.max_pixels)
    return image.write(found.image, suffix, found.metadata), found.image, found.lost


def _suffix(job: Job, options: DecompressOptions) -> str:
    return options.suffix if job.target == files.STREAM else Path(job.target).suffix or options.suffix
