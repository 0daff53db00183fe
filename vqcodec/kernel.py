"""The compiled wavefronts of the prior (kernel.c): an accelerator, where installing found a C compiler. scan.py does without it.

Shapes: `(n, C)` for the n positions of one wavefront, as in scan.py; rows of channels are padded with zeros to whole vectors.

It computes the integers that scan.py computes; the tests and `vqcodec selftest` compare them. `VQCODEC_KERNEL=0` leaves it out.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np

from vqcodec.entropy import FREQ_TABLE
from vqcodec.layers import Array, Layer
from vqcodec.prior import LENGTH, Head, LevelPrior

SOURCES = [Path(__file__).with_name(name) for name in ("kernel.c", "search.c")]
LIBRARY = Path(__file__).with_name("libkernel.so")  # on every system: it is opened by this name
LANES, GROUP, RING, SHIFTED = 16, 4, 4, 128  # as in kernel.c


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")] + [
        (name, ctypes.c_int64) for name in ("inputs", "outputs", "shift")
    ]


class _Head(ctypes.Structure):
    _fields_ = [("hidden", _Layer), ("logits", _Layer), ("embed", ctypes.c_void_p), ("symbols", ctypes.c_int64)]


class _Level(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels", "stages", "codebook_size", "blocks")),
        ("embed", ctypes.c_void_p),
        ("first", _Layer),
        ("trunk", ctypes.POINTER(_Layer)),
        ("heads", ctypes.POINTER(_Head)),
    ]


class _Scan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("height", "width", "longest")),
        ("context", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("context_row", "context_column", "context_channels")),
        *((name, ctypes.c_void_p) for name in ("rings", "columns", "x", "hidden", "sums", "here", "symbols", "freq_table")),
        ("freq_count", ctypes.c_int64),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is none, one of another source, one for another processor, or the user wants none."""
    features = {"0": 0, "avx2": 1}.get(os.environ.get("VQCODEC_KERNEL", ""), 2)
    if not features or not LIBRARY.is_file():
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.vqcodec_open.argtypes, found.vqcodec_open.restype = [ctypes.c_int64], ctypes.c_uint32
        if found.vqcodec_open(features) != zlib.crc32(b"".join(source.read_bytes() for source in SOURCES)):
            return None
    except (OSError, AttributeError):  # made for another machine, or damaged
        return None
    level, scan, whole = ctypes.POINTER(_Level), ctypes.POINTER(_Scan), ctypes.c_int64
    found.vqcodec_trunk.argtypes, found.vqcodec_trunk.restype = [level, scan, whole], None
    found.vqcodec_freqs.argtypes, found.vqcodec_freqs.restype = [level, scan, whole, whole, ctypes.c_void_p], whole
    found.vqcodec_enter.argtypes, found.vqcodec_enter.restype = [level, scan, whole], None
    return found


