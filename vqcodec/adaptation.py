"""The decoder's last layer, adapted to parts of one picture: a few integers in the file, fitted by least squares.

The decoder's last convolution is linear in its features, so its best change for a part of a picture is a regression of the part's error
on them. Such changes lie near a space of few dimensions, whose basis comes with the model (training/adapt.py). A file keeps coordinates
there: integers, most of them zeros, chosen by rate and distortion together, for the whole picture and for square blocks of it, which add
up (that a file adapts its decoder is from van Rozendaal, Huijben and Cohen 2021, "Overfitting for fun and profit"; that it does so block
by block, by regression, from the adaptive loop filter of Tsai et al. 2013, "Adaptive Loop Filtering for Video Coding").

Shapes: features (h, w, F) and errors (h, w, E) on [0, 1] at positions of 4 x 4 pixels, E = 48 values of three colours there; a basis
(K, F + 1, E), the last row for a constant feature; coordinates integers (R, C, K) of R x C blocks, from -`LARGEST` to `LARGEST`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqcodec.config import ADAPTED_STRIDE, ALIGNMENT, LAMBDA_UNIT, TransformConfig
from vqcodec.entropy import FAMILY, LOGIT_STEPS, WORD_BYTES, freqs, range_decoder, range_encoder
from vqcodec.errors import DamagedError

Floats = NDArray[np.floating]
LARGEST = 7  # of a coordinate
VALUES = np.arange(-LARGEST, LARGEST + 1)
LEAST_SIDE, GREATEST_SIDE = 5, 16  # log2 of a block's side: from the alignment of tiles to what any picture fits into
FINEST = (5, 6)  # log2 of the side of the smallest blocks that the encoder tries, of usual pictures and of large ones, to save memory
USUAL_PIXELS = 4 << 20
LAYERS = ((2, 0), (3, 1))  # how often the sides are doubled of the blocks that follow on the whole picture: ways that the encoder tries
LAYER_BYTES = 3
SECTION_BITS = 64  # of a section's head, the number of layers and what the range coder rounds up
STEP_OF_RATES = 8  # between the rates that the encoder looks at, in units of a sixteenth of a bit
FITS = 4  # of the coordinates and of how likely they are, in turns
SWEEPS = 2  # over a block's coordinates in a fit
TOGETHER = 32  # blocks whose systems are made at once: what comes between is large


@dataclass
class Systems:
    """Normal equations: `matrices` (R, C, K, K) and `right` sides (R, C, K)."""

    matrices: Floats
    right: Floats

    def merged(self, factor: int) -> Systems:
        """Those of blocks with `factor` times the side; beyond the picture there is nothing, however long and narrow it is."""
        height, width = self.right.shape[:2]
        down, across = min(factor, height), min(factor, width)
        parts = []
        for values in (self.matrices, self.right):
            rest = [(0, -height % down), (0, -width % across)] + [(0, 0)] * (values.ndim - 2)
            padded = np.pad(values, rest) if factor > 1 else values
            rows, columns = len(padded) // down, padded.shape[1] // across
            parts.append(padded.reshape(rows, down, columns, across, *values.shape[2:]).sum((1, 3)))
        return Systems(*parts)


class Moments(NamedTuple):
    """Sums over the positions of each of R x C blocks.

    `squares` (R, C, F + 1, F + 1) are of products of the features with each other, `products` (R, C, F + 1, E) of the features with the
    errors, and `errors` (R, C) of the errors' squares.
    """

    squares: Floats
    products: Floats
    errors: Floats

    @staticmethod
    def of(features: Floats, errors: Floats, side: int) -> Moments:
        """Those of blocks of `side` positions a side; blocks at the end may have fewer."""
        height, width, count = features.shape
        rows, columns = -(-height // side), -(-width // side)
        known = np.zeros((rows * side, columns * side, count + 1), np.float32)
        missing = np.zeros((rows * side, columns * side, errors.shape[2]), np.float32)
        known[:height, :width, :count], known[:height, :width, count], missing[:height, :width] = features, 1, errors
        known, missing = (
            part.reshape(rows, side, columns, side, part.shape[2]).swapaxes(1, 2).reshape(rows, columns, side**2, part.shape[2])
            for part in (known, missing)
        )
        across = known.swapaxes(2, 3)
        return Moments(across @ known, across @ missing, np.square(missing).sum((2, 3)))

    def systems(self, basis: Floats) -> Systems:
        """The normal equations of the blocks' coordinates in a basis (K, F + 1, E)."""
        count, inputs, outputs = basis.shape
        flat, wide = basis.reshape(count, -1), basis.swapaxes(0, 1).reshape(inputs, -1)
        matrices = np.empty((*self.errors.shape, count, count), np.float32)
        blocks, squares = matrices.reshape(-1, count, count), self.squares.reshape(-1, inputs, inputs)
        for first in range(0, len(blocks), TOGETHER):
            between = squares[first : first + TOGETHER] @ wide
            between = between.reshape(-1, inputs, count, outputs).swapaxes(1, 2).reshape(-1, inputs * outputs)
            blocks[first : first + TOGETHER] = (between @ flat.T).reshape(-1, count, count)
        return Systems(matrices, self.products.reshape(*self.errors.shape, inputs * outputs) @ flat.T)


