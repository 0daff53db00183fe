"""The torch twin of the integer prior (`vqcodec.prior`): the same network, trained with the integers in the loop.

Shapes: codes of a level `(B, S, h, w)`, activations `(B, C, h, w)`, logits `(B, S, K, h, w)`.

Every activation here *is* the integer that the runtime computes, held in float32; weights are rounded on the way
(straight-through estimator, Bengio et al. 2013), so training sees exactly the net that ships. Whole maps go through
masked convolutions; the runtime's wavefronts compute the same integers position by position.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.config import LEVELS, QUALITY_STEPS, ModelConfig
from vqcodec.entropy import LOGIT_STEPS
from vqcodec.prior import ACTIVATION_MAX

SPATIAL_SHIFT = 8  # weights of +-127 span +-0.5: ample beside the 0.04 deviation that 900 inputs want
MIX_SHIFT = 8
LOGIT_SHIFT = 7  # one hidden channel can move a logit by up to 126 units of 1/16 bit
MASK_TAPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1))  # (row, column); the order of the runtime's taps


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
    return _Round.apply(x)  # type: ignore[no-any-return]


class IntLayer(nn.Module):
    """An integer convolution over chosen taps of a 3x3 window; parameters are floats in units of the integers / 64."""

    UNIT = 64.0

    def __init__(
        self, inputs: int, outputs: int, shift: int, taps: tuple[tuple[int, int], ...] = ((0, 0),), extra: int = 0, gain: float = 1.0
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
        """Integer-valued bias (O,), in units of the accumulator."""
        return rounded(self.bias * 2.0**self.shift)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """x (B, I, h, w), extra (B, E, h, w) joined at the position itself -> rounded (B, O, h, w), not clamped."""
        weight, outputs = self.integer_weight(), self.weight.shape[1]
        split = self.inputs * len(self.taps)
        if len(self.taps) == 1:
            acc = F.conv2d(x, weight[:split].T[:, :, None, None])
        else:
            rows = 2 + max(row for row, _ in self.taps)  # a masked kernel needs no row below the centre
            kernel = weight.new_zeros(outputs, self.inputs, 3 * rows)
            cells = [3 * (row + 1) + column + 1 for row, column in self.taps]
            kernel[:, :, cells] = weight[:split].view(len(self.taps), self.inputs, outputs).permute(2, 1, 0)
            acc = F.conv2d(F.pad(x, (1, 1, 1, rows - 2)), kernel.view(outputs, self.inputs, rows, 3))
        if extra is not None:
            acc = acc + F.conv2d(extra, weight[split:].T[:, :, None, None])
        return rounded((acc + self.integer_bias()[:, None, None]) * 2.0**-self.shift)


class IntTable(nn.Module):
    """int8 vectors (..., C) with float parameters in units of the integers / 64."""

    UNIT = 64.0

    def __init__(self, *shape: int, deviation: float = 20.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) * deviation / self.UNIT)

    def integers(self) -> Tensor:
        return rounded((self.weight * self.UNIT).clamp(-ACTIVATION_MAX, ACTIVATION_MAX))

    def summed(self, codes: Tensor) -> Tensor:
        """Tables (S, K, C), codes (B, S, h, w) -> sum over stages (B, C, h, w), not clamped."""
        tables = self.integers()
        total = sum((tables[s][codes[:, s]] for s in range(len(tables))), start=tables.new_zeros(()))
        return total.permute(0, 3, 1, 2)


def clamped(x: Tensor, low: int = -ACTIVATION_MAX) -> Tensor:
    """Clamps to [low, 127], passing the gradient on inside."""
    return x.clamp(low, ACTIVATION_MAX)


class IntBlock(nn.Module):
    """x + mix(relu(spatial(x))), clamped."""

    def __init__(self, width: int, taps: tuple[tuple[int, int], ...]):
        super().__init__()
        self.spatial = IntLayer(width, width, SPATIAL_SHIFT, taps)
        self.mix = IntLayer(width, width, MIX_SHIFT, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return clamped(x + self.mix(clamped(self.spatial(x), 0)))


class LevelNet(nn.Module):
    """One level: context of the coarser codes, masked trunk, a head per stage."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        level, width = config.transform.levels[index], config.prior.channels
        stages, size = level.stages, level.codebook_size
        self.level = level
        self.quality = IntTable(config.prior.quality_anchors, width)
        if index:
            coarser = config.transform.levels[index - 1]
            every = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
            self.context_embed = IntTable(coarser.stages, coarser.codebook_size, width)
            self.context_blocks = nn.ModuleList([IntBlock(width, every) for _ in range(config.prior.context_blocks[index - 1])])
            self.up = IntLayer(width, 4 * width, MIX_SHIFT, gain=0.7)
        self.embed = IntTable(stages, size, width)
        self.first = IntLayer(width, width, SPATIAL_SHIFT, MASK_TAPS, extra=width)
        self.trunk = nn.ModuleList([IntBlock(width, (*MASK_TAPS, (0, 0))) for _ in range(config.prior.trunk_blocks[index])])
        self.hidden = nn.ModuleList([IntLayer(width, width, MIX_SHIFT, extra=width) for _ in range(stages)])
        self.logits = nn.ModuleList([IntLayer(width, size, LOGIT_SHIFT, gain=0.5) for _ in range(stages)])
        self.head_embed = nn.ModuleList([IntTable(size, width) for _ in range(stages - 1)])

    def quality_vector(self, quality: Tensor) -> Tensor:
        """Quality in hundredths, int (B,) -> (B, C, 1, 1), by the runtime's integer interpolation."""
        table = self.quality.integers()
        position = quality * (len(table) - 1)
        index = position // QUALITY_STEPS
        upper = ((position % QUALITY_STEPS * 128 + QUALITY_STEPS // 2) // QUALITY_STEPS)[:, None].float()
        following = table[(index + 1).clamp(max=len(table) - 1)]
        mixed = ((128 - upper) * table[index] + upper * following) / 128
        return rounded(mixed)[:, :, None, None]

    def context(self, quality: Tensor, coarser: Tensor | None, coarser_context: Tensor | None) -> Tensor:
        """(B, C, h, w) with the level's size, or (B, C, 1, 1) for the top level."""
        vector = self.quality_vector(quality)
        if coarser is None or coarser_context is None:
            return vector
        x = clamped(self.context_embed.summed(coarser) + coarser_context + vector)
        for block in self.context_blocks:
            x = block(x)
        up = clamped(self.up(x))
        batch, _, height, width = up.shape
        up = up.view(batch, 2, 2, -1, height, width).permute(0, 3, 4, 1, 5, 2)
        return up.reshape(batch, -1, 2 * height, 2 * width)

    def forward(self, codes: Tensor, context: Tensor) -> list[Tensor]:
        """Logits in units of 1/16 bit, a (B, K, h, w) per stage."""
        around = context.expand(-1, -1, *codes.shape[2:])
        x = clamped(self.first(clamped(self.embed.summed(codes)), around))
        for block in self.trunk:
            x = block(x)
        found: list[Tensor] = []
        for stage in range(self.level.stages):
            found.append(self.logits[stage](clamped(self.hidden[stage](x, around), 0)))
            if stage < self.level.stages - 1:
                x = clamped(x + self.head_embed[stage].integers()[codes[:, stage]].permute(0, 3, 1, 2))
        return found


class PixelCNN(nn.Module):
    """The prior of all three levels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList([LevelNet(config, index) for index in range(len(LEVELS))])

    def logits(self, codes: list[Tensor], quality: Tensor) -> list[list[Tensor]]:
        """Codes of the three levels (B, S, h, w), quality in hundredths int (B,) -> logits per level and stage."""
        found: list[list[Tensor]] = []
        context: Tensor | None = None
        for index, net in enumerate(self.levels):
            context = net.context(quality, codes[index - 1] if index else None, context)
            found.append(net(codes[index], context))
        return found

    def forward(self, codes: list[Tensor], quality: Tensor) -> list[Tensor]:
        """Bits of every code: per level (B, S, h, w)."""
        bits: list[Tensor] = []
        for level_codes, level_logits in zip(codes, self.logits(codes, quality), strict=True):
            stages = [
                F.cross_entropy(logits * (math.log(2) / LOGIT_STEPS), level_codes[:, stage], reduction="none") / math.log(2)
                for stage, logits in enumerate(level_logits)
            ]
            bits.append(torch.stack(stages, 1))
        return bits

    @torch.no_grad()
    def export(self) -> dict[str, NDArray[np.int8] | NDArray[np.int32]]:
        """The tensors of `prior.safetensors`, in the runtime's names and types."""
        tensors: dict[str, NDArray[np.int8] | NDArray[np.int32]] = {}
        for name, net in zip(LEVELS, self.levels, strict=True):
            tensors[f"{name}.quality"] = _int8(net.quality.integers())
            tensors[f"{name}.embed"] = _int8(net.embed.integers())
            if hasattr(net, "up"):
                tensors[f"{name}.context.embed"] = _int8(net.context_embed.integers())
                tensors |= _blocks(f"{name}.context", net.context_blocks) | _layer(f"{name}.context.up", net.up)
            tensors |= _layer(f"{name}.first", net.first) | _blocks(f"{name}.trunk", net.trunk)
            for stage, (hidden, logits) in enumerate(zip(net.hidden, net.logits, strict=True)):
                tensors |= _layer(f"{name}.head.{stage}.hidden", hidden) | _layer(f"{name}.head.{stage}.logits", logits)
            for stage, table in enumerate(net.head_embed):
                tensors[f"{name}.head.{stage}.embed"] = _int8(table.integers())
        return tensors


def _int8(x: Tensor) -> NDArray[np.int8]:
    return np.ascontiguousarray(x.cpu().numpy().astype(np.int8))


def _layer(name: str, layer: IntLayer) -> dict[str, NDArray[np.int8] | NDArray[np.int32]]:
    return {
        f"{name}.weight": _int8(layer.integer_weight()),
        f"{name}.bias": layer.integer_bias().cpu().numpy().astype(np.int32),
        f"{name}.shift": np.array(layer.shift, np.int32),
    }


def _blocks(name: str, blocks: nn.ModuleList) -> dict[str, NDArray[np.int8] | NDArray[np.int32]]:
    tensors: dict[str, NDArray[np.int8] | NDArray[np.int32]] = {}
    for index, block in enumerate(blocks):
        tensors |= _layer(f"{name}.{index}.spatial", block.spatial) | _layer(f"{name}.{index}.mix", block.mix)
    return tensors