class PackedLevel:
    """A level's network as the kernel wants it. Immutable, so it may be shared between threads."""

    def __init__(self, net: LevelPrior):
        self.kept: list[Array] = []  # what the kernel has addresses of
        stages, size, channels = net.embed.shape
        self.lengths, self.symbol_counts = net.length is not None, [stages + 1] + [size] * stages
        self.hidden = _whole(max([channels, *(head.hidden.integers.shape[1] for head in net.heads)]))
        parts = [(layer, taps) for spatial, mix in net.trunk for layer, taps in ((spatial, 5), (mix, 1))]
        self.trunk = (_Layer * len(parts))(*(self._layer(layer, taps, taps > 1) for layer, taps in parts))
        self.heads = (_Head * (stages + 1))(_Head() if net.length is None else self._head(net.length), *map(self._head, net.heads))
        embed, first = self._table(net.embed), self._layer(net.first, 5, True)
        self.level = _Level(_whole(channels), stages, size, len(net.trunk), embed, first, self.trunk, self.heads)

    def _layer(self, layer: Layer, taps: int, shifted: bool) -> _Layer:
        """A layer whose inputs are `taps` rows of channels, with 128 added or not."""
        inputs, outputs = layer.integers.shape
        weight = _padded(layer.integers.reshape(taps, inputs // taps, outputs), 1, 2)
        weight = weight.reshape(-1, weight.shape[2])
        bias = _padded(layer.offsets.astype(np.int32), 0) - (SHIFTED * weight.sum(0, dtype=np.int32) if shifted else 0)
        groups = np.empty((weight.shape[0] // GROUP, weight.shape[1], GROUP), np.int8)
        for i in range(GROUP):  # much quicker than a transposition of bytes
            groups[..., i] = weight[i::GROUP]
        panels = groups.view(np.int32).reshape(len(groups), -1, LANES).transpose(1, 0, 2)
        return _Layer(address(panels, self.kept), address(bias, self.kept), *weight.shape, layer.shift)

    def _head(self, head: Head) -> _Head:
        hidden, logits = self._layer(head.hidden, 2, True), self._layer(head.logits, 1, False)
        return _Head(hidden, logits, None if head.embed is None else self._table(head.embed), head.logits.integers.shape[1])

    def _table(self, table: Array) -> int:
        return address(_padded(table, table.ndim - 1), self.kept)


_PACKED: WeakKeyDictionary[LevelPrior, PackedLevel] = WeakKeyDictionary()
_PACKED_LOCK = Lock()


def packed(net: LevelPrior) -> PackedLevel:
    """The level as the kernel wants it, made once and kept as long as the level."""
    with _PACKED_LOCK:
        if net not in _PACKED:
            _PACKED[net] = PackedLevel(net)
        return _PACKED[net]


class CompiledWavefronts:
    """A level's map on its way through the kernel: does what scan.py's `Wavefronts` does."""

    def __init__(self, kernel: ctypes.CDLL, net: LevelPrior, context: Array, size: tuple[int, int], symbols: Array):
        self.kernel, self.packed = kernel, packed(net)
        height, width = size
        longest, channels = symbols.shape[1], self.packed.level.channels
        around = np.broadcast_to(context, (*size, net.embed.shape[2]))  # of one position at the top level
        assert around.dtype == np.int8
        self.here = np.empty(longest, np.int64)
        widest = _whole(max(self.packed.hidden, *self.packed.symbol_counts))
        self.kept: list[Array] = [around]  # what the kernel has addresses of
        rows = (longest, 5 * channels), (longest, 2 * channels), (longest, self.packed.hidden)
        shapes = [(1 + len(net.trunk), RING, height + 1, channels), *rows]
        rings, columns, self.x, hidden = (np.full(shape, SHIFTED, np.uint8) for shape in shapes)  # x is what the heads see
        shifted = [address(array, self.kept) for array in (rings, columns, self.x, hidden)]
        arrays = (np.empty((longest, widest), np.int32), self.here, symbols, FREQ_TABLE)
        addresses = (address(array, self.kept) for array in arrays)
        strides = (*around.strides[:2], context.shape[2])
        self.scan = _Scan(height, width, longest, around.ctypes.data, *strides, *shifted, *addresses, len(FREQ_TABLE))
        self.tables = np.empty(longest * max(self.packed.symbol_counts), np.float64)
        self.table = self.tables.ctypes.data

    def freqs(self, t: int, symbols: Array, times: int = 1) -> Iterator[tuple[int, Array, Array]]:
        """As in scan.py; frequencies are overwritten by those of the next symbol."""
        level, scan, compute = self.packed.level, self.scan, self.kernel.vqcodec_freqs
        self.kernel.vqcodec_trunk(level, scan, t)
        count = symbols.shape[1]
        if times > 1:
            once = count // times
            self.x[:count].reshape(times, once, self.x.shape[1])[1:] = self.x[:once]
            self.here[once:count] = np.arange(once, count)
        for index, size in enumerate(self.packed.symbol_counts):
            if index or self.packed.lengths:
                count = compute(level, scan, index, count, self.table)
                if not count:
                    return
                yield index - 1 if index else LENGTH, self.here[:count], self.tables[: count * size].reshape(count, size)

    def enter(self, t: int, symbols: Array) -> None:
        """All symbols of wavefront t are known."""
        del symbols  # the kernel has their address
        self.kernel.vqcodec_enter(self.packed.level, self.scan, t)


def address(array: Array, kept: list[Array]) -> int:
    """Of an array without gaps, which stays as long as `kept` does."""
    kept.append(np.ascontiguousarray(array))
    return kept[-1].ctypes.data


def _whole(count: int) -> int:
    """`count` rounded up to whole vectors."""
    return -(-count // LANES) * LANES


def _padded(array: Array, *axes: int) -> Array:
    """The array with zeros behind, up to whole vectors along these axes."""
    missing = [(0, _whole(length) - length if axis in axes else 0) for axis, length in enumerate(array.shape)]
    return np.pad(array, missing) if any(behind for _, behind in missing) else array
