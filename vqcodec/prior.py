"""The integer PixelCNN prior in numpy: exact on every machine. scan.py walks it over a map.

Shapes: `(n, C)` for the n positions of one wavefront; maps `(H, W, C)`; codes `(S, H, W)`.

All weights and activations are integers, activations in [-127, 127], held in float32. Every matrix product keeps
`127 * sum |w| + |b| + rounding <= 2 ** 24` for each output channel (checked at load), so every partial sum is an integer that
float32 holds exactly: the result cannot depend on the order of summation, the thread count, fused operations or
the BLAS. After a product comes `floor(acc * 2 ** -shift + 1/2)` and a clamp.

Masked 3x3 convolutions (PixelCNN, van den Oord et al. 2016) over the taps (-1,-1) (-1,0) (-1,1) (0,-1) and, after
the first layer, (0,0).

Most positions end in zeros: their last stages' codes are all 0. So a position's first symbol is its length, the number of stages up to
its last code that is not 0, and only so many codes follow: work and time go where the bits are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vqcodec.blas import one_blas_thread
from vqcodec.config import LEVELS, QUALITY_STEPS, LevelConfig, ModelConfig, PriorConfig
from vqcodec.layers import ACTIVATION_MAX, Array, Layer, Product, Reader, blas_product, clamped

LENGTH = -1  # stands for a stage where a symbol is a length; the index of the lengths among the symbols
FEW_POSITIONS = 128  # a gather for all stages at once is quicker up to here, and takes little memory
BAND_POSITIONS = 16_384  # positions per band of the context: its float32 values are bounded at any image size


@dataclass(frozen=True)
class Head:
    """What gives the logits of one symbol of a position: of its length, or of one stage's code."""

    hidden: Layer
    logits: Layer
    embed: Array | None  # (K, C) of the symbol itself, for those that follow at the position; None for the last stage


@dataclass(frozen=True)
class ContextNet:
    """The parallel stack over the coarser level's codes that ends in twice its resolution."""

    embed: Array  # (S', K', C) of the coarser level
    blocks: list[tuple[Layer, Layer]]
    up: Layer  # C -> 4 C


@dataclass(frozen=True, eq=False)
class LevelPrior:
    """The network of one level."""

    config: LevelConfig
    quality: Array  # (A, C) int64
    context: ContextNet | None
    embed: Array  # (S, K, C)
    first: Layer
    trunk: list[tuple[Layer, Layer]]
    length: Head | None  # None in models of the first kind, which code every stage of every position
    heads: list[Head]


class Prior:
    """The prior of all levels. Immutable after construction, so it may be shared between threads.

    `compiled` lets the scan use the compiled kernel, where there is one, instead of `product`.
    """

    def __init__(self, levels: list[LevelPrior], product: Product = blas_product, compiled: bool = False):
        self.levels = levels
        self.product = product
        self.compiled = compiled

    @staticmethod
    def from_tensors(tensors: Mapping[str, Array], config: ModelConfig) -> Prior:
        """Builds and checks the prior; raises `InvalidModelError` naming the layer and channel that is wrong."""
        reader = Reader(tensors)
        levels = [_read_level(reader, config, index) for index in range(len(LEVELS))]
        reader.finish()
        return Prior(levels, compiled=True)

    @one_blas_thread()
    @np.errstate(divide="ignore", over="ignore", invalid="ignore")  # see scan.py
    def context(self, level: int, quality: int, coarser: Array | None, coarser_context: Array | None) -> Array:
        """What a level knows before its first code: int8 (H, W, C), or (1, 1, C) for the top level.

        `quality` is in hundredths, `coarser` the next coarser level's codes (S', H/2, W/2) and `coarser_context`
        what this method returned for that level.
        """
        net = self.levels[level]
        vector = quality_vector(net.quality, quality)
        if net.context is None:
            return vector[None, None].astype(np.int8)
        assert coarser is not None
        assert coarser_context is not None
        x = _context_start(net.context.embed, coarser, coarser_context, vector)
        for spatial, mix in net.context.blocks:
            x = self._context_block(x, spatial, mix)
        return self._context_up(x, net.context.up)

    def _context_block(self, x: Array, spatial: Layer, mix: Layer) -> Array:
        """x + mix(relu(conv3x3(x))) over the map int8 (H, W, C)."""
        height, width, channels = x.shape
        padded = np.zeros((height + 2, width + 2, channels), np.int8)
        padded[1:-1, 1:-1] = x
        out = np.empty_like(x)
        for first, last in _bands(height, width):
            taps = [padded[first + i : last + i, j : j + width] for i in range(3) for j in range(3)]
            columns = np.concatenate(taps, axis=2, dtype=np.float32).reshape(-1, 9 * channels)
            hidden = spatial(columns, 0, self.product)
            total = mix.raw(hidden, self.product).reshape(last - first, width, channels) + x[first:last]
            out[first:last] = clamped(total)
        return out

    def _context_up(self, x: Array, up: Layer) -> Array:
        """The map int8 (H, W, C) to twice its resolution, (2H, 2W, C)."""
        height, width, channels = x.shape
        out = np.empty((height, 2, width, 2, channels), np.int8)
        for first, last in _bands(height, width):
            inputs = x[first:last].reshape(-1, channels).astype(np.float32)
            finer = up(inputs, -ACTIVATION_MAX, self.product).reshape(last - first, width, 2, 2, channels)
            out[first:last] = finer.transpose(0, 2, 1, 3, 4)
        return out.reshape(2 * height, 2 * width, channels)


