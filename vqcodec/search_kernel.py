"""The compiled search for codes (search.c): an accelerator, where installing found a C compiler. search.py does without it.

Shapes: latents `(N, D)`, context `(N, C)`, codes `(R, S, N)`, as in search.py. What is found costs the same, up to the rounding
of sums, which is coarser where products are of integers (AVX-512 VNNI).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.kernel import address

if TYPE_CHECKING:
    from vqcodec.search import Floats, Stage

PANEL = 32  # as in search.c
UNREACHABLE = -1e30  # the logit of a code that only fills a panel
LEAST_WEIGHT = 0.5  # where bits count less, distances count more in them, and products of integers would tip too many choices


class _Matrix(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("weight", "units", "biases")), ("limit", ctypes.c_float)]


class _Stage(ctypes.Structure):
    _fields_ = [("codebook", ctypes.c_void_p), *((name, _Matrix) for name in ("from_sum", "hidden", "logits", "distances"))]


class _Quantiser(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("stages", "size", "dim", "width", "pairs")), ("stage", ctypes.POINTER(_Stage))]


class CompiledSearch:
    """A level's quantiser as the kernel wants it. Immutable, so it may be shared between threads."""

    def __init__(self, kernel: ctypes.CDLL, stages: list[Stage]):
        self.kept: list[NDArray[Any]] = []  # what the kernel has addresses of
        kernel.vqcodec_search_takes_pairs.restype = ctypes.c_int64
        pairs = stages[0].rate_weight >= LEAST_WEIGHT and bool(kernel.vqcodec_search_takes_pairs())
        pack = self._pairs if pairs else self._floats
        self.stages = (_Stage * len(stages))(*(self._stage(stage, pack) for stage in stages))
        size, dim = stages[0].codebook.shape
        self.net = _Quantiser(len(stages), size, dim, stages[0].hidden.shape[1], pairs, self.stages)
        self.search = kernel.vqcodec_search
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self.search.argtypes = [ctypes.POINTER(_Quantiser), pointer, pointer, whole, whole, whole, pointer, whole, whole]
        self.search.restype = whole

    def __call__(self, latents: Floats, context: Floats, paths: int, codes: NDArray[np.int32]) -> None:
        """Fills codes (R, S, N), each stage in one piece, of float32 latents and context. Raises `MemoryError`."""
        latents, context = np.ascontiguousarray(latents), np.ascontiguousarray(context)
        plane, pitch = (stride // codes.itemsize for stride in codes.strides[:2])
        numbers = len(latents), paths, len(codes)
        if not self.search(self.net, latents.ctypes.data, context.ctypes.data, *numbers, codes.ctypes.data, plane, pitch):
            raise MemoryError

    def _stage(self, stage: Stage, pack: Callable[[Floats, float], _Matrix]) -> _Stage:
        distances = stage.costs[:-1]  # the cost of the path is added there
        return _Stage(
            address(stage.codebook, self.kept),
            _Matrix() if stage.from_sum is None else pack(stage.from_sum, 0.0),
            pack(stage.hidden, 0.0),
            pack(stage.logits, UNREACHABLE),
            pack(distances, np.inf),
        )

    def _floats(self, matrix: Floats, bias: float) -> _Matrix:
        """(I + 1, O), biases last -> (O / PANEL, I + 1, PANEL)."""
        panels = _padded(matrix, bias).reshape(len(matrix), -1, PANEL).transpose(1, 0, 2)
        return _Matrix(address(panels, self.kept))

    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def _pairs(self, matrix: Floats, bias: float) -> _Matrix:
        """(I + 1, O), biases last -> integers (O / PANEL, I / 2, PANEL, 2) in units of each output's own, padded with zeros."""
        padded = _padded(matrix, bias)
        inputs, outputs = len(matrix) - 1, padded.shape[1]
        limit = min(32767, isqrt((2**31 - 1) // inputs))
        units = np.abs(padded[:-1]).max(0) / limit
        integers = np.zeros((inputs + inputs % 2, outputs), np.int32)
        integers[:inputs] = np.rint(padded[:-1] * (1 / np.where(units > 0, units, 1)))
        pairs = integers[::2] & 0xFFFF | integers[1::2] << 16  # the first of two in the lower half
        panels = pairs.reshape(-1, outputs // PANEL, PANEL).transpose(1, 0, 2)
        return _Matrix(*(address(array, self.kept) for array in (panels, units, padded[-1])), limit)


def _padded(matrix: Floats, bias: float) -> Floats:
    """(I + 1, O) with outputs behind, up to whole panels, that have zeros as weights and this bias."""
    inputs, outputs = matrix.shape
    padded = np.zeros((inputs, -(-outputs // PANEL) * PANEL), np.float32)
    padded[:, :outputs], padded[-1, outputs:] = matrix, bias
    return padded