def errors_of(image: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> Floats:
    """What is missing in the decoded image, both uint8 (4h, 4w, 3) -> (h, w, 48), as the pixel shuffle of the decoder has it."""
    height, width, colours = image.shape
    stride = ADAPTED_STRIDE
    missing = (image.astype(np.float32) - decoded) / 255
    blocks = missing.reshape(height // stride, stride, width // stride, stride, colours).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(blocks).reshape(height // stride, width // stride, colours * stride**2)


def scale_of(config: TransformConfig, quality: float) -> float:
    """What a coordinate counts at a quality in [0, 1]: errors shrink with about the fourth root of the Lagrangian."""
    return float((config.lagrangian(quality) / LAMBDA_UNIT) ** -0.25)


class Layer(NamedTuple):
    """Coordinates (R, C, K) of blocks of 2^`side` pixels a side, and how likely they are."""

    side: int
    rates: Rates
    coordinates: NDArray[np.int8]


def finest_side(height: int, width: int) -> int:
    """log2 of the side of the smallest blocks that the encoder tries for an image of `height` x `width` pixels."""
    return FINEST[height * width > USUAL_PIXELS]


@np.errstate(all="ignore")  # a spoilt model's numbers may be none
def adapted(systems: Systems, side: int, lagrangian: float) -> list[Layer]:
    """What adapts the decoder to a picture whose blocks of 2^`side` pixels a side have these systems; or nothing."""
    return min((_layers(systems, side, lagrangian, doublings) for doublings in LAYERS), key=itemgetter(0))[1]


def _layers(systems: Systems, side: int, lagrangian: float, doublings: Sequence[int]) -> tuple[float, list[Layer]]:
    """Layers for the whole picture and for blocks whose sides are doubled so often, each fitted to what the ones before leave.

    Only those that pay; and what they bring in bits and error, in bits, below 0 unless there are none.
    """
    size, layers, total = systems.right.shape[:2], list[Layer](), 0.0
    whole = (max(size) - 1).bit_length()
    found = np.zeros_like(systems.right)
    for doubled in sorted({whole, *(min(whole, each) for each in doublings)}, reverse=True):
        left = systems.right - np.einsum("rckl,rcl->rck", systems.matrices, found) if layers else systems.right
        blocks = Systems(systems.matrices, left).merged(1 << doubled)
        rows, columns, count = blocks.right.shape
        flat = Systems(blocks.matrices.reshape(-1, count, count), blocks.right.reshape(-1, count))
        bits, coordinates, rates = _fitted(flat, lagrangian / 3)
        bits += 8 * LAYER_BYTES + (0 if layers else SECTION_BITS)
        if bits < 0:
            total += bits
            layers.append(Layer(side + doubled, rates, coordinates.reshape(rows, columns, count)))
            found += spread(layers[-1].coordinates, 1 << doubled, size)
    return total, layers


def spread(coordinates: NDArray[Any], repeats: int, size: tuple[int, int]) -> NDArray[Any]:
    """Coordinates (R, C, K) of blocks for all of the smaller ones in them, of which `repeats` make a side, cut to (*size, K)."""
    rows, columns = (min(repeats, side) for side in size)
    return coordinates.repeat(rows, 0).repeat(columns, 1)[: size[0], : size[1]]


def _fitted(systems: Systems, weight: float) -> tuple[float, NDArray[np.int8], Rates]:
    """What coordinates (n, K) of n blocks bring, in bits and error by its weight, below 0 where they pay; these and the rates for them."""
    rates = Rates(3 * LOGIT_STEPS, 3 * LOGIT_STEPS // 2)
    least, best, values = (0.0, rates), np.zeros(systems.right.shape, np.int8), np.zeros_like(systems.right)
    for _ in range(FITS):
        values = descended(systems, weight, bits_of(rates), values)
        counts = counted(values)
        rates = cheapest(counts)
        bits = float(counts @ bits_of(rates) + weight * gains(systems, values).sum())
        if bits < least[0]:
            least, best = (bits, rates), values.astype(np.int8)
    return least[0], best, least[1]


def gains(systems: Systems, values: Floats) -> Floats:
    """What coordinates (n, K) add to the squared error of each of n blocks: below 0, unless they are bad ones."""
    found: Floats = np.einsum("nk,nkl,nl->n", values, systems.matrices, values) - 2 * (systems.right * values).sum(1)
    return found


def descended(systems: Systems, weight: float, costs: Floats, values: Floats) -> Floats:
    """Better coordinates (n, K) than these: one after the other takes the value of the least bits and error, by its weight.

    `costs` (15,) are the bits of each value.
    """
    values = values.copy()
    sums = np.einsum("nkl,nl->nk", systems.matrices, values)
    tried = VALUES.astype(values.dtype)
    for _ in range(SWEEPS):
        for k in range(values.shape[1]):
            own = systems.matrices[:, k, k]
            left = systems.right[:, k] - sums[:, k] + own * values[:, k]
            found = tried[(weight * (own[:, None] * tried - 2 * left[:, None]) * tried + costs).argmin(1)]
            sums += systems.matrices[:, k] * (found - values[:, k])[:, None]
            values[:, k] = found
    return values


class Rates(NamedTuple):
    """How likely coordinates are, in sixteenths of a bit: how much less 1 and -1 are than 0, and each further one than the one before."""

    zero: int
    slope: int

    def freqs(self) -> NDArray[np.float64]:
        """The frequencies (15,) of the values from -`LARGEST` on."""
        sizes = np.abs(VALUES)
        logits = -np.where(sizes > 0, self.zero + self.slope * (sizes - 1), 0).astype(np.float32)
        found: NDArray[np.float64] = freqs(logits[None])[0]
        return found


def bits_of(rates: Rates) -> Floats:
    """The bits (15,) of each value."""
    likely = rates.freqs()
    bits: Floats = -np.log2(likely / likely.sum())
    return bits


def counted(values: Floats) -> NDArray[np.int64]:
    """How often each value is among coordinates."""
    return np.bincount(values.ravel().astype(np.intp) + LARGEST, minlength=len(VALUES))


@cache
def _tried() -> tuple[list[Rates], Floats]:
    """The rates that the encoder looks at, and their bits of each value."""
    steps = range(0, 256, STEP_OF_RATES)
    rates = [Rates(zero, slope) for zero in steps for slope in steps]
    return rates, np.stack([bits_of(each) for each in rates])


def cheapest(counts: NDArray[np.int64]) -> Rates:
    """The rates at which so many of each value (15,) take the fewest bits."""
    rates, bits = _tried()
    return rates[int((bits @ counts).argmin())]


def packed(layers: Sequence[Layer]) -> bytes:
    """Layers, coarse ones first, as bytes: their number, side and rates of each, and their coordinates, range-coded; nothing of none."""
    if not layers:
        return b""
    encoder = range_encoder()
    for layer in layers:
        for row in layer.coordinates:
            symbols = row.ravel().astype(np.int32) + LARGEST
            encoder.encode(symbols, FAMILY, np.tile(layer.rates.freqs(), (len(symbols), 1)))
    heads = [len(layers), *(number for layer in layers for number in (layer.side, *layer.rates))]
    words: NDArray[np.uint32] = encoder.get_compressed()
    return bytes(heads) + words.astype("<u4").tobytes()


def unpacked(payload: bytes, height: int, width: int, count: int) -> NDArray[np.float32]:
    """The sum of all layers: coordinates (`count`, R, C) of blocks of 32 pixels a side of an image of `height` x `width` pixels.

    They are zeros of no bytes. Raises `DamagedError` for what cannot be.
    """
    size = -(-height // ALIGNMENT), -(-width // ALIGNMENT)
    total = np.zeros((*size, count), np.float32)
    if payload:
        heads, words = _heads(payload, count)
        decoder = range_decoder(words)
        try:
            for side, rates in heads:
                total += spread(_layer(decoder, rates, (-(-height >> side), -(-width >> side), count)), 1 << side - LEAST_SIDE, size)
        except AssertionError as error:  # constriction's report of words that no encoder writes
            raise DamagedError("what adapts the decoder is no valid code; copy the file again") from error
        if not decoder.maybe_exhausted():
            raise DamagedError("what adapts the decoder has words left over; copy the file again")
    return np.ascontiguousarray(total.transpose(2, 0, 1))


def _heads(payload: bytes, count: int) -> tuple[list[tuple[int, Rates]], NDArray[np.uint32]]:
    """Side and rates of each layer, and the words of the range coder."""
    stop = 1 + LAYER_BYTES * payload[0]
    numbers = np.frombuffer(payload[1:stop].ljust(stop - 1, b"\0"), np.uint8).reshape(-1, LAYER_BYTES).tolist()
    heads = [(side, Rates(*rates)) for side, *rates in numbers]
    sides = [GREATEST_SIDE + 1, *(side for side, _ in heads), LEAST_SIDE - 1]
    falling = all(coarse > fine for coarse, fine in itertools.pairwise(sides))
    if not count or not heads or not falling or len(payload) < stop or (len(payload) - stop) % WORD_BYTES:
        what = "the file adapts the decoder in a way that its model does not know"
        raise DamagedError(f"{what}; the program that wrote it is at fault")
    return heads, np.frombuffer(payload[stop:], "<u4").astype(np.uint32)


def _layer(decoder: Any, rates: Rates, shape: tuple[int, int, int]) -> NDArray[np.int8]:
    """Coordinates of this shape, row by row of blocks."""
    found = np.empty(shape, np.int8)
    likely = np.tile(rates.freqs(), (shape[1] * shape[2], 1))
    for row in found:
        row[:] = (decoder.decode(FAMILY, likely) - LARGEST).reshape(row.shape)
    return found
