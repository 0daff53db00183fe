"""The scan: a level's map in wavefronts, through the prior, to the range coder's frequencies.

Shapes: `(n, C)` for the n positions of one wavefront, codes `(S, H, W)`, symbols `(S + 1, H, W)`: the codes and the lengths (prior.py).

A position (row, column) depends only on positions with a smaller `t = column + 2 * row`, so all positions of one t are
computed together, in `W + 2 (H - 1)` steps (for the taps see prior.py). Reading, `scan` learns a wavefront's codes from the file
before the next one can be computed. Writing, all codes are known, and `scan_known` computes many wavefronts at once: the same integers
in the same order, since no product depends on how positions are grouped. Where the kernel was compiled (kernel.py), it computes the
wavefronts one by one in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from vqcodec.blas import one_blas_thread
from vqcodec.entropy import freqs
from vqcodec.kernel import CompiledWavefronts, library
from vqcodec.layers import ACTIVATION_MAX, EXACT_LIMIT, Array, Product, clamped
from vqcodec.prior import LENGTH, Head, LevelPrior, Prior, embed

Visit = Callable[[int, Array, Array, Array], Array]  # (stage or LENGTH, rows, columns, freqs (n, K)) -> symbols (n,)
VisitOther = Callable[[Array, Array, Array, Array, Array], None]  # (which, rows, columns, symbols (n,), freqs (n, K))
VisitKnown = Callable[[int, Array, Array], None]  # (stage or LENGTH, symbols (n,), freqs (n, K))

REACH = 3  # wavefronts that the farthest tap reaches back
RING = REACH + 1
IMPOSSIBLE = np.float32(-EXACT_LIMIT)  # the logit of a code that cannot be
BATCH_POSITIONS = 512  # positions of the wavefronts that `scan_known` computes at once: they stay in the processor's cache


class _Ring:
    """The last four wavefronts of one layer's activations, in rows of the map with a row of zeros above."""

    def __init__(self, height: int, channels: int):
        self.ring = np.zeros((RING, height + 1, channels), np.float32)

    def taps(self, t: int, first: int, last: int) -> list[Array]:
        """Activations at (-1,-1) (-1,0) (-1,1) (0,-1) of rows first..last-1 at wavefront t, each (n, C)."""
        above = slice(first, last)  # the zero row shifts the index by one
        ring = self.ring
        return [*(ring[(t - back) % RING, above] for back in (3, 2, 1)), ring[(t - 1) % RING, first + 1 : last + 1]]

    def put(self, t: int, first: int, values: Array) -> None:
        """Stores wavefront t, whose rows begin at `first`, over wavefront t - 4."""
        slot = self.ring[t % RING]
        slot[max(1, first - 1) : first + 1] = 0  # rows that have ended since: outside the map is zero
        slot[first + 1 : first + 1 + len(values)] = values


class Wavefronts:
    """A level's map on its way through the network in numpy. kernel.py has the same, compiled."""

    def __init__(self, net: LevelPrior, context: Array, size: tuple[int, int], product: Product):
        height, width = size
        channels = net.embed.shape[2]
        self.net, self.product, self.size = net, product, size
        self.inputs = _Ring(height, channels)
        self.states = [_Ring(height, channels) for _ in net.trunk]
        self.contexts = np.broadcast_to(context, (height, width, channels)).reshape(-1, channels)

    def freqs(self, t: int, symbols: Array, times: int = 1) -> Iterator[tuple[int, Array, Array]]:
        """`symbol_freqs` of wavefront t, whose symbols (S + 1, n) are filled in meanwhile.

        With `times` above 1 n is so many times the wavefront's positions: all of them, then all of them again, with other symbols.
        """
        first, last = _rows(t, *self.size)
        width = self.size[1]
        between = max(1, width - 2)  # from one position of a wavefront to its next, in the order of the map
        around = self.contexts[t + first * (width - 2) :: between][: last - first].astype(np.float32)
        x = self.net.first(np.concatenate([*self.inputs.taps(t, first, last), around], axis=1), -ACTIVATION_MAX, self.product)
        for state, (spatial, mix) in zip(self.states, self.net.trunk, strict=True):
            hidden = spatial(np.concatenate([*state.taps(t, first, last), x], axis=1), 0, self.product)
            state.put(t, first, x)
            x = clamped(x + mix.raw(hidden, self.product))
        if times > 1:
            x, around = np.tile(x, (times, 1)), np.tile(around, (times, 1))
        return symbol_freqs(self.net, x, around, symbols, self.product)

    def enter(self, t: int, symbols: Array) -> None:
        """All symbols of wavefront t are known."""
        self.inputs.put(t, _rows(t, *self.size)[0], clamped(embed(self.net.embed, symbols[:LENGTH])))


