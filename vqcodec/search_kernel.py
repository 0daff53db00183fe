"""The compiled search for codes (search.c): an accelerator, where installing found a C compiler. search.py does without it.

Shapes: latents `(N, D)`, context `(N, C)`, codes `(S, N)`, as in search.py. What is found costs the same, up to the rounding of sums.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.kernel import address

if TYPE_CHECKING:
    from vqcodec.search import Floats, Stage

PANEL = 32  # as in search.c
UNREACHABLE = -1e30  # the logit of a code that only fills a panel


class _Stage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("codebook", "from_sum", "hidden", "logits", "distances")]


class _Quantiser(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("stages", "size", "dim", "width")), ("stage", ctypes.POINTER(_Stage))]


class CompiledSearch:
    """A level's quantiser as the kernel wants it. Immutable, so it may be shared between threads."""

    def __init__(self, kernel: ctypes.CDLL, stages: list[Stage]):
        self.kept: list[NDArray[Any]] = []  # what the kernel has addresses of
        self.stages = (_Stage * len(stages))(*(self._stage(stage) for stage in stages))
        size, dim = stages[0].codebook.shape
        self.net = _Quantiser(len(stages), size, dim, stages[0].hidden.shape[1], self.stages)
        self.search = kernel.vqcodec_search
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self.search.argtypes = [ctypes.POINTER(_Quantiser), pointer, pointer, whole, whole, pointer, whole]
        self.search.restype = whole

    def __call__(self, latents: Floats, context: Floats, paths: int, codes: NDArray[np.int32]) -> None:
        """Fills codes (S, N), each stage in one piece, of float32 latents and context. Raises `MemoryError`."""
        latents, context = np.ascontiguousarray(latents), np.ascontiguousarray(context)
        pitch = codes.strides[0] // codes.itemsize
        if not self.search(self.net, latents.ctypes.data, context.ctypes.data, len(latents), paths, codes.ctypes.data, pitch):
            raise MemoryError

    def _stage(self, stage: Stage) -> _Stage:
        distances = stage.costs[:-1]  # the cost of the path is added there
        return _Stage(
            address(stage.codebook, self.kept),
            None if stage.from_sum is None else self._panels(stage.from_sum, 0.0),
            self._panels(stage.hidden, 0.0),
            self._panels(stage.logits, UNREACHABLE),
            self._panels(distances, np.inf),
        )

    def _panels(self, matrix: Floats, bias: float) -> int:
        """(I + 1, O), biases last -> (O / PANEL, I + 1, PANEL), with zeros for what fills the last panel, and `bias` as its biases."""
        inputs, outputs = matrix.shape
        padded = np.zeros((inputs, -(-outputs // PANEL) * PANEL), np.float32)
        padded[:, :outputs], padded[-1, outputs:] = matrix, bias
        return address(padded.reshape(inputs, -1, PANEL).transpose(1, 0, 2), self.kept)
