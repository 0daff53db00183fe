"""Integer matrix products that are exact in float32, and the checked reading of their tensors.

Shapes: inputs `(n, I)`, weights `(I, O)`. As long as `127 * sum |w| + |b| + rounding <= 2 ** 24` holds for each output
channel, every partial sum is an integer that float32 holds: the reader refuses a layer that breaks this bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.errors import InvalidModelError

Array = NDArray[Any]
Product = Callable[[Array, Array], Array]

ACTIVATION_MAX = 127
EXACT_LIMIT = 2**24  # float32 holds every integer up to here
MAX_SHIFT = 20


@dataclass(frozen=True)
class Layer:
    """One integer matrix product: integers (I, O) int8, offsets (O,) int64 with the rounding half added, and the shift of the sums.

    `weight` and `bias` are the same as float32 in units of 2 ** shift, made when they are first used. So sums come out divided by
    2 ** shift, as exact as before: a power of two changes the exponent alone.
    """

    integers: Array
    offsets: Array
    shift: int

    @cached_property
    def weight(self) -> Array:
        """(I, O)"""
        return self.integers * np.float32(2.0**-self.shift)

    @cached_property
    def bias(self) -> Array:
        """(O,)"""
        return self.offsets.astype(np.float32) * np.float32(2.0**-self.shift)

    def __call__(self, inputs: Array, low: int, product: Product) -> Array:
        """(n, I) -> (n, O), rounded and clamped to [low, 127]."""
        return clamped(self.raw(inputs, product), low)

    def raw(self, inputs: Array, product: Product) -> Array:
        """(n, I) -> (n, O), rounded, not clamped: the logits."""
        acc = product(inputs, self.weight)
        acc += self.bias
        return np.floor(acc, out=acc)


def clamped(x: Array, low: int = -ACTIVATION_MAX) -> Array:
    """Clamps to [low, 127] in place; the function np.clip takes longer than the work on arrays of this size."""
    return x.clip(low, ACTIVATION_MAX, out=x)


def blas_product(inputs: Array, weight: Array) -> Array:
    """The product that runs by default: float32 in whatever BLAS numpy has."""
    return inputs @ weight


def float64_product(inputs: Array, weight: Array) -> Array:
    """The same by way of float64."""
    return (inputs.astype(np.float64) @ weight.astype(np.float64)).astype(np.float32)


def int64_product(inputs: Array, weight: Array) -> Array:
    """The same by integer arithmetic, without a BLAS."""
    units = np.float64(2**MAX_SHIFT)
    sums = inputs.astype(np.int64) @ (weight * units).astype(np.int64)
    return (sums / units).astype(np.float32)


class Reader:
    """Takes tensors by name, checks type and shape, and at the end that none is left over."""

    def __init__(self, tensors: Mapping[str, Array]):
        self.tensors = dict(tensors)

    def take(self, name: str, dtype: type, shape: tuple[int, ...]) -> Array:
        """A tensor that must have this type and shape; raises `InvalidModelError`, as all of these do."""
        if name not in self.tensors:
            raise InvalidModelError(f"the prior lacks the tensor {name}; export the model again")
        tensor = self.tensors.pop(name)
        if tensor.dtype != dtype or tensor.shape != shape:
            raise InvalidModelError(f"the prior's {name} is {tensor.dtype} {tensor.shape} instead of {np.dtype(dtype)} {shape}")
        if dtype is np.int8 and tensor.size and int(tensor.min()) < -ACTIVATION_MAX:
            raise InvalidModelError(f"the prior's {name} holds -128; integers must lie in -127..127")
        return tensor

    def has(self, prefix: str) -> bool:
        """Whether any tensor that is left has a name that begins so."""
        return any(name.startswith(prefix) for name in self.tensors)

    def layer(self, name: str, inputs: int, outputs: int) -> Layer:
        """A layer whose every channel keeps the exactness bound."""
        weight = self.take(f"{name}.weight", np.int8, (inputs, outputs))
        bias = self.take(f"{name}.bias", np.int32, (outputs,)).astype(np.int64)
        shift = int(self.take(f"{name}.shift", np.int32, ()))
        if not 0 <= shift <= MAX_SHIFT:
            raise InvalidModelError(f"the prior's {name}.shift is {shift}, outside 0..{MAX_SHIFT}")
        half = (1 << shift) >> 1
        bound = ACTIVATION_MAX * np.abs(weight).sum(0, dtype=np.int64) + np.abs(bias) + half
        if int(bound.max()) > EXACT_LIMIT:
            channel = int(bound.argmax())
            raise InvalidModelError(
                f"the prior's {name} is not exact: channel {channel} can reach {int(bound[channel])}, above 2^24; export the model again"
            )
        return Layer(weight, bias + half, shift)

    def finish(self) -> None:
        """Refuses tensors that nobody took."""
        if self.tensors:
            raise InvalidModelError(f"the prior has unknown tensors: {sorted(self.tensors)[:3]}")