# The numbers are finite by construction, but some BLAS kernels raise the processor's flags on padding that they discard: on x86 the
# one for invalid operations, on ARM also those for division by zero and overflow.
@one_blas_thread()
@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def scan(prior: Prior, level: int, context: Array, size: tuple[int, int], visit: Visit) -> int:
    """Walks a level's map (H, W) in wavefronts and calls `visit` for the lengths and every stage of each; returns the steps.

    `visit(stage, rows, columns, freqs)` gets those positions (n,) that have a code at the stage, and integer frequencies (n, K), which
    are overwritten later, and returns the symbols (n,) there: what the decoder pulls from the file, say. `context` is from `Prior.context`.
    """
    height, width = size
    net = prior.levels[level]
    if not net.config.stages:
        return 0
    held = _wavefront(net, size)
    wavefronts = _compiled(prior, level, context, size, held) or Wavefronts(net, context, size, prior.product)
    steps = width + 2 * (height - 1)
    for t in range(steps):
        rows, columns = _places(t, height, width)
        symbols = held[:, : len(rows)]
        symbols[:] = 0
        for stage, here, table in wavefronts.freqs(t, symbols):
            symbols[stage, here] = visit(stage, rows[here], columns[here], table)
        wavefronts.enter(t, symbols)
    return steps


