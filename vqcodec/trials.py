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
from vqcodec.codes import CodeMap
from vqcodec.config import ALIGNMENT, LEVEL_STRIDES, LEVELS, QUALITY_STEPS
from vqcodec.errors import InvalidModelError
from vqcodec.layers import Array
from vqcodec.prior import Prior
from vqcodec.sessions import picture, run
from vqcodec.tiles import Image

if TYPE_CHECKING:
    from vqcodec.transform import Transform

Costs = NDArray[np.float64]

SPACING = 3  # positions from one that is tried to the next; with 2 they disturb each other (bench/LOG.md)
TRIED_PATHS = 4  # of the search for the bottom codes where middle ones are tried


class Trials:
    """The trials of a tile uint8 (H, W, 3) of a picture, at a quality in hundredths.

    The tile begins at the pixel `origin` of the picture, and of its own pixels so many as `size` says are in the picture.
    """

    def __init__(self, transform: Transform, prior: Prior, quality: int, tile: Image, origin: tuple[int, int], size: tuple[int, int]):
        self.transform, self.prior, self.quality, self.tile, self.origin, self.size = transform, prior, quality, tile, origin, size
        self.weight = transform.config.lagrangian(quality / QUALITY_STEPS) / 255**2  # of a pixel's squared error, in bits

    def middle(self, known: dict[str, Any], alternatives: Iterable[CodeMap], moved: NDArray[np.float32]) -> dict[str, Any]:
        """What the bottom's encoder gives for better middle codes, and those themselves.

        It is `known` what it takes, and the codes of all levels. The bottom latents are `moved` from what it gives, every time.
        """
        transform, above = self.transform, self._context(1, known, None)
        size = known[LEVELS[2]].shape[1:]

        def enter(codes: CodeMap) -> dict[str, Any]:
            found = run(transform.encoders[2](), known | {LEVELS[1]: codes}, False)
            return known | found | {LEVELS[1]: codes, "latents": _moved(found, moved)}

        def cost(codes: CodeMap) -> Costs:
            trial = enter(codes)
            trial[LEVELS[2]] = transform.ranked(2, trial, size, (slice(None), slice(None)), TRIED_PATHS)[0]
            finer = self._cost(trial, self._context(2, trial, above))
            coarser: Costs = finer.reshape(size[0] // 2, 2, size[1] // 2, 2).sum((1, 3))
            return coarser + position_bits(self.prior, 1, above, codes)

        return enter(decided(known[LEVELS[1]], alternatives, cost, self._first(1)))

    def bottom(self, known: dict[str, Any], alternatives: Iterable[CodeMap], last: bool) -> CodeMap:
        """Better bottom codes than those `known`; with the `last` tile the decoder gives memory back."""
        context = self._context(2, known, self._context(1, known, None))
        return decided(known[LEVELS[2]], alternatives, lambda codes: self._cost(known | {LEVELS[2]: codes}, context, last), self._first(2))

    def _first(self, level: int) -> tuple[int, int]:
        """The tile's first position among the picture's."""
        return self.origin[0] // LEVEL_STRIDES[level], self.origin[1] // LEVEL_STRIDES[level]

    def _context(self, level: int, known: dict[str, Any], above: Array | None) -> Array:
        """What the prior knows of a level before its first code; `above` the same of the coarser level, where that is known."""
        if above is None:
            above = self.prior.context(0, self.quality, None, None)
        return self.prior.context(level, self.quality, known[LEVELS[level - 1]], above)

    def _cost(self, known: dict[str, Any], context: Array, last: bool = False) -> Costs:
        """What the tile's bottom positions cost: the error of the 8 x 8 pixels, and the bits."""
        costs: Costs = position_bits(self.prior, 2, context, known[LEVELS[2]])
        costs += self.weight * squared_errors(self.tile, self._decoded(known, last), LEVEL_STRIDES[2])
        return costs

    def _decoded(self, known: dict[str, Any], last: bool) -> Image:
        """The tile as it is shown, and beyond the picture's end without an error."""
        transform, (height, width) = self.transform, self.tile.shape[:2]
        shape = transform.config.adaptations, height // ALIGNMENT, width // ALIGNMENT
        inputs = {"keep": np.ones(len(LEVELS), np.float32), "coordinates": np.zeros(shape, np.float32)}
        decoded = picture(run(transform.decoder(), known | inputs, last, ("image",)).get("image"), height, width)
        decoded[self.size[0] :], decoded[:, self.size[1] :] = self.tile[self.size[0] :], self.tile[:, self.size[1] :]
        return decoded


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
def _moved(found: dict[str, Any], way: NDArray[np.float32]) -> NDArray[np.float32]:
    """The latents that a graph gave, moved by `way`."""
    latents = found["latents"]
    if latents.shape != way.shape:
        raise InvalidModelError("the model's encoder gives other latents of the same size of picture; export the model again")
    moved: NDArray[np.float32] = latents + way
    return moved


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
