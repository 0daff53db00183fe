"""Pictures from the prior: ancestral sampling of the codes, top to bottom, and the decoder on what came out.

The generative use of a VQ-VAE-2's prior (Razavi et al. 2019, section 3.2): each level is drawn position by position given the
coarser ones, which may also be those of a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vqcodec import bitstream, channels, container
from vqcodec.codec import ModelLike, find_model, open_model
from vqcodec.codes import CodeMap, Codes, map_sizes
from vqcodec.config import LEVELS, QUALITY_STEPS
from vqcodec.layers import Array
from vqcodec.limits import MAX_PIXELS, check_pixels
from vqcodec.model import Model, quality_steps
from vqcodec.prior import LENGTH
from vqcodec.scan import scan
from vqcodec.tiles import Image

SMALLER = "draw a smaller picture"  # nothing raises the limit here


def sample(height: int, width: int, quality: float = 50, seed: int = 0, model: ModelLike = "default") -> Image:
    """Draws an image uint8 (height, width, 3) from a model's prior; the same seed gives the same codes everywhere.

    `quality` 0..100 is the one that the prior is asked for. Raises `LimitError`, `ModelError` or `ValueError`.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has nothing in it")
    check_pixels(width, height, MAX_PIXELS, advice=SMALLER)
    opened, steps = open_model(model), quality_steps(quality)
    codes = draw(opened, height, width, steps, np.random.default_rng(seed), [])
    return opened.transform.decode(codes, height, width, steps)


def sample_from(data: bytes, keep: int, seed: int = 0, model: ModelLike | None = None) -> Image:
    """Draws the finer levels anew, given the `keep` coarsest ones (1 or 2) of a `.vq` file: an image uint8 (H, W, 3), or (H, W) if gray.

    Raises as `codec.decompress` does.
    """
    if not 1 <= keep < len(LEVELS):
        raise ValueError(f"keep {keep} lies outside 1..{len(LEVELS) - 1}")
    held = container.unpack(data, keep)
    check_pixels(held.width, held.height, MAX_PIXELS, advice=SMALLER)
    opened = find_model(held.model_id, model)
    kept = bitstream.read(opened.prior, held.levels[:keep], held.height, held.width, held.quality)[:keep]
    codes = draw(opened, held.height, held.width, held.quality, np.random.default_rng(seed), kept)
    return channels.join(opened.transform.decode(codes, held.height, held.width, held.quality), held.gray, None)


def draw(model: Model, height: int, width: int, quality: int, random: np.random.Generator, given: Sequence[CodeMap]) -> Codes:
    """Codes drawn from the prior at `quality` hundredths, below the `given` coarsest maps."""
    if not 0 <= quality <= QUALITY_STEPS:
        raise ValueError(f"quality {quality} lies outside 0..{QUALITY_STEPS}")
    maps: list[CodeMap] = list(given)
    context: Array | None = None
    for level, size in enumerate(map_sizes(height, width)):
        context = model.prior.context(level, quality, maps[level - 1] if level else None, context)
        if level < len(given):
            continue
        drawn = np.zeros((model.config.transform.levels[level].stages, *size), np.int32)

        def visit(stage: int, rows: Array, columns: Array, freqs: Array, drawn: CodeMap = drawn) -> Array:
            reached = freqs.cumsum(1)
            symbols: Array = (reached <= random.random(len(rows))[:, None] * reached[:, -1:]).sum(1)
            if stage != LENGTH:
                drawn[stage, rows, columns] = symbols
            return symbols

        scan(model.prior, level, context, size, visit)
        maps.append(drawn)
    return Codes(*maps)