def _wavefront(net: LevelPrior, size: tuple[int, int]) -> Array:
    """Room for the symbols (S + 1, n) of the longest wavefront."""
    return np.zeros((net.config.stages + 1, min(size[0], (size[1] + 1) // 2)), np.int32)


def _compiled(prior: Prior, level: int, context: Array, size: tuple[int, int], held: Array) -> CompiledWavefronts | None:
    """The compiled wavefronts, where there is a kernel and the prior allows it; `held` is where each one's symbols will be."""
    kernel = library() if prior.compiled else None
    return CompiledWavefronts(kernel, prior.levels[level], context, size, held) if kernel else None


def _places(t: int, height: int, width: int) -> tuple[Array, Array]:
    """Rows and columns (n,) of wavefront t."""
    rows = np.arange(*_rows(t, height, width))
    return rows, t - 2 * rows


def _rows(t: int, height: int, width: int) -> tuple[int, int]:
    """The first row that wavefront t has in the map, and the one after its last."""
    return max(0, (t - width + 2) // 2), min(height - 1, t // 2) + 1


def symbol_freqs(net: LevelPrior, x: Array, around: Array, symbols: Array, product: Product) -> Iterator[tuple[int, Array, Array]]:
    """The frequencies of one symbol after the other at n positions, from their trunk's output and context (n, C).

    Gives the stage, or LENGTH, which of the positions have such a symbol (m,), and frequencies (m, K). What `symbols` (S + 1, n) hold
    there is read after the frequencies were given out.
    """
    here, lengths = np.arange(len(x)), None
    known = slice(x.shape[1])  # of the channels, what changes with every symbol that becomes known; the context stays
    x = np.concatenate([x, around], axis=1)
    if net.length is not None and len(here):
        yield LENGTH, here, freqs(_logits(net.length, x, product))
        lengths = symbols[LENGTH]
        _enter(net.length, lengths, x[:, known])
    for stage, head in enumerate(net.heads):
        if lengths is not None:
            longer = (lengths > stage).nonzero()[0]
            if len(longer) < len(here):
                here, x, lengths = here[longer], x[longer], lengths[longer]
        if not len(here):
            return
        logits = _logits(head, x, product)
        if lengths is not None:
            logits[lengths == stage + 1, 0] = IMPOSSIBLE  # a last code that were 0 would not be the last
        yield stage, here, freqs(logits)
        _enter(head, symbols[stage, here], x[:, known])


def _enter(head: Head, symbols: Array, known: Array) -> None:
    """Adds symbols (n,) that have become known, in place."""
    if head.embed is not None:
        clamped(np.add(known, head.embed[symbols], out=known))


def _logits(head: Head, x: Array, product: Product) -> Array:
    return head.logits.raw(head.hidden(x, 0, product), product)


def symbols_of(codes: Array) -> Array:
    """Codes (S, H, W) and after them the lengths: int32 (S + 1, H, W)."""
    stages = np.arange(1, len(codes) + 1, dtype=np.uint8)[:, None, None]
    return np.concatenate([codes, (stages * (codes != 0)).max(0, initial=0, keepdims=True)], dtype=np.int32)


@one_blas_thread()
@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def scan_known(prior: Prior, level: int, context: Array, symbols: Array, visit: VisitKnown) -> None:
    """The same as `scan` where the symbols (S + 1, H, W) are known: `visit(stage, symbols, freqs)` gets them, in the same order."""
    height, width = symbols.shape[1:]
    net, product = prior.levels[level], prior.product
    if not net.config.stages:
        return
    held = _wavefront(net, (height, width))
    wavefronts = _compiled(prior, level, context, (height, width), held)
    if wavefronts:
        for t in range(width + 2 * (height - 1)):
            rows, columns = _places(t, height, width)
            known = held[:, : len(rows)]
            known[:] = symbols[:, rows, columns]
            for stage, here, table in wavefronts.freqs(t, known):
                visit(stage, known[stage, here], table)
            wavefronts.enter(t, known)
        return
    history = [_History(net.embed.shape[2]) for _ in range(1 + len(net.trunk))]
    for batch in _batches(height, width):
        around = np.broadcast_to(context, (height, width, net.embed.shape[2]))[batch.rows, batch.columns].astype(np.float32)
        known = symbols[:, batch.rows, batch.columns]
        x = batch.masked(clamped(embed(net.embed, known[:LENGTH])))
        x = net.first(history[0].columns(batch, x, around), -ACTIVATION_MAX, product)
        for state, (spatial, mix) in zip(history[1:], net.trunk, strict=True):
            x = batch.masked(x.reshape(around.shape))
            hidden = spatial(state.columns(batch, x, x), 0, product)
            x = clamped(x.reshape(-1, x.shape[2]) + mix.raw(hidden, product))
        valid = batch.valid
        known = known[:, valid]
        found = list(symbol_freqs(net, x.reshape(around.shape)[valid], around[valid], known, product))
        _visit_in_order(valid, known, found, visit)


@one_blas_thread()
@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def scan_others(prior: Prior, level: int, context: Array, symbols: Array, others: Array, visit: VisitOther) -> None:
    """The same walk, where each position has its symbols of each of the `others` (R, S + 1, H, W), among neighbours with `symbols`.

    `visit(which, rows, columns, symbols, freqs)` gets one symbol after the other of those positions (n,), of those of the others, that
    have it; frequencies are overwritten later.
    """
    height, width = symbols.shape[1:]
    net, times = prior.levels[level], len(others)
    if not net.config.stages:
        return
    held = np.tile(_wavefront(net, (height, width)), times)
    wavefronts = _compiled(prior, level, context, (height, width), held) or Wavefronts(net, context, (height, width), prior.product)
    for t in range(width + 2 * (height - 1)):
        rows, columns = _places(t, height, width)
        count = len(rows)
        known = held[:, : times * count]
        known[:] = others[:, :, rows, columns].transpose(1, 0, 2).reshape(len(held), -1)
        for stage, here, table in wavefronts.freqs(t, known, times):
            which, places = np.divmod(here, count)
            visit(which, rows[places], columns[places], known[stage, here], table)
        held[:, :count] = symbols[:, rows, columns]
        wavefronts.enter(t, held[:, :count])


class _Batch:
    """Some wavefronts, t in [start, stop), over the rows that any of them has: maps (T, R) of positions, not all in the map."""

    def __init__(self, start: int, stop: int, height: int, width: int):
        self.first = _rows(start, height, width)[0]
        self.rows = np.arange(self.first, _rows(stop - 1, height, width)[1])[None]
        columns = np.arange(start, stop)[:, None] - 2 * self.rows
        self.valid = (columns >= 0) & (columns < width)
        self.columns = columns.clip(0, width - 1)

    def masked(self, values: Array) -> Array:
        """Values (T, R, C), in place zero outside the map."""
        values[~self.valid] = 0
        return values


def _batches(height: int, width: int) -> Iterator[_Batch]:
    """Cuts the scan up: few wavefronts where they are long, and not so many that most of the positions lie outside the map."""
    start, steps = 0, width + 2 * (height - 1)
    while start < steps:
        first, last = _rows(start, height, width)
        count = max(1, min(BATCH_POSITIONS // (last - first), max(4, (last - first) // 2)))
        stop = min(steps, start + count)
        yield _Batch(start, stop, height, width)
        start = stop


class _History:
    """One layer's activations at the wavefronts before a batch, (REACH, R + 1, C), from the row before the batch's first on."""

    def __init__(self, channels: int):
        self.before, self.above = np.zeros((REACH, 1, channels), np.float32), -1

    def columns(self, batch: _Batch, values: Array, current: Array) -> Array:
        """What a masked convolution sees at each position of the batch, (T * R, 5 C): four taps of `values`, and `current`.

        `values` and `current` are (T, R, C); the values of the last wavefronts stay for the next batch.
        """
        count, rows, channels = values.shape
        held = np.zeros((REACH + count, rows + 1, channels), np.float32)
        shift = batch.first - 1 - self.above
        before = self.before[:, shift : shift + rows + 1]
        held[:REACH, : before.shape[1]] = before
        held[REACH:, 1:] = values
        self.before, self.above = held[-REACH:], batch.first - 1
        taps = [held[:count, :-1], held[1 : 1 + count, :-1], held[2 : 2 + count, :-1], held[2 : 2 + count, 1:], current]
        return np.concatenate(taps, axis=2).reshape(-1, 5 * channels)


def _visit_in_order(valid: Array, known: Array, found: list[tuple[int, Array, Array]], visit: VisitKnown) -> None:
    """Calls `visit` for a batch's wavefronts one after the other, and for every symbol of each.

    Of the positions `valid` (T, R) is which of them lie in the map; `known` (S + 1, n) are the symbols of those, and `found` is what
    `symbol_freqs` gave for them.
    """
    bounds = np.concatenate([[0], valid.sum(1).cumsum()])  # of the wavefronts among the positions
    parts = [(stage, known[stage, here], table, here.searchsorted(bounds)) for stage, here, table in found]
    for wavefront in range(len(valid)):
        for stage, symbols, table, ends in parts:
            part = slice(ends[wavefront], ends[wavefront + 1])
            if part.start < part.stop:
                visit(stage, symbols[part], table[part])