def _context_start(tables: Array, codes: Array, above: Array, vector: Array) -> Array:
    """The coarser level's codes (S', H, W) and its context, with the quality's vector, as int8 (H, W, C)."""
    height, width = codes.shape[1:]
    out = np.empty((height, width, tables.shape[2]), np.int8)
    above = np.broadcast_to(above, out.shape)
    for first, last in _bands(height, width):
        total = embed(tables, codes[:, first:last], above[first:last]) + vector
        out[first:last] = clamped(total)
    return out


def _bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row of each band of a map: what is done in float32 is done band by band."""
    band = max(1, BAND_POSITIONS // width)
    for row in range(0, height, band):
        yield row, min(row + band, height)


def quality_vector(table: Array, quality: int) -> Array:
    """Interpolates the table (A, C) at `quality` hundredths, in integers; returns float32 (C,)."""
    position = quality * (len(table) - 1)
    index, rest = divmod(position, QUALITY_STEPS)
    upper = (rest * 128 + QUALITY_STEPS // 2) // QUALITY_STEPS
    following = table[min(index + 1, len(table) - 1)]
    return (((128 - upper) * table[index] + upper * following + 64) >> 7).astype(np.float32)


def embed(tables: Array, codes: Array, start: Array | float = 0.0) -> Array:
    """Sum over stages of table rows: tables int8 (S, K, C), codes (S, ...), start int8 or a number -> float32 (..., C), not clamped."""
    if not len(tables):
        return np.zeros((*codes.shape[1:], tables.shape[2]), np.float32) + start
    stages, size, channels = tables.shape
    if codes[0].size <= FEW_POSITIONS:  # one gather for all stages: a wavefront's time is that of its calls
        first = np.arange(0, stages * size, size).reshape(-1, *(1,) * (codes.ndim - 1))
        total = tables.reshape(-1, channels).take(first + codes, axis=0).sum(0, dtype=np.float32)
        total += start
        return total
    total = tables[0][codes[0]].astype(np.float32) + start
    for table, code in zip(tables[1:], codes[1:], strict=True):
        total += table[code]
    return total


def _read_level(reader: Reader, config: ModelConfig, index: int) -> LevelPrior:
    name, level, width = LEVELS[index], config.transform.levels[index], config.prior.channels
    stages, size = level.stages, level.codebook_size
    quality = reader.take(f"{name}.quality", np.int8, (config.prior.quality_anchors, width)).astype(np.int64)
    context = None
    if index:
        coarser = config.transform.levels[index - 1]
        table = reader.take(f"{name}.context.embed", np.int8, (coarser.stages, coarser.codebook_size, width))
        blocks = _read_blocks(reader, f"{name}.context", config.prior.context_blocks[index - 1], 9, width)
        context = ContextNet(table, blocks, reader.layer(f"{name}.context.up", width, 4 * width))
    embed = reader.take(f"{name}.embed", np.int8, (stages, size, width))
    first = reader.layer(f"{name}.first", 5 * width, width)
    trunk = _read_blocks(reader, f"{name}.trunk", config.prior.trunk_blocks[index], 5, width)
    length = None
    if stages and reader.has(f"{name}.length."):
        length = _read_head(reader, f"{name}.length", config.prior, stages + 1)
    heads = [_read_head(reader, f"{name}.head.{stage}", config.prior, size, stage == stages - 1) for stage in range(stages)]
    return LevelPrior(level, quality, context, embed, first, trunk, length, heads)


def _read_head(reader: Reader, name: str, config: PriorConfig, symbols: int, last: bool = False) -> Head:
    width, inner = config.channels, config.hidden_channels
    hidden, logits = reader.layer(f"{name}.hidden", 2 * width, inner), reader.layer(f"{name}.logits", inner, symbols)
    return Head(hidden, logits, None if last else reader.take(f"{name}.embed", np.int8, (symbols, width)))


def _read_blocks(reader: Reader, name: str, count: int, taps: int, width: int) -> list[tuple[Layer, Layer]]:
    return [(reader.layer(f"{name}.{i}.spatial", taps * width, width), reader.layer(f"{name}.{i}.mix", width, width)) for i in range(count)]
