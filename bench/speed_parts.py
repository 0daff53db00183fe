"""Times the parts of the codec in this process, for bench/speed.py: prints a JSON list of [part, megapixels, seconds].

python3 bench/speed_parts.py '{"sizes": [0.4, 2], "quality": 50, "model": "default", "peer_limit": 12}'

Parts are inclusive and named by the way to them: `write/scan/products` lies within `write/scan`, which lies within `write`.
Where the code is reorganised, `watched` below is what has to follow; the smoke test says when.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import constriction
import numpy as np
import raster
from PIL import Image as Pillow

from vqcodec import bitstream, metrics, prior, scan
from vqcodec.kernel import library
from vqcodec.model import load_model, quality_steps

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "tests" / "images"
RASTER_SIDE = 128  # pixels of the crop that is coded without wavefronts
KERNEL = ("vqcodec_trunk", "vqcodec_freqs", "vqcodec_enter")
UNTILED = 2.1  # megapixels: up to here a first, untimed pass warms up for this size

Record = tuple[str, float, float]
Function = Callable[..., Any]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": perf_counter, "cpu": process_time}  # cpu: the processor's time over all threads


@dataclass(frozen=True)
class Asked:
    """What to measure: sizes in megapixels, and AVIF up to `peer_limit`. `pictures` is a folder to write the pictures to instead."""

    sizes: list[float]
    quality: float
    model: str
    clock: str = "wall"
    peer_limit: float = 0
    pictures: str | None = None


class Watch:
    """Adds up the seconds within named functions, by the way to them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.path: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside under this name."""
        self.path.append(name)
        start = self.clock()
        try:
            yield
        finally:
            key = "/".join(self.path)
            self.seconds[key] = self.seconds.get(key, 0.0) + self.clock() - start
            self.path.pop()

    def timed(self, name: str, function: Function) -> Function:
        """The function, counted under this name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def kernel(self, library: Any) -> Any:
        """The compiled wavefronts, counted; None where there are none."""
        return library and SimpleNamespace(**{name: self.timed("kernel", getattr(library, name)) for name in KERNEL})

    def coder(self, maker: Function) -> Function:
        """A range coder whose `encode` or `decode` is counted."""

        def make(*args: Any) -> Any:
            return Counted(maker(*args), self)

        return make


class Counted:
    """A range coder and a watch."""

    def __init__(self, coder: Any, watch: Watch):
        self.coder, self.watch = coder, watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.coder, name)
        return self.watch.timed("range coder", found) if name in ("encode", "decode") else found


