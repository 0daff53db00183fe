"""The code maps of an image and their checksum."""

from __future__ import annotations

from binascii import crc_hqx
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqcodec.config import ALIGNMENT, LEVEL_STRIDES, LevelConfig

CodeMap = NDArray[np.int32]  # (stages, h, w)


class Codes(NamedTuple):
    """An image's code maps, coarse to fine, each int32 (stages, h, w)."""

    top: CodeMap
    middle: CodeMap
    bottom: CodeMap


def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(h, w) of the three code maps of an image of `height` x `width` pixels."""
    rows, columns = -(-height // ALIGNMENT), -(-width // ALIGNMENT)
    return [(rows * ALIGNMENT // stride, columns * ALIGNMENT // stride) for stride in LEVEL_STRIDES]


def checksum(code_map: CodeMap) -> int:
    """CRC-16 (CCITT, as in XMODEM) of the codes as little-endian 16-bit integers, stage by stage, row by row.

    Of levels whose codes drift it overlooks one in 65,536, but none where a single code is another one. Most drift is noticed before:
    it leaves the range coder where no file ends (bitstream.py).
    """
    return crc_hqx(code_map.astype("<u2").tobytes(), 0)


def check_codes(code_map: CodeMap, level: LevelConfig, size: tuple[int, int]) -> None:
    """Raises `ValueError` unless the map has the level's stages, this size, and codes of its codebooks."""
    expected = (level.stages, *size)
    if code_map.dtype != np.int32:
        raise ValueError(f"codes must be int32, not {code_map.dtype}")
    if code_map.shape != expected:
        raise ValueError(f"a code map has the shape {code_map.shape} instead of {expected}")
    if code_map.size and not (int(code_map.min()) >= 0 and int(code_map.max()) < level.codebook_size):
        raise ValueError(f"a code lies outside 0..{level.codebook_size - 1}")
