"""The prior without wavefronts: position after position in the order of reading. A yardstick, which no file is written with.

`scan` and `scan_known` take the place of those in `vqcodec.scan` and call `visit` with the same frequencies in another order,
one position at a time.
"""

from __future__ import annotations

import numpy as np

from vqcodec.layers import ACTIVATION_MAX, Array
from vqcodec.prior import LENGTH, Prior, embed
from vqcodec.scan import Visit, VisitKnown, symbol_freqs


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # see vqcodec.scan.scan
def scan(prior: Prior, level: int, context: Array, size: tuple[int, int], visit: Visit) -> int:
    """Walks a level's map (H, W) row by row, as `vqcodec.scan.scan` does in wavefronts; returns the steps."""
    height, width = size
    net, product = prior.levels[level], prior.product
    channels = net.embed.shape[2]
    inputs, *states = [np.zeros((height + 1, width + 2, channels), np.float32) for _ in range(1 + len(net.trunk))]
    contexts = np.broadcast_to(context, (height, width, channels))
    for row in range(height):
        for column in range(width):
            around = contexts[row, column][None].astype(np.float32)
            x = net.first(np.concatenate([*_taps(inputs, row, column), around], axis=1), -ACTIVATION_MAX, product)
            for state, (spatial, mix) in zip(states, net.trunk, strict=True):
                hidden = spatial(np.concatenate([*_taps(state, row, column), x], axis=1), 0, product)
                state[row + 1, column + 1] = x
                x = np.clip(x + mix.raw(hidden, product), -ACTIVATION_MAX, ACTIVATION_MAX)
            symbols = np.zeros((net.config.stages + 1, 1), np.int32)
            for stage, _, table in symbol_freqs(net, x, around, symbols, product):
                symbols[stage] = visit(stage, np.array([row]), np.array([column]), table)
            inputs[row + 1, column + 1] = np.clip(embed(net.embed, symbols[:LENGTH]), -ACTIVATION_MAX, ACTIVATION_MAX)
    return height * width


def scan_known(prior: Prior, level: int, context: Array, symbols: Array, visit: VisitKnown) -> None:
    """The same with known symbols, so that what `scan` can read can be written."""

    def answer(stage: int, rows: Array, columns: Array, freqs: Array) -> Array:
        known = np.asarray(symbols[stage, rows, columns])
        visit(stage, known, freqs)
        return known

    scan(prior, level, context, symbols.shape[1:], answer)


def _taps(padded: Array, row: int, column: int) -> list[Array]:
    """What lies at (-1,-1) (-1,0) (-1,1) (0,-1) of a place, each (1, C), in a map with a zero row above and zero columns beside it."""
    return [padded[row, column + i][None] for i in range(3)] + [padded[row + 1, column][None]]
