"""What several test modules share: paths, the command line as a subprocess, random codes and random priors."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import compress as deflate
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from vqcodec.codes import Codes, map_sizes
from vqcodec.config import LEVELS, LevelConfig, ModelConfig, PriorConfig, TransformConfig

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "v1"
# a model of the first layout; without lengths; without an improver; without weights in eight bits; without codebooks in eight bits; without
# an adapted decoder; without an improver of the middle; as they are written
GOLDENS = (GOLDEN, *(GOLDEN.parent / name for name in ("v2", "v3", "v4", "v5", "v6", "v7", "v8")))
IMAGES = ROOT / "tests" / "images"
DEFAULT_MODEL = ROOT / "models" / "default"
SHARED = ROOT.parent / "shared"  # photographs and hostile files that lie beside some checkouts

# Shells start what is to run in the background with SIGINT ignored, this test perhaps, and children inherit that.
AS_USUAL = """
import signal
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
"""

Array = NDArray[Any]


def run_python(*arguments: str | Path, cwd: Path = ROOT, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs this interpreter so that it finds this checkout from any folder, installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, env=environment, check=False)


def vqcodec(*arguments: str | Path, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs the command line as a real program."""
    return run_python("-m", "vqcodec.cli", *arguments, cwd=cwd, stdin=stdin)


class Program(subprocess.Popen[bytes]):
    """A process that does not outlive its `with` block: where a test fails in it, the program may never end by itself."""

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # with the processes that work for it
        super().__exit__(*error)  # type: ignore[arg-type]


def start(code: str, *arguments: str | Path, cwd: Path) -> Program:
    """Starts a program for signals to be sent to, in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AS_USUAL + code, *map(str, arguments)]
    return Program(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def load_image(path: Path) -> NDArray[np.uint8]:
    with Pillow.open(path) as picture:
        return np.array(picture.convert("RGB"))


def hollow_png(width: int, height: int, depth: int = 8, colours: int = 0) -> bytes:
    """A PNG of this size with hardly any pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)), (b"IDAT", deflate(bytes(9))), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def swapped() -> bytes:
    """An ICC profile whose red is sRGB's green and the other way round: a wrong conversion cannot pass for a right one."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def random_codes(rng: np.random.Generator, config: ModelConfig, height: int, width: int) -> Codes:
    """Uniformly random codes of an image of `height` x `width` pixels; about half of the positions end in zeros."""
    maps: list[Array] = []
    for level, size in zip(config.transform.levels, map_sizes(height, width), strict=True):
        lengths = rng.integers(0, 2 * level.stages + 1, size)
        codes = rng.integers(0, level.codebook_size, (level.stages, *size), np.int32)
        maps.append(codes * (np.arange(level.stages)[:, None, None] < lengths).astype(np.int32))
    return Codes(*maps)


def same(first: Codes, second: Codes) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def make_config(channels: int, stages: tuple[int, ...], sizes: tuple[int, ...], blocks: int, head_channels: int = 0) -> ModelConfig:
    """A configuration for tests of the prior alone: the transform's own shape is never used there."""
    levels = tuple(LevelConfig(stage, size, 4) for stage, size in zip(stages, sizes, strict=True))
    ones = (1, 1, 1, 1)
    transform = TransformConfig((8, 8, 8, 8), ones, ones, levels, 25.0, 1600.0, 3)
    return ModelConfig(transform, PriorConfig(channels, (blocks,) * 3, (blocks,) * 2, 3, head_channels))


def random_prior(rng: np.random.Generator, config: ModelConfig, spread: int = 127, lengths: bool = True) -> dict[str, Array]:
    """Legal tensors for `config`: int8 in -spread..spread, small biases, shifts around those that training uses.

    Without `lengths` it is a prior of the first kind.
    """
    width, inner = config.prior.channels, config.prior.hidden_channels
    tensors: dict[str, Array] = {}

    def table(name: str, *shape: int) -> None:
        tensors[name] = rng.integers(-spread, spread + 1, shape, np.int8)

    def layer(name: str, inputs: int, outputs: int) -> None:
        table(f"{name}.weight", inputs, outputs)
        tensors[f"{name}.bias"] = rng.integers(-3000, 3001, outputs, np.int32)
        tensors[f"{name}.shift"] = np.array(rng.integers(0, 11), np.int32)

    def blocks(name: str, count: int, taps: int) -> None:
        for index in range(count):
            layer(f"{name}.{index}.spatial", taps * width, width)
            layer(f"{name}.{index}.mix", width, width)

    for index, (name, level) in enumerate(zip(LEVELS, config.transform.levels, strict=True)):
        table(f"{name}.quality", config.prior.quality_anchors, width)
        table(f"{name}.embed", level.stages, level.codebook_size, width)
        if index:
            coarser = config.transform.levels[index - 1]
            table(f"{name}.context.embed", coarser.stages, coarser.codebook_size, width)
            blocks(f"{name}.context", config.prior.context_blocks[index - 1], 9)
            layer(f"{name}.context.up", width, 4 * width)
        layer(f"{name}.first", 5 * width, width)
        blocks(f"{name}.trunk", config.prior.trunk_blocks[index], 5)
        if lengths and level.stages:
            layer(f"{name}.length.hidden", 2 * width, inner)
            layer(f"{name}.length.logits", inner, level.stages + 1)
            table(f"{name}.length.embed", level.stages + 1, width)
        for stage in range(level.stages):
            layer(f"{name}.head.{stage}.hidden", 2 * width, inner)
            layer(f"{name}.head.{stage}.logits", inner, level.codebook_size)
            if stage < level.stages - 1:
                table(f"{name}.head.{stage}.embed", level.codebook_size, width)
    return tensors
