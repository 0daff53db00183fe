"""Pixels to codes and back: the exported transform in ONNX Runtime, tile by tile.

Shapes: images uint8 `(H, W, 3)`, codes `(S, h, w)` per level. The graphs take whole aligned images or tiles:
`encode.onnx` image (1, H, W, 3) uint8 and quality (1,) -> top, middle, bottom int32 (S, h, w);
`decode.onnx` those codes, quality and keep (3,) -> image (1, H, W, 3) uint8.

A large image goes through in tiles with a halo of at least the receptive field, so that memory is bounded and
inner tiles see what the whole image would have shown them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqcodec.codes import CodeMap, Codes, map_sizes
from vqcodec.config import ALIGNMENT, LEVEL_STRIDES, QUALITY_STEPS, TransformConfig

Image = NDArray[np.uint8]

TILE = 1024  # pixels a side that a tile contributes; with the halo it bounds the memory of a pass
UNTILED_PIXELS = 2 << 20  # images up to here go through in one piece: about 0.5 GB of activations


class Span(NamedTuple):
    """One side of a tile, in pixels: [start, stop) with the halo, of which [inner_start, inner_stop) is kept."""

    start: int
    stop: int
    inner_start: int
    inner_stop: int


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """Cuts a side of `length` pixels (a multiple of the alignment) into tiles with halos inside the image."""
    return [
        Span(max(0, start - halo), min(length, start + tile + halo), start, min(length, start + tile)) for start in range(0, length, tile)
    ]


def halo(config: TransformConfig) -> int:
    """Pixels beyond a tile that can change its codes or pixels: a bound on the receptive field, aligned.

    Going down and up again through the levels, each block's 3x3 convolution reaches one position of its own scale;
    the encoder's codes also depend on the decoder's state, hence the sum of both; the down-sampling convolutions
    do not overlap and add at most one position of the coarsest scale.
    """
    strides = (4, 8, 16, 32)
    reach = sum(s * (e + d) for s, e, d in zip(strides, config.encoder_depths, config.decoder_depths, strict=True))
    return -(-(reach + strides[0] + ALIGNMENT) // ALIGNMENT) * ALIGNMENT


def pad(image: Image) -> Image:
    """Repeats the last row and column up to a multiple of the alignment."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % ALIGNMENT), (0, -width % ALIGNMENT), (0, 0)), mode="edge")


class Transform:
    """The encoder and decoder graphs of one model. `encoder` and `decoder` are ONNX Runtime sessions."""

    def __init__(self, config: TransformConfig, encoder: Any, decoder: Any):
        self.config, self.encoder, self.decoder = config, encoder, decoder
        self.halo = halo(config)

    def encode(self, image: Image, quality: int) -> Codes:
        """Image uint8 (H, W, 3), quality in hundredths -> codes."""
        height, width = image.shape[:2]
        maps = [np.empty((level.stages, *size), np.int32) for level, size in zip(self.config.levels, map_sizes(height, width), strict=True)]
        padded = pad(image)
        for rows, columns in self._tiles(*padded.shape[:2]):
            tile = padded[rows.start : rows.stop, columns.start : columns.stop]
            found = self.encoder.run(None, {"image": tile[None], "quality": _quality(quality)})
            for code_map, part, stride in zip(maps, found, LEVEL_STRIDES, strict=True):
                code_map[:, _inner(rows, stride), _inner(columns, stride)] = part[:, _kept(rows, stride), _kept(columns, stride)]
        return Codes(*maps)

    def decode(self, codes: Codes, height: int, width: int, quality: int, levels: int = 3) -> Image:
        """Codes -> image uint8 (H, W, 3), of the `levels` coarsest levels alone (the others count as zero)."""
        image = np.empty((height, width, 3), np.uint8)
        keep = (np.arange(3) < levels).astype(np.float32)
        top, bottom = codes.top.shape[1:], (height, width)
        for rows, columns in self._tiles(top[0] * ALIGNMENT, top[1] * ALIGNMENT):
            inputs: dict[str, Any] = {"quality": _quality(quality), "keep": keep}
            for name, code_map, stride in zip(Codes._fields, codes, LEVEL_STRIDES, strict=True):
                inputs[name] = _crop(code_map, rows, columns, stride)
            tile = self.decoder.run(None, inputs)[0][0]
            kept = tile[_kept(rows, 1), _kept(columns, 1)][: bottom[0] - rows.inner_start, : bottom[1] - columns.inner_start]
            image[_inner(rows, 1), _inner(columns, 1)] = kept
        return image

    def _tiles(self, height: int, width: int) -> Iterator[tuple[Span, Span]]:
        tile = max(height, width) if height * width <= UNTILED_PIXELS else TILE
        for rows in spans(height, tile, self.halo):
            for columns in spans(width, tile, self.halo):
                yield rows, columns


def _quality(quality: int) -> NDArray[np.float32]:
    return np.array([quality / QUALITY_STEPS], np.float32)


def _inner(span: Span, stride: int) -> slice:
    """Where a tile's kept part lies in the whole map."""
    return slice(span.inner_start // stride, span.inner_stop // stride)


def _kept(span: Span, stride: int) -> slice:
    """Where a tile's kept part lies in the tile."""
    return slice((span.inner_start - span.start) // stride, (span.inner_stop - span.start) // stride)


def _crop(code_map: CodeMap, rows: Span, columns: Span, stride: int) -> CodeMap:
    return np.ascontiguousarray(code_map[:, rows.start // stride : rows.stop // stride, columns.start // stride : columns.stop // stride])
