"""How a large image is cut into tiles: where they lie, with halos around them, and which part of each is kept.

Knows nothing of what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqcodec.config import ALIGNMENT

Image = NDArray[np.uint8]


class Span(NamedTuple):
    """One side of a tile, in pixels: [start, stop) with the halo, of which [inner_start, inner_stop) is kept."""

    start: int
    stop: int
    inner_start: int
    inner_stop: int


def spans(length: int, count: int, halo: int, multiple: int = ALIGNMENT) -> list[Span]:
    """Cuts a side of `length` pixels (a multiple of the alignment) into at most `count` tiles of one size, with halos inside the image.

    Tiles begin at a `multiple` of pixels, itself one of the alignment.
    """
    tile = aligned(-(-length // count), multiple)
    return [
        Span(max(0, start - halo), min(length, start + tile + halo), start, min(length, start + tile)) for start in range(0, length, tile)
    ]


def grid(height: int, width: int, halo: int, limit: int) -> tuple[int, int]:
    """How many tiles down and across: those that with their halos add up to the fewest pixels, with `limit` of them in each at most.

    Tiles never get smaller than the alignment, even where that is too large.
    """
    found = [(0, height // ALIGNMENT, width // ALIGNMENT)]
    for down in range(1, height // ALIGNMENT + 1):
        tallest = min(height, aligned(-(-height // down)) + halo * min(2, down - 1))
        room = limit // tallest // ALIGNMENT * ALIGNMENT
        if width > room and room <= 2 * halo:
            continue
        across = 1 if width <= room else -(-width // (room - 2 * halo))
        found.append(((height + 2 * halo * (down - 1)) * (width + 2 * halo * (across - 1)), down, across))
        if across == 1:
            break
    return min(found[1:] or found)[1:]


def aligned(length: int, multiple: int = ALIGNMENT) -> int:
    """A length up to the next multiple."""
    return -(-length // multiple) * multiple


def pad(image: Image) -> Image:
    """Repeats the last row and column up to a multiple of the alignment."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % ALIGNMENT), (0, -width % ALIGNMENT), (0, 0)), mode="edge")


def tiles(height: int, width: int, halo: int, limit: int, multiple: int = ALIGNMENT) -> Iterator[tuple[Span, Span, bool]]:
    """Rows and columns of each tile, and whether it is the last of several. For `multiple` see `spans`: of more than the alignment, tiles
    may have a few pixels more than the limit.
    """
    rows_of_tiles, columns_of_tiles = grid(height, width, halo, limit)
    down, across = spans(height, rows_of_tiles, halo, multiple), spans(width, columns_of_tiles, halo, multiple)
    for rows in down:
        for columns in across:
            yield rows, columns, rows is down[-1] and columns is across[-1] and len(down) * len(across) > 1


def inner(span: Span, stride: int) -> slice:
    """Where a tile's kept part lies in the whole map."""
    return slice(span.inner_start // stride, span.inner_stop // stride)


def kept(span: Span, stride: int) -> slice:
    """Where a tile's kept part lies in the tile."""
    return slice((span.inner_start - span.start) // stride, (span.inner_stop - span.start) // stride)
