"""Trials: alternatives that the search kept, decided by what they really cost (analysis by synthesis).

The search takes a distance of latents for the picture's error, and the light conditional model's bits for the prior's. Among paths that
cost nearly the same it often takes the wrong one, and nothing but trying tells: some positions take an alternative, the picture is
decoded, the prior is asked for its bits, and a position keeps its alternative where the 3 x 3 positions around it cost less than before
(coordinate descent, many coordinates at a time; Bertsekas and Tsitsiklis 1989). So that each round tells as much as it can, those
alternatives go first that promise the most by the search's distances and the prior's bits, of every two that would disturb each other
the better one.

Shapes: codes `(S, h, w)`, alternatives `(R, S, h, w)` and costs `(h, w)`, in bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vqcodec.bitstream import alternative_bits, position_bits
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
Placed = tuple[NDArray[np.intp], NDArray[np.intp], CodeMap]  # rows and columns (n,) of a map, and codes (S, n) there

SPACING = 3  # positions from one that is tried to the next, at least; with 2 they disturb each other (bench/LOG.md)
WORTHLESS = 8  # bits by which an alternative seems to cost so much more that it is not tried
SEARCH_PATHS = 4  # of the search for bottom codes where middle ones are tried
MIDDLE, BOTTOM = 1, 2  # the levels' indices


class Trials:
    """The trials of a tile uint8 (H, W, 3) of a picture, at a quality in hundredths.

    The tile begins at the pixel `origin` of the picture, and of its own pixels so many as `size` says are in the picture.
    """

    def __init__(self, transform: Transform, prior: Prior, quality: int, tile: Image, origin: tuple[int, int], size: tuple[int, int]):
        self.transform, self.prior, self.quality, self.tile, self.origin, self.size = transform, prior, quality, tile, origin, size
        self.weight = transform.config.lagrangian(quality / QUALITY_STEPS) / 255**2  # of a pixel's squared error, in bits
        self.refused: list[list[Placed]] = [[] for _ in LEVELS]  # the codes that did not cost less

    def middle(self, known: dict[str, Any], alternatives: NDArray[np.int32], moved: Floats, rounds: int) -> dict[str, Any]:
        """What the bottom's encoder gives after better middle codes, and all it takes.

        That is `known`, with the middle codes so far. The bottom latents are `moved` from what their encoder gives, every time, as
        improvements have moved them.
        """

        contexts = self._contexts(known, MIDDLE)

        def entered(codes: CodeMap, last: bool = False) -> dict[str, Any]:
            found = self.transform.encoded(BOTTOM, known | {LEVELS[MIDDLE]: codes}, last)
            return found | {"latents": _moved(found["latents"], moved)}

        def cost(codes: CodeMap) -> Costs:
            trial = entered(codes)
            trial[LEVELS[BOTTOM]] = self.transform.ranked(BOTTOM, trial, SEARCH_PATHS)[0]
            return self._costs(MIDDLE, trial, [*contexts, self.prior.context(BOTTOM, self.quality, codes, contexts[MIDDLE])])

        return entered(self._decided(MIDDLE, known, contexts, alternatives, cost, rounds), last=True)

    def bottom(self, known: dict[str, Any], alternatives: NDArray[np.int32], rounds: int) -> CodeMap:
        """Better bottom codes than those `known`."""
        contexts = self._contexts(known, BOTTOM)

        def cost(codes: CodeMap) -> Costs:
            return self._costs(BOTTOM, known | {LEVELS[BOTTOM]: codes}, contexts)

        return self._decided(BOTTOM, known, contexts, alternatives, cost, rounds)

    def _decided(
        self,
        level: int,
        known: dict[str, Any],
        contexts: list[Array],
        alternatives: NDArray[np.int32],
        cost: Callable[[CodeMap], Costs],
        rounds: int,
    ) -> CodeMap:
        """Better codes of a level than those `known`, as are its latents and all coarser codes, whose `contexts` these are.

        None of them was refused before.
        """
        codes = known[LEVELS[level]]

        def seem(maps: NDArray[np.int32]) -> Costs:
            bits: Costs = alternative_bits(self.prior, level, contexts[level], codes, maps)
            return bits + self.transform.distances(level, known["latents"], maps)

        with np.errstate(all="ignore"):  # a spoilt model's numbers may be none
            guesses = seem(alternatives) - seem(codes[None])
        first = self.origin[0] // LEVEL_STRIDES[level], self.origin[1] // LEVEL_STRIDES[level]  # the tile's, in the picture
        return decided(codes, alternatives, np.where(np.isfinite(guesses), guesses, np.inf), cost, rounds, first, self.refused[level])

    def _contexts(self, known: dict[str, Any], level: int) -> list[Array]:
        """What the prior knows of each level down to this one before its first code."""
        contexts: list[Array] = []
        for index in range(level + 1):
            above = (known[LEVELS[index - 1]], contexts[-1]) if index else (None, None)
            contexts.append(self.prior.context(index, self.quality, *above))
        return contexts

    def _costs(self, coarsest: int, known: dict[str, Any], contexts: list[Array]) -> Costs:
        """What the positions of a level cost: the bits of their codes and of all finer ones, and the error of their pixels.

        Beyond the picture's end no error counts.
        """
        (height, width), codes = self.size, Codes(*(known[name] for name in LEVELS))
        decoded = self.transform.decode(codes, len(self.tile), self.tile.shape[1], self.quality, coordinates=known["coordinates"])
        decoded[height:], decoded[:, width:] = self.tile[height:], self.tile[:, width:]
        costs = self.weight * squared_errors(self.tile, decoded, LEVEL_STRIDES[BOTTOM])
        for level in reversed(range(coarsest, len(LEVELS))):
            rows, columns = codes[level].shape[1:]
            costs = costs.reshape(rows, len(costs) // rows, columns, -1).sum((1, 3))
            costs += position_bits(self.prior, level, contexts[level], codes[level])
        return costs


def decided(
    codes: CodeMap,
    alternatives: NDArray[np.int32],
    guesses: Costs,
    cost: Callable[[CodeMap], Costs],
    rounds: int,
    first: tuple[int, int] = (0, 0),
    refused: list[Placed] | None = None,
) -> CodeMap:
    """Codes that cost less, at each position its own or those of one of the `alternatives` (R, S, h, w).

    `guesses` (R, h, w) say by how much an alternative seems to cost more, none of them NaN, and `cost` gives what whole maps cost. In each
    of the `rounds` the most promising ones that lie far enough from each other are tried, every one at most once; what a position had
    before it took one does not come back in them. `first` is the map's first position in a larger one. What was `refused` is not tried,
    and what does not cost less joins it.
    """
    refused = [] if refused is None else refused
    known = (alternatives == codes).all(1)
    known[1:] |= (alternatives[1:] == alternatives[:-1]).all(1)
    for rows, columns, others in refused:
        known[:, rows, columns] |= (alternatives[:, :, rows, columns] == others).all(1)
    guesses, costs = np.where(known, np.inf, guesses), cost(codes)
    for _ in range(rounds):
        which = guesses.argmin(0)[None]
        guess = np.take_along_axis(guesses, which, 0)
        places = spread_out(guess[0], first)
        if not places.any():
            break
        tried = np.where(places, np.take_along_axis(alternatives, which[:, None], 0)[0], codes)
        found = cost(tried)
        better = places & (_around(found - costs) < 0)
        rows, columns = (places & ~better).nonzero()
        refused.append((rows, columns, tried[:, rows, columns]))
        codes, costs = np.where(better, tried, codes), np.where(_around(better) > 0, found, costs)
        np.put_along_axis(guesses, which, np.where(places, np.inf, guess), 0)
        guesses -= np.where(better, guess[0], 0)
    return codes


def spread_out(guesses: Costs, first: tuple[int, int]) -> NDArray[np.bool_]:
    """Positions (h, w), taken in the order of their guesses, each at least `SPACING` from those before; none of them `WORTHLESS`.

    Among equals those of a lattice come first, whose start is that of the larger map, of which `first` is the first position here.
    """
    rows, columns = ((index + start) % SPACING for index, start in zip(np.indices(guesses.shape), first, strict=True))
    ranks = np.empty(guesses.size, np.int64)
    ranks[np.lexsort((columns.ravel(), rows.ravel(), guesses.ravel()))] = np.arange(guesses.size)
    ranks = np.where(guesses < WORTHLESS, ranks.reshape(guesses.shape), guesses.size)
    chosen = np.zeros(guesses.shape, bool)
    while ranks.min(initial=guesses.size) < guesses.size:
        new = (ranks == _windows(ranks, SPACING - 1, guesses.size).min((2, 3))) & (ranks < guesses.size)  # none before it is near
        chosen |= new
        ranks[_windows(new, SPACING - 1).any((2, 3))] = guesses.size
    return chosen


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


def _around(values: NDArray[Any]) -> NDArray[Any]:
    """Sums over the 3 x 3 positions around each: (h, w) -> (h, w)."""
    sums: NDArray[Any] = _windows(values, 1).sum((2, 3))
    return sums


def _windows(values: NDArray[Any], reach: int, outside: int = 0) -> NDArray[Any]:
    """What lies at most `reach` rows and columns from each position: (h, w) -> (h, w, n, n)."""
    return sliding_window_view(np.pad(values, reach, constant_values=outside), (2 * reach + 1, 2 * reach + 1))
