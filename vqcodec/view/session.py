"""What is looked at, and what was computed for it: pictures of a folder or dropped on the page. Knows nothing of HTTP.

A picture has a number. A `.vq` file has no original and one quality, its own; any other picture is compressed at the
quality that is asked for. What was computed last is kept, so that a page can ask for figures and pixels one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from vqcodec import channels, codec, container, files, image, limits, metrics
from vqcodec.batch import PICTURES
from vqcodec.config import LEVELS
from vqcodec.convert import SUFFIX
from vqcodec.errors import ImageError
from vqcodec.tiles import Image

DROPPED = 16  # pictures dropped on the page that are kept in memory
OPENED, COMPRESSED, RESTORED = 2, 32, 6  # results that are kept


class Opened(NamedTuple):
    """A picture that was read from `size` bytes: `original` is its uint8 pixels, or None where `packed` is the `.vq` file itself."""

    name: str
    size: int
    original: Image | None
    packed: bytes
    notices: tuple[str, ...]


def find(path: Path | None) -> list[Path]:
    """The pictures and `.vq` files that a path stands for: itself, those in the folder, or none without a path.

    Raises `ImageError` where there is nothing.
    """
    if path is None:
        return []
    try:
        if not path.is_dir():
            return [path]
        wanted = PICTURES | {SUFFIX}
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in wanted and file.is_file())
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not found:
        raise ImageError(f"no picture and no {SUFFIX} file lies in {path}; name another folder, or a file")
    return found


class Session:
    """The pictures and the model of one page. Its methods can be called from any thread; they work one at a time."""

    def __init__(self, paths: Iterable[Path] = (), model: str | None = None):
        """Opens the model; raises `ModelError` where that fails."""
        self.model = codec.open_model(model or "default")
        self._given = model and self.model
        self._sources: dict[int, tuple[str, Path | bytes]] = {number: (path.name, path) for number, path in enumerate(paths)}
        self._numbers = count(len(self._sources))
        self._dropped: list[int] = []
        self._lock = RLock()
        self._opened = lru_cache(OPENED)(self._open)
        self._compressed = lru_cache(COMPRESSED)(self._compress)
        self._restored = lru_cache(RESTORED)(self._restore)

    def names(self) -> dict[int, str]:
        """The pictures that can be asked for, by their numbers."""
        with self._lock:
            return {number: name for number, (name, _) in self._sources.items()}

    def add(self, name: str, data: bytes) -> int:
        """Takes a picture that was dropped; the oldest of more than `DROPPED` is forgotten. Raises as `describe` does."""
        with self._lock:
            number = next(self._numbers)
            self._sources[number] = (name, data)
            try:
                self._opened(number)
            except BaseException:
                del self._sources[number]
                raise
            self._dropped.append(number)
            if len(self._dropped) > DROPPED:
                del self._sources[self._dropped.pop(0)]
            return number

    def describe(self, number: int) -> dict[str, Any]:
        """A picture's name, size and kind; `quality` is None unless it is a `.vq` file, which has its own.

        Raises `ImageError` or `FormatError` for what cannot be read.
        """
        with self._lock:
            opened = self._opened(number)
            if opened.original is not None:
                (height, width), quality = opened.original.shape[:2], None
                kind = channels.split(opened.original)
                described = ("gray" if kind.gray else "rgb") + ("" if kind.alpha is None else "+alpha")
            else:
                facts = codec.info(opened.packed, self._given)
                height, width, quality, described = facts["height"], facts["width"], facts["quality"], facts["channels"]
        return {
            "number": number,
            "name": opened.name,
            "bytes": opened.size,
            "width": width,
            "height": height,
            "channels": described,
            "quality": quality,
            "notices": opened.notices,
        }

    def original(self, number: int) -> Image:
        """The pixels of a picture; those of a `.vq` file are all that it holds."""
        with self._lock:
            original = self._opened(number).original
            return self._restored(number, 0, len(LEVELS)) if original is None else original

    def compressed(self, number: int, quality: float) -> bytes:
        """The bytes of the `.vq` file at a quality, which does not matter where the picture is one already."""
        with self._lock:
            opened = self._opened(number)
            return opened.packed or self._compressed(number, quality)

    def restored(self, number: int, quality: float, levels: int) -> Image:
        """The pixels from the coarsest `levels` of the `.vq` file."""
        with self._lock:
            return self._restored(number, 0 if self._opened(number).packed else quality, levels)

    def figures(self, number: int, quality: float, levels: int) -> dict[str, Any]:
        """Rate and distortion of the beginning of the file that holds `levels` levels.

        `level_bytes` are those of the last of these levels, `bytes` and `bpp` those of the beginning up to there (with all
        levels: of the whole file). `mse` and `psnr` are those of the colours; None without an original, `psnr` also for MSE 0.
        """
        with self._lock:
            opened, data = self._opened(number), self.compressed(number, quality)
            restored = self.restored(number, quality, levels)
        sizes = [section.size for section in container.unpack(data).sections]
        size = len(data) if levels == len(LEVELS) else container.HEADER_BYTES + sum(sizes[:levels])
        mse = None if opened.original is None else metrics.mse(channels.split(opened.original).rgb, channels.split(restored).rgb)
        return {
            "level_bytes": sizes[levels - 1],
            "bytes": size,
            "bpp": metrics.bpp(size, *restored.shape[:2]),
            "mse": mse,
            "psnr": metrics.psnr(mse) if mse else None,
        }

    def _open(self, number: int) -> Opened:
        if number not in self._sources:
            raise ImageError("this picture is not kept any more; drop it again")
        name, source = self._sources[number]
        data = source if isinstance(source, bytes) else files.read(str(source), limits.input_bytes(limits.MAX_PIXELS))
        if data.startswith(container.MAGIC):
            held = container.unpack(data)
            codec.find_model(held.model_id, self._given)
            return Opened(name, len(data), None, data, ())
        with files.silenced():
            picture = image.read_picture(data, name)
        return Opened(name, len(data), picture.pixels, b"", picture.notices)

    def _compress(self, number: int, quality: float) -> bytes:
        original = self._opened(number).original
        assert original is not None
        return codec.compress(original, quality, self.model)

    def _restore(self, number: int, quality: float, levels: int) -> Image:
        data = self.compressed(number, quality)
        own = not self._opened(number).packed
        return codec.decompress(data, self.model if own else self._given, levels)
