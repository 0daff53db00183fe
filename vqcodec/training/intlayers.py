"""Integer layers and tables in torch, whose parameters are floats and whose every number is the integer that the runtime computes.

Shapes: activations `(..., C)`; over taps of a window `(B, h, w, C)`. Weights are rounded on the way (straight-through estimator, Bengio
et al. 2013), so training sees exactly the net that ships.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.layers import ACTIVATION_MAX

SPATIAL_SHIFT = 8  # weights of +-127 span +-0.5: ample beside the 0.04 deviation that 900 inputs want
MIX_SHIFT = 8
CENTRE = ((0, 0),)


class _Round(torch.autograd.Function):
    """floor(x + 1/2) with the gradient of the identity."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.floor(x + 0.5)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def rounded(x: Tensor) -> Tensor:
    """Integers with a straight-through gradient."""
    return _Round.apply(x)


class IntLayer(nn.Module):
    """An integer convolution over chosen taps of a 3x3 window; parameters are floats in units of the integers / 64."""

    UNIT = 64.0

    def __init__(
        self, inputs: int, outputs: int, shift: int, taps: tuple[tuple[int, int], ...] = CENTRE, extra: int = 0, gain: float = 1.0
    ):
        super().__init__()
        self.inputs, self.shift, self.taps = inputs, shift, taps
        fan_in = inputs * len(taps) + extra
        deviation = gain * math.sqrt(2 / fan_in) * 2**shift / self.UNIT
        self.weight = nn.Parameter(torch.randn(fan_in, outputs) * deviation)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def integer_weight(self) -> Tensor:
        """int8-valued weights (I, O), rows in the order of the runtime: taps, then what is concatenated."""
        return rounded((self.weight * self.UNIT).clamp(-ACTIVATION_MAX, ACTIVATION_MAX))

    def integer_bias(self) -> Tensor:
        """Integer-valued bias (O,), in units of the accumulator; like the weights' its own unit is 64 outputs."""
        return rounded(self.bias * (self.UNIT * 2.0**self.shift))

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """x (B, h, w, I), extra (B, h, w, E) joined at the position itself -> rounded (B, h, w, O), not clamped."""
        return rounded(self.unrounded(x, extra))

    def unrounded(self, x: Tensor, extra: Tensor | None = None, unit: float = 1.0) -> Tensor:
        """What `forward` rounds, times `unit`: exact for powers of two, since only the scale of every sum changes."""
        joined = self._gather(x)
        if extra is not None:
            joined.append(extra)
        inputs = torch.cat(joined, -1) if len(joined) > 1 else joined[0]
        scale = unit * 2.0**-self.shift
        return F.linear(inputs, (self.integer_weight() * scale).T, self.integer_bias() * scale)

    def _gather(self, x: Tensor) -> list[Tensor]:
        if self.taps == CENTRE:
            return [x]
        height, width = x.shape[1:3]
        below = 1 + max(row for row, _ in self.taps)  # a masked layer needs no row below the centre
        padded = F.pad(x, (0, 0, 1, 1, 1, below - 1))
        return [padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width] for row, column in self.taps]


class IntTable(nn.Module):
    """int8 vectors (..., C) with float parameters in units of the integers / 64."""

    UNIT = 64.0

    def __init__(self, *shape: int, deviation: float = 20.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) * deviation / self.UNIT)

    def integers(self) -> Tensor:
        return rounded((self.weight * self.UNIT).clamp(-ACTIVATION_MAX, ACTIVATION_MAX))

    def summed(self, codes: Tensor) -> Tensor:
        """Tables (S, K, C), codes (B, S, h, w) -> sum over stages (B, h, w, C), not clamped."""
        tables = self.integers()
        return sum((F.embedding(codes[:, s], tables[s]) for s in range(len(tables))), start=tables.new_zeros(()))


def clamped(x: Tensor, low: int = -ACTIVATION_MAX) -> Tensor:
    """Clamps integers to [low, 127], passing the gradient on inside; under autocast they are bfloat16, which holds integers up to 256."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return F.hardtanh(x, low, ACTIVATION_MAX)  # as clamp does, but its gradient takes one pass and not four


class IntBlock(nn.Module):
    """x + mix(relu(spatial(x))), clamped."""

    def __init__(self, width: int, taps: tuple[tuple[int, int], ...]):
        super().__init__()
        self.spatial = IntLayer(width, width, SPATIAL_SHIFT, taps)
        self.mix = IntLayer(width, width, MIX_SHIFT, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return clamped(x + self.mix(clamped(self.spatial(x), 0)))
