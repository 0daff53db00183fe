"""The torch twin of the integer prior (`vqcodec.prior`): the same network, trained with the integers in the loop.

Shapes: codes of a level `(B, S, h, w)`, activations `(B, h, w, C)`, logits `(B, h, w, K)` per stage.

Every activation here *is* the integer that the runtime computes, held in float32; weights are rounded on the way
(straight-through estimator, Bengio et al. 2013), so training sees exactly the net that ships. Whole maps go through
masked convolutions, written as products over gathered taps; the runtime's wavefronts compute the same integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.config import LEVELS, QUALITY_STEPS, ModelConfig
from vqcodec.entropy import LOGIT_STEPS
from vqcodec.layers import ACTIVATION_MAX

SPATIAL_SHIFT = 8  # weights of +-127 span +-0.5: ample beside the 0.04 deviation that 900 inputs want
MIX_SHIFT = 8
LOGIT_SHIFT = 7  # one hidden channel can move a logit by up to 126 units of 1/16 bit
NATS = math.log(2) / LOGIT_STEPS  # nats per unit of the runtime's integer logits
CENTRE = ((0, 0),)
Tensors = dict[str, NDArray[np.int8] | NDArray[np.int32]]  # of `prior.safetensors`
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
        return rounded(self.unrounded(x, extra).float())

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
        """Quality in hundredths, int (B,) -> (B, 1, 1, C), by the runtime's integer interpolation."""
        table = self.quality.integers()
        position = quality * (len(table) - 1)
        index = position // QUALITY_STEPS
        upper = ((position % QUALITY_STEPS * 128 + QUALITY_STEPS // 2) // QUALITY_STEPS)[:, None].float()
        following = table[(index + 1).clamp(max=len(table) - 1)]
        mixed = ((128 - upper) * table[index] + upper * following) / 128
        return rounded(mixed)[:, None, None]

    def context(self, quality: Tensor, coarser: Tensor | None, coarser_context: Tensor | None) -> Tensor:
        """(B, h, w, C) with the level's size, or (B, 1, 1, C) for the top level."""
        vector = self.quality_vector(quality)
        if coarser is None or coarser_context is None:
            return vector
        x = clamped(self.context_embed.summed(coarser) + coarser_context + vector).expand(-1, *coarser.shape[2:], -1)
        for block in self.context_blocks:
            x = block(x)
        up = clamped(self.up(x))
        batch, height, width, _ = up.shape
        up = up.view(batch, height, width, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return up.reshape(batch, 2 * height, 2 * width, -1)

    def forward(self, codes: Tensor, context: Tensor) -> list[Tensor]:
        """Logits in nats, a (B, h, w, K) per stage: `NATS` times the runtime's integers, except while training."""
        if not self.level.stages:
            return []
        around = context.expand(-1, *codes.shape[2:], -1)
        x = clamped(self.first(clamped(self.embed.summed(codes)), around))
        for block in self.trunk:
            x = block(x)
        found: list[Tensor] = []
        for stage in range(self.level.stages):
            hidden = clamped(self.hidden[stage](x, around), 0)
            logits = self.logits[stage]
            # in training the rounding to 1/16 bit is skipped and the product gives nats at once: it is most of the work
            found.append(logits.unrounded(hidden, unit=NATS) if self.training else NATS * logits(hidden))
            if stage < self.level.stages - 1:
                x = clamped(x + F.embedding(codes[:, stage], self.head_embed[stage].integers()))
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
            stages = [_bits(logits, level_codes[:, stage]) for stage, logits in enumerate(level_logits)]
            bits.append(torch.stack(stages, 1) if stages else torch.zeros(level_codes.shape, device=level_codes.device))
        return bits

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Clamps weights to what int8 holds: beyond it their gradient would be zero for ever."""
        for module in self.modules():
            if isinstance(module, IntLayer | IntTable):
                limit = ACTIVATION_MAX / module.UNIT
                module.weight.clamp_(-limit, limit)

    def parts(self) -> Iterator[tuple[str, IntLayer | IntTable]]:
        """All layers and tables under the names that they have in `prior.safetensors`."""
        for level, net in zip(LEVELS, self.levels, strict=True):
            for name, part in net.named_modules():
                if isinstance(part, IntLayer | IntTable):
                    yield f"{level}.{_runtime_name(name)}", part

    @torch.no_grad()
    def export(self) -> Tensors:
        """The tensors of `prior.safetensors`, in the runtime's names and types."""
        tensors: Tensors = {}
        for name, part in self.parts():
            if isinstance(part, IntTable):
                tensors[name] = _int8(part.integers())
            else:
                tensors[f"{name}.weight"] = _int8(part.integer_weight())
                tensors[f"{name}.bias"] = part.integer_bias().cpu().numpy().astype(np.int32)
                tensors[f"{name}.shift"] = np.array(part.shift, np.int32)
        return tensors

    @torch.no_grad()
    def take(self, tensors: Tensors) -> bool:
        """Starts from what `export` wrote; returns whether it fits. Where it does not, nothing changes."""
        if {name: (t.shape, t.dtype) for name, t in tensors.items()} != {name: (t.shape, t.dtype) for name, t in self.export().items()}:
            return False
        for name, part in self.parts():
            table = isinstance(part, IntTable)
            part.weight.copy_(torch.from_numpy(tensors[name if table else f"{name}.weight"].astype(np.float32)) / part.UNIT)
            if isinstance(part, IntLayer):
                part.bias.copy_(torch.from_numpy(tensors[f"{name}.bias"].astype(np.float32)) / (part.UNIT * 2.0**part.shift))
        return True


def _bits(logits: Tensor, codes: Tensor) -> Tensor:
    """-log2 of the softmax of logits (B, h, w, K) at codes (B, h, w)."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), codes.reshape(-1), reduction="none").view(codes.shape) / math.log(2)


def _int8(x: Tensor) -> NDArray[np.int8]:
    return np.ascontiguousarray(x.cpu().numpy().astype(np.int8))


def _runtime_name(name: str) -> str:
    """The name that a part of a `LevelNet` has in the file: heads are grouped by stage, and the context has its own prefix."""
    first, _, rest = name.partition(".")
    if first in ("hidden", "logits"):
        return f"head.{rest}.{first}"
    return {"head_embed": f"head.{rest}.embed", "up": "context.up", "context_embed": "context.embed"}.get(
        first, name.replace("context_blocks", "context")
    )