@contextlib.contextmanager
def watched(watch: Watch, used: prior.Prior) -> Iterator[None]:
    """Counts the prior's context, scan, and the range coder; of the scan the kernel, or products and frequencies."""
    queue, original = constriction.stream.queue, prior.Prior.context
    places = [
        (prior.Prior, "context", lambda self, *args: watch.timed("context", original)(self, *args)),
        (bitstream, "scan", watch.timed("scan", bitstream.scan)),
        (bitstream, "scan_known", watch.timed("scan", bitstream.scan_known)),
        (scan, "freqs", watch.timed("frequencies", scan.freqs)),
        (scan, "library", lambda: watch.kernel(library())),
        (used, "product", watch.timed("products", used.product)),
        (queue, "RangeEncoder", watch.coder(queue.RangeEncoder)),
        (queue, "RangeDecoder", watch.coder(queue.RangeDecoder)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, new in places:
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


def mosaic(megapixels: float) -> np.ndarray:
    """A picture uint8 (H, W, 3) of about 3:2 and that size, of the sample photographs side by side, flipped in turns."""
    height = max(32, round((megapixels * 1e6 / 1.5) ** 0.5))
    width = round(1.5 * height)
    photographs = [np.array(Pillow.open(path).convert("RGB"))[:300, :450] for path in sorted(PHOTOGRAPHS.glob("*.png"))]
    rows = [np.concatenate([*photographs], 1), np.concatenate([photo[::-1, ::-1] for photo in reversed(photographs)], 1)]
    block = np.concatenate(rows, 0)
    return np.tile(block, (-(-height // block.shape[0]), -(-width // block.shape[1]), 1))[:height, :width].copy()


def codec_parts(pixels: np.ndarray, asked: Asked, watch: Watch) -> np.ndarray:
    """Counts every part of compression and decompression, and returns the reconstruction."""
    model, size, steps = load_model(asked.model), pixels.shape[:2], quality_steps(asked.quality)
    with watch.part("encode"):
        codes = model.encode(pixels, asked.quality)
    adapted: dict[str, bytes] = {}
    if hasattr(model, "adapt"):  # older checkouts have nothing of the kind
        with watch.part("adapt"):
            adapted["adaptation"] = model.adapt(pixels, codes, asked.quality)
    with watched(watch, model.prior):
        with watch.part("write"):
            payloads = bitstream.write(model.prior, codes, *size, steps)
        with watch.part("read"):
            found = bitstream.read(model.prior, payloads, *size, steps)
    assert all((a == b).all() for a, b in zip(codes, found, strict=True))
    with watch.part("decode"):
        return model.decode(found, *size, asked.quality, **adapted)


def raster_parts(asked: Asked) -> dict[str, float]:
    """Seconds a position, of reading a small crop in wavefronts and one position at a time."""
    model, steps, watch = load_model(asked.model), quality_steps(asked.quality), Watch(CLOCKS[asked.clock])
    pixels = mosaic(0.4)[:RASTER_SIDE, :RASTER_SIDE]
    codes, plain = model.encode(pixels, asked.quality), prior.Prior(model.prior.levels)  # in numpy, both
    for label, walk in (("wavefronts", scan), ("one by one", raster)):
        with mock.patch.multiple(bitstream, scan=walk.scan, scan_known=walk.scan_known):
            payloads = bitstream.write(plain, codes, *pixels.shape[:2], steps)
            with watch.part(f"position, {label}"):
                bitstream.read(plain, payloads, *pixels.shape[:2], steps)
    positions = sum(code_map[0].size for code_map in codes)
    return {name: seconds / positions for name, seconds in watch.seconds.items()}


def avif_quality(pixels: np.ndarray, psnr: float) -> int | None:
    """The smallest quality of AVIF with at least that PSNR; None where it is not installed here."""
    coder = open_avif()
    if coder is None:
        return None
    low, high = 0, 100
    while low < high:
        middle = (low + high) // 2
        restored = coder.decompress(coder.compress(pixels, middle))
        low, high = (low, middle) if metrics.psnr(metrics.mse(pixels, restored)) >= psnr else (middle + 1, high)
    return low


def open_avif() -> Any:
    """The bench's AVIF, or None."""
    from vqcodec.bench.peers import open_coder
    from vqcodec.errors import VQCodecError

    try:
        return open_coder("avif", "")
    except VQCodecError:
        return None


def avif_parts(pixels: np.ndarray, quality: int, watch: Watch) -> None:
    """Counts AVIF at this quality."""
    coder = open_avif()
    with watch.part("avif encode"):
        data = coder.compress(pixels, quality)
    with watch.part("avif decode"):
        coder.decompress(data)


def measure(asked: Asked) -> Iterator[Record]:
    """Every part at every size."""
    chosen: int | None = None
    for index, megapixels in enumerate(asked.sizes):
        pixels, watch = mosaic(megapixels), Watch(CLOCKS[asked.clock])
        if megapixels <= UNTILED or not index:
            codec_parts(pixels, asked, Watch(perf_counter))
        restored = codec_parts(pixels, asked, watch)
        if not index and asked.peer_limit:
            chosen = avif_quality(pixels, metrics.psnr(metrics.mse(pixels, restored)))
        if chosen is not None and megapixels <= asked.peer_limit:
            avif_parts(pixels, chosen, watch)
        yield from ((part, megapixels, value) for part, value in watch.seconds.items())
    yield from ((part, 0.0, value) for part, value in raster_parts(asked).items())


def main(asked: Asked) -> None:
    """Writes the pictures where a folder for them is named, else measures."""
    if asked.pictures:
        for megapixels in asked.sizes:
            Pillow.fromarray(mosaic(megapixels)).save(Path(asked.pictures) / f"{megapixels:g}.png", compress_level=1)
    else:
        print(json.dumps(list(measure(asked))))


if __name__ == "__main__":
    main(Asked(**json.loads(sys.argv[1])))
