"""Trials: alternatives that the search kept, decided by what they really cost (analysis by synthesis).

The search takes a distance of latents for the picture's error, and the light conditional model's bits for the prior's. Among paths that
cost nearly the same it often takes the wrong one, and nothing but trying tells: at every third position of every third row the codes
become the alternative, the picture is decoded, the prior is asked for its bits, and a position keeps the alternative where the 3 x 3
positions around it cost less than before. What was tried beside it lies so far away that it changes little there. So nine trials go
over a map (coordinate descent, many coordinates at a time; Bertsekas and Tsitsiklis 1989).

Shapes: codes `(S, h, w)` and costs `(h, w)`, in bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.bitstream import position_bits
from vqcodec.codes import CodeMap, Codes
from vqcodec.config import LEVEL_STRIDES, LEVELS, QUALITY_STEPS
from vqcodec.errors import InvalidModelError
from vqcodec.layers import Array
from vqcodec.prior import Prior
from vqcodec.search import Floats
from vqcodec.tiles import Image

if TYPE_CHECKING:
    from vqcodec.transform import Transform

Costs = NDArray[np.float64]

SPACING = 3  # positions from one that is tried to the next; with 2 they disturb each other (bench/LOG.md)
TRIED_PATHS = 4  # of the search for bottom codes where middle ones are tried
MIDDLE, BOTTOM = 1, 2  # the levels' indices


class Trials:
    """The trials of a tile uint8 (H, W, 3) of a picture, at a quality in hundredths.

    The tile begins at the pixel `origin` of the picture, and of its own pixels so many as `size` says are in the picture.
    """

    def __init__(self, transform: Transform, prior: Prior, quality: int, tile: Image, origin: tuple[int, int], size: tuple[int, int]):
        self.transform, self.prior, self.quality, self.tile, self.origin, self.size = transform, prior, quality, tile, origin, size
        self.weight = transform.config.lagrangian(quality / QUALITY_STEPS) / 255**2  # of a pixel's squared error, in bits

    def middle(self, known: dict[str, Any], alternatives: Iterable[CodeMap], moved: Floats) -> dict[str, Any]:
        """What the bottom's encoder gives after better middle codes, and all it takes.

        That is `known`, with the middle codes so far. The bottom latents are `moved` from what their encoder gives, every time, as
        improvements have moved them.
        """

        def entered(codes: CodeMap) -> dict[str, Any]:
            found = self.transform.encoded(BOTTOM, known | {LEVELS[MIDDLE]: codes})
            return found | {"latents": _moved(found["latents"], moved)}

        def cost(codes: CodeMap) -> Costs:
            trial = entered(codes)
            trial[LEVELS[BOTTOM]] = self.transform.ranked(BOTTOM, trial, TRIED_PATHS)[0]
            return self._costs(MIDDLE, trial, self._contexts(trial))

        return entered(decided(known[LEVELS[MIDDLE]], alternatives, cost, self._first(MIDDLE)))

    def bottom(self, known: dict[str, Any], alternatives: Iterable[CodeMap]) -> CodeMap:
        """Better bottom codes than those `known`."""
        contexts = self._contexts(known)

        def cost(codes: CodeMap) -> Costs:
            return self._costs(BOTTOM, known | {LEVELS[BOTTOM]: codes}, contexts)

        return decided(known[LEVELS[BOTTOM]], alternatives, cost, self._first(BOTTOM))

    def _first(self, level: int) -> tuple[int, int]:
        """The tile's first position among the picture's."""
        return self.origin[0] // LEVEL_STRIDES[level], self.origin[1] // LEVEL_STRIDES[level]

    def _contexts(self, known: dict[str, Any]) -> list[Array]:
        """What the prior knows of each level before its first code."""
        contexts: list[Array] = []
        for level in range(len(LEVELS)):
            above = (known[LEVELS[level - 1]], contexts[-1]) if level else (None, None)
            contexts.append(self.prior.context(level, self.quality, *above))
        return contexts

    def _costs(self, coarsest: int, known: dict[str, Any], contexts: list[Array]) -> Costs:
        """What the positions of a level cost: the bits of their codes and of all finer ones, and the error of their pixels.

        Beyond the picture's end no error counts.
        """
        (height, width), codes = self.size, Codes(*(known[name] for name in LEVELS))
        decoded = self.transform.decode(codes, len(self.tile), self.tile.shape[1], self.quality)
        decoded[height:], decoded[:, width:] = self.tile[height:], self.tile[:, width:]
        costs = self.weight * squared_errors(self.tile, decoded, LEVEL_STRIDES[BOTTOM])
        for level in reversed(range(coarsest, len(LEVELS))):
            rows, columns = codes[level].shape[1:]
            costs = costs.reshape(rows, len(costs) // rows, columns, -1).sum((1, 3))
            costs += position_bits(self.prior, level, contexts[level], codes[level])
        return costs


def decided(codes: CodeMap, alternatives: Iterable[CodeMap], cost: Callable[[CodeMap], Costs], first: tuple[int, int] = (0, 0)) -> CodeMap:
    """Codes that cost less, at each position its own or those of one of the `alternatives`; `cost` gives what whole maps cost.

    `first` is the map's first position in a larger one: positions are tried in the order that they would be tried in there.
    """
    codes, costs = codes.copy(), cost(codes)
    for alternative, *turn in product(alternatives, range(SPACING), range(SPACING)):
        row, column = ((index - start) % SPACING for index, start in zip(turn, first, strict=True))
        places = np.s_[:, row::SPACING, column::SPACING]
        tried = codes.copy()
        tried[places] = alternative[places]
        if (tried == codes).all():
            continue
        found = cost(tried)
        better = _around(found - costs, row, column) < 0
        codes[places] = np.where(better, tried[places], codes[places])
        np.copyto(costs, found, where=_spread(better, row, column, costs.shape))
    return codes


@np.errstate(all="ignore")  # a spoilt model's numbers may be none
def _moved(latents: Any, way: Floats) -> Floats:
    """The latents (n, D) that a graph gave, moved by a `way` (n, D)."""
    if not isinstance(latents, np.ndarray) or latents.shape != way.shape or not latents.dtype == way.dtype == np.float32:
        raise InvalidModelError("the model's encoder gives other latents the second time; export the model again")
    return latents + way


def squared_errors(original: Image, decoded: Image, stride: int) -> Costs:
    """The squared error, a mean of the colours, of each `stride` x `stride` block of images uint8 (H, W, 3) -> (H / stride, W / stride)."""
    difference = original.astype(np.int32) - decoded
    blocks = np.square(difference).sum(2).reshape(len(original) // stride, stride, -1, stride)
    errors: Costs = blocks.sum((1, 3)) / 3
    return errors


def _around(values: Costs, row: int, column: int) -> Costs:
    """Sums over the positions around every third one, from (row, column) on: (h, w) -> (n, m)."""
    height, width = (len(range(first, length, SPACING)) for first, length in zip((row, column), values.shape, strict=True))
    padded = np.pad(values, 1)[row : row + SPACING * height, column : column + SPACING * width]
    sums: Costs = padded.reshape(height, SPACING, width, SPACING).sum((1, 3))
    return sums


def _spread(chosen: NDArray[np.bool_], row: int, column: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The positions around those chosen, the other way round: (n, m) -> (h, w)."""
    padded = np.zeros((shape[0] + 2, shape[1] + 2), bool)
    here = chosen.repeat(SPACING, 0).repeat(SPACING, 1)
    padded[row : row + len(here), column : column + here.shape[1]] = here
    return padded[1:-1, 1:-1]
