"""The torch twin of the integer prior (`vqcodec.prior`): the same network, trained with the integers in the loop.

Shapes: codes of a level `(B, S, h, w)`, activations `(B, h, w, C)`, logits `(M, K)` of those positions that have a symbol.

Every activation here *is* the integer that the runtime computes, held in float32 (intlayers.py). Whole maps go through
masked convolutions, written as products over gathered taps; the runtime's wavefronts compute the same integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.config import LEVELS, QUALITY_STEPS, ModelConfig
from vqcodec.entropy import LOGIT_STEPS
from vqcodec.layers import ACTIVATION_MAX
from vqcodec.training.intlayers import MIX_SHIFT, SPATIAL_SHIFT, IntBlock, IntLayer, IntTable, clamped, rounded
from vqcodec.training.quantize import filled

LOGIT_SHIFT = 7  # one hidden channel can move a logit by up to 126 units of 1/16 bit
NATS = math.log(2) / LOGIT_STEPS  # nats per unit of the runtime's integer logits
CACHED_ROWS = 256  # of logits, half a megabyte in float32
IMPOSSIBLE = -1e4  # nats: the logit of a code that cannot be
Tensors = dict[str, NDArray[np.int8] | NDArray[np.int32]]  # of `prior.safetensors`
MASK_TAPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1))  # (row, column); the order of the runtime's taps


class Symbols(NamedTuple):
    """Symbols of one kind: their places among all positions (M,), logits (M, K), and what they are (M,)."""

    here: Tensor
    logits: Tensor
    values: Tensor


class LevelNet(nn.Module):
    """One level: context of the coarser codes, masked trunk, a head for the lengths and one per stage."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        level, width = config.transform.levels[index], config.prior.channels
        stages, size, inner = level.stages, level.codebook_size, config.prior.hidden_channels
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
        self.hidden = nn.ModuleList([IntLayer(width, inner, MIX_SHIFT, extra=width) for _ in range(stages)])
        self.logits = nn.ModuleList([IntLayer(inner, size, LOGIT_SHIFT, gain=0.5) for _ in range(stages)])
        self.head_embed = nn.ModuleList([IntTable(size, width) for _ in range(stages - 1)])
        if stages:
            self.length_hidden = IntLayer(width, inner, MIX_SHIFT, extra=width)
            self.length_logits = IntLayer(inner, stages + 1, LOGIT_SHIFT, gain=0.5)
            self.length_embed = IntTable(stages + 1, width)

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

    def forward(self, codes: Tensor, context: Tensor) -> list[Symbols]:
        """The lengths of all positions and then each stage's codes; logits in `NATS`, integers but while training."""
        if not self.level.stages:
            return []
        around = context.expand(-1, *codes.shape[2:], -1)
        x = clamped(self.first(clamped(self.embed.summed(codes)), around))
        for block in self.trunk:
            x = block(x)
        x, around = x.flatten(0, 2), around.flatten(0, 2)
        symbols = codes.permute(1, 0, 2, 3).flatten(1)
        stages = torch.arange(1, len(symbols) + 1, device=codes.device)[:, None]
        lengths = (stages * (symbols != 0)).amax(0)
        here = torch.arange(len(x), device=x.device)
        found = [Symbols(here, self._logits(self.length_hidden, self.length_logits, x, around), lengths)]
        x = clamped(x + F.embedding(lengths, self.length_embed.integers()))
        count = len(here)
        for stage in range(len(symbols)):
            longer = (lengths[:count] > stage).nonzero()[:, 0]
            rows, count = filled(longer), len(longer)
            here, x, around, lengths = here[rows], x[rows], around[rows], lengths[rows]
            logits, chosen = self._logits(self.hidden[stage], self.logits[stage], x, around), symbols[stage, here]
            with torch.no_grad():  # nothing that is impossible has a gradient
                logits[:, 0].masked_fill_(lengths == stage + 1, IMPOSSIBLE)  # a last code that were 0 would not be the last
            found.append(Symbols(here[:count], logits[:count], chosen[:count]))
            if stage < len(symbols) - 1:
                x = clamped(x + F.embedding(chosen, self.head_embed[stage].integers()))
        return found

    def _logits(self, hidden: nn.Module, logits: IntLayer, x: Tensor, around: Tensor) -> Tensor:
        x = clamped(hidden(x, around), 0)
        # in training the rounding to 1/16 bit is skipped and the product gives nats at once: it is most of the work
        return logits.unrounded(x, unit=NATS) if self.training else NATS * logits(x)


class PixelCNN(nn.Module):
    """The prior of all three levels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList([LevelNet(config, index) for index in range(len(LEVELS))])

    def symbols(self, codes: list[Tensor], quality: Tensor) -> list[list[Symbols]]:
        """Codes of the three levels (B, S, h, w), quality in hundredths int (B,) -> per level the lengths, then the codes of each stage."""
        found: list[list[Symbols]] = []
        context: Tensor | None = None
        for index, net in enumerate(self.levels):
            context = net.context(quality, codes[index - 1] if index else None, context)
            found.append(net(codes[index], context))
        return found

    def forward(self, codes: list[Tensor], quality: Tensor) -> list[Tensor]:
        """Bits of every code and, after the last stage, of every length: per level (B, S + 1, h, w), 0 where there is no symbol.

        Of a level without stages (B, 0, h, w).
        """
        bits: list[Tensor] = []
        for level_codes, found in zip(codes, self.symbols(codes, quality), strict=True):
            batch, _, height, width = level_codes.shape
            maps = [_bits(symbols, batch * height * width).view(batch, height, width) for symbols in found[1:] + found[:1]]
            bits.append(torch.stack(maps, 1) if maps else torch.zeros(level_codes.shape, device=level_codes.device))
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
        """Starts from what `export` wrote, maybe of a prior with fewer blocks, stages or head channels or without lengths.

        Returns whether it fits; where it does not, nothing changes. What is new starts so that nothing else notices it, but for the
        lengths' own bits.
        """
        own = self.export()
        lacking = own.keys() - tensors.keys()
        if tensors.keys() - own.keys() or not all(_may_lack(name) for name in lacking):
            return False
        if not all(_holds(own[name], tensor, _may_grow(name, tensor)) for name, tensor in tensors.items()):
            return False
        for name, part in self.parts():
            stored = tensors.get(name if isinstance(part, IntTable) else f"{name}.weight")
            if isinstance(part, IntTable) or name.endswith((".mix", ".logits")):  # symbols that were not start alike
                part.weight.zero_()
            if stored is None:
                continue
            part.weight[tuple(slice(side) for side in stored.shape)] = torch.from_numpy(stored.astype(np.float32)) / part.UNIT
            if isinstance(part, IntLayer):
                bias = torch.from_numpy(tensors[f"{name}.bias"].astype(np.float32)) / (part.UNIT * 2.0**part.shift)
                part.bias[: len(bias)] = bias
                if name.endswith(".logits"):
                    part.bias[len(bias) :] = bias.min()  # lengths that were not
        return True


def _may_lack(name: str) -> bool:
    """Whether an older prior can do without this tensor: of a further block or stage, or of lengths."""
    needed = name.endswith("context.embed") or ".context.up." in name
    return not needed and any(kind in name for kind in (".length.", ".head.", ".trunk.", ".context."))


def _may_grow(name: str, tensor: NDArray[Any]) -> tuple[int, ...]:
    """Which of the tensor's axes count stages or head channels."""
    if name.endswith(".length.logits.weight"):
        return 0, 1
    if name.endswith(".hidden.weight"):
        return (1,)
    first = (".hidden.bias", ".logits.weight", ".length.logits.bias", ".length.embed")
    return (0,) if name.endswith(first) or (name.endswith(".embed") and tensor.ndim == 3) else ()


def _holds(own: NDArray[Any], stored: NDArray[Any], growing: tuple[int, ...]) -> bool:
    """Whether a stored tensor has the type and shape of our own, or is smaller along the axes `growing`."""
    if own.dtype != stored.dtype or own.ndim != stored.ndim:
        return False
    return all(a <= b if axis in growing else a == b for axis, (a, b) in enumerate(zip(stored.shape, own.shape, strict=True)))


def _bits(symbols: Symbols, positions: int) -> Tensor:
    """-log2 of the softmax of the logits at the symbols, at their places among all positions; 0 elsewhere."""
    bits = CrossEntropy.apply(symbols.logits, symbols.values) / math.log(2)
    return bits.new_zeros(positions).index_put((symbols.here,), bits)


class CrossEntropy(torch.autograd.Function):
    """Logits (M, K), values (M,) -> -ln of the softmax at the values, float32 (M,).

    Finds the gradient on the way, in the logits' own precision, and on a processor by a few rows at a time: what is computed for them
    in float32 then stays in its cache. PyTorch's own function goes through the memory of all logits again and again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        nats = torch.empty(len(logits), device=logits.device)
        rows = CACHED_ROWS if logits.device.type == "cpu" else max(len(logits), 1)
        for part, found, into, value in zip(*(x.split(rows) for x in (logits, nats, gradient, values[:, None])), strict=True):
            likely = part.float().log_softmax(1)
            found.copy_(-likely.gather(1, value)[:, 0])
            likely.exp_().scatter_add_(1, value, likely.new_full((), -1.0).expand_as(value))
            into.copy_(likely)
        ctx.save_for_backward(gradient)
        return nats

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None].to(gradient.dtype), None


def _int8(x: Tensor) -> NDArray[np.int8]:
    return np.ascontiguousarray(x.cpu().numpy().astype(np.int8))


def _runtime_name(name: str) -> str:
    """The name that a part of a `LevelNet` has in the file: heads are grouped by stage, and the context has its own prefix."""
    first, _, rest = name.partition(".")
    if first in ("hidden", "logits"):
        return f"head.{rest}.{first}"
    if first.startswith("length_"):
        return name.replace("_", ".", 1)
    return {"head_embed": f"head.{rest}.embed", "up": "context.up", "context_embed": "context.embed"}.get(
        first, name.replace("context_blocks", "context")
    )
