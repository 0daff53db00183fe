"""The VQ-VAE-2 transform with a rate (torch): images to codes and back, for all qualities in one net.

Shapes: images `(B, 3, H, W)` float in [0, 1], H and W multiples of 32; latents `(B, D, h, w)`;
codes of a level `(B, S, h, w)`; qualities `(B,)` in [0, 1].

Architecture after Razavi et al. 2019 (VQ-VAE-2, section 3.1: a hierarchy of code maps, coarse conditions fine),
with each finer level coding what the coarser decoder state leaves (as Lossy-VAE, Duan et al. 2023), three levels
at 1/32, 1/16 and 1/8. Only convolutions, leaky ReLU and pixel shuffles: no global operation, so tiles equal the
whole. A linear path joins pixels and bottom latents on both sides, as a lapped transform does: fine texture need not find its way
through the deep one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.config import ADAPTED_STRIDE, ALIGNMENT, DEFAULT_EFFORT, LAMBDA_UNIT, LEVEL_STRIDES, TransformConfig
from vqcodec.training.quantize import ResidualQuantizer
from vqcodec.transform import PATHS

SLOPE = 0.1  # of the leaky ReLU
TRAINING_PATHS = 2  # kept by the search for codes: most of the gain of more, at an eighth of a step's time
BLOCK = LEVEL_STRIDES[-1]  # pixels a side per bottom code


class Block(nn.Module):
    """x + conv1x1(leaky_relu(conv3x3(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        self.mix.weight.data.mul_(0.3)  # near the identity at the start: deep stacks train at once

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.leaky_relu(self.spatial(x), SLOPE))


class QualityScale(nn.Module):
    """Per-channel scale and shift, interpolated between anchor qualities: scale in log space, shift linearly."""

    def __init__(self, anchors: int, width: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(anchors, width))
        self.shift = nn.Parameter(torch.zeros(anchors, width))

    def forward(self, x: Tensor, anchor_weights: Tensor) -> Tensor:
        """x (B, C, h, w), anchor_weights (B, A)."""
        scale = (anchor_weights @ self.log_scale).exp()[:, :, None, None]
        return x * scale + (anchor_weights @ self.shift)[:, :, None, None]


def anchor_weights(quality: Tensor, anchors: int) -> Tensor:
    """Hat functions: (B,) in [0, 1] -> (B, A) with at most two non-zero weights that sum to 1."""
    positions = torch.arange(anchors, device=quality.device, dtype=quality.dtype)
    return (1 - (quality[:, None] * (anchors - 1) - positions).abs()).clamp(min=0)


def flat(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C), float32."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).float()


class Found(NamedTuple):
    """What the encoder gives a level: features (B, C, h, w), and at the bottom latents (B, D, h, w) straight from the pixels."""

    features: Tensor
    direct: Tensor | None = None


class Encoder(nn.Module):
    """Bottom-up: (B, 3, H, W) -> what each level's latents come from, coarse first."""

    def __init__(self, config: TransformConfig):
        super().__init__()
        widths, depths = config.widths, config.encoder_depths
        strides = (4, 2, 2, 2)
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList([nn.Conv2d(i, o, s, stride=s) for i, o, s in zip(inputs, widths, strides, strict=True)])
        self.blocks = nn.ModuleList([nn.Sequential(*[Block(w) for _ in range(d)]) for w, d in zip(widths, depths, strict=True)])
        self.scales = nn.ModuleList([QualityScale(config.anchors, w) for w in widths])
        self.direct = nn.Conv2d(3, config.levels[-1].dim, 3 * BLOCK, stride=BLOCK, padding=BLOCK, bias=False)

    def forward(self, images: Tensor, anchors: Tensor) -> list[Found]:
        """Returns the features at 1/32, 1/16 and 1/8, the last with the direct part."""
        pixels = x = images - 0.5
        features: list[Tensor] = []
        for down, scale, blocks in zip(self.down, self.scales, self.blocks, strict=True):
            x = blocks(scale(down(x), anchors))
            features.append(x)
        _, bottom, middle, top = features
        return [Found(top), Found(middle), Found(bottom, self.direct(pixels))]


class Decoder(nn.Module):
    """Top-down: the state at each level, and from the last one the image."""

    def __init__(self, config: TransformConfig):
        super().__init__()
        widths, depths = config.widths[::-1], config.decoder_depths[::-1]  # coarse first
        self.start = nn.Parameter(torch.zeros(1, widths[0], 1, 1))
        self.enter = nn.ModuleList([nn.Conv2d(lv.dim, w, 1) for lv, w in zip(config.levels, widths[:3], strict=True)])
        self.blocks = nn.ModuleList([nn.Sequential(*[Block(w) for _ in range(d)]) for w, d in zip(widths, depths, strict=True)])
        self.up = nn.ModuleList([nn.Conv2d(i, 4 * o, 1) for i, o in itertools.pairwise(widths)])
        self.scales = nn.ModuleList([QualityScale(config.anchors, w) for w in widths])
        self.out = nn.Conv2d(widths[3], 3 * ADAPTED_STRIDE**2, 3, padding=1)
        if config.adaptations:
            self.adapt = nn.Conv2d(widths[3], config.adaptations * self.out.out_channels, 1)  # the basis: its outputs times coordinates
            self.adapt.weight.data.zero_()
            self.adapt.bias.data.zero_()
        self.direct = nn.Conv2d(config.levels[-1].dim, 3 * BLOCK**2, 3, padding=1, bias=False)

    def refine(self, level: int, state: Tensor, anchors: Tensor) -> Tensor:
        """Runs a level's blocks and goes up to the next finer state."""
        x = self.blocks[level](self.scales[level](state, anchors))
        return F.pixel_shuffle(self.up[level](x), 2)

    def features(self, state: Tensor, anchors: Tensor) -> Tensor:
        """State at 1/4 -> what the last layer takes (B, C, h, w)."""
        return self.blocks[3](self.scales[3](state, anchors))

    def finish(self, features: Tensor, latents: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """What `features` gave and the bottom latents -> image (B, 3, H, W), unclamped.

        `coordinates` (K, R, C) adapt the last layer in each block of 32 pixels a side; then there is one image.
        """
        x = self.out(features)
        if coordinates is not None:
            x = x + self.change(features, coordinates)
        return (F.pixel_shuffle(x, ADAPTED_STRIDE) + F.pixel_shuffle(self.direct(latents), BLOCK)).float() + 0.5

    def change(self, features: Tensor, coordinates: Tensor) -> Tensor:
        """What coordinates (K, R, C) add to the last layer of these features (1, F, 8 R, 8 C)."""
        weight, bias = self._changes(coordinates)
        size = coordinates.shape[1:]
        return _joined(weight @ _in_blocks(features, size) + bias[:, :, None], size)

    def change_back(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """The gradient by these features, from that by what `change` adds."""
        size = coordinates.shape[1:]
        return _joined(self._changes(coordinates)[0].transpose(1, 2) @ _in_blocks(x, size), size)

    def _changes(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """What coordinates (K, R, C) add to the last layer's weights and biases in each block, (R * C, E, F) and (R * C, E)."""
        count, rows, columns = coordinates.shape
        each = coordinates.permute(1, 2, 0).reshape(-1, count)
        weight, bias = (each @ basis.view(count, -1) for basis in (self.adapt.weight, self.adapt.bias))
        return weight.view(rows * columns, -1, self.out.in_channels), bias


def _in_blocks(x: Tensor, size: Sequence[int]) -> Tensor:
    """(1, F, 8 R, 8 C) -> (R * C, F, 64), for `size` (R, C): blocks of 32 pixels a side."""
    (rows, columns), side = size, ALIGNMENT // ADAPTED_STRIDE
    return x.reshape(-1, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(rows * columns, -1, side**2)


def _joined(blocks: Tensor, size: Sequence[int]) -> Tensor:
    """The opposite of `_in_blocks`."""
    (rows, columns), side = size, ALIGNMENT // ADAPTED_STRIDE
    return blocks.view(rows, columns, -1, side, side).permute(2, 0, 3, 1, 4).reshape(1, -1, rows * side, columns * side)


class Pass(NamedTuple):
    """What one training pass gives: images, and per level bits and squared latent error, each (B,) per pixel."""

    images: Tensor
    bits: list[Tensor]
    distance: list[Tensor]
    codes: list[Tensor]


class VQVAE(nn.Module):
    """The whole transform. `forward` is the training pass; `before_search`, `refined` and `decode` are what gets exported.

    A `plain` one has one rate, whatever the quality, and takes the nearest codes, whatever their rate.
    """

    def __init__(self, config: TransformConfig, plain: bool = False):
        super().__init__()
        self.config, self.plain = config, plain
        widths = config.widths[:0:-1]  # at 1/32, 1/16, 1/8
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.posterior = nn.ModuleList([nn.Conv2d(2 * w, lv.dim, 1) for lv, w in zip(config.levels, widths, strict=True)])
        for conv in self.posterior:  # latents must stand out of the warm-up's noise from the first step
            conv.weight.data.mul_(8)
        self.context = nn.ModuleList([QualityScale(config.anchors, w) for w in widths])
        self.quantizers = nn.ModuleList([ResidualQuantizer(lv, w, plain) for lv, w in zip(config.levels, widths, strict=True)])

    def lagrangian(self, quality: Tensor) -> Tensor:
        """lambda of a quality: (B,) -> (B,)."""
        quality = self._held(quality)
        low, high = self.config.lambda_min, self.config.lambda_max
        return low * (high / low) ** quality

    def gain(self, quality: Tensor) -> Tensor:
        """Scale of the latents before the quantiser, (B, 1, 1, 1): distances there are in bits at any quality."""
        return (self.lagrangian(quality) / LAMBDA_UNIT).sqrt()[:, None, None, None]

    def _held(self, quality: Tensor) -> Tensor:
        """The quality that counts: a plain transform knows one alone."""
        return torch.full_like(quality, 0.5) if self.plain else quality

    def anchors(self, quality: Tensor) -> Tensor:
        """Weights of the anchor qualities: (B,) -> (B, A)."""
        return anchor_weights(self._held(quality), self.config.anchors)

    def _latents(self, level: int, found: Found, state: Tensor, gain: Tensor) -> Tensor:
        """The latents (B, D, h, w) of a level, from what the encoder `found` for it and the decoder's state."""
        latents = self.posterior[level](torch.cat([found.features, state], 1))
        if found.direct is not None:
            latents = latents + found.direct
        return latents.float() * gain

    def _zeros(self, level: int, features: Tensor) -> Tensor:
        """The latents of a level that is left out or has no stages."""
        return features.new_zeros(len(features), self.config.levels[level].dim, *features.shape[2:])

    def forward(self, images: Tensor, quality: Tensor, rate_weight: float | Tensor, noisy: bool = False, levels: int = 3) -> Pass:
        """The training pass, of the `levels` coarsest levels alone (the others count as zero latents).

        With `noisy`, additive noise stands in for the quantisers (the warm-up).
        """
        anchors, gain = self.anchors(quality), self.gain(quality)
        found = self.encoder(images, anchors)
        batch, pixels = images.shape[0], images.shape[2] * images.shape[3]
        result = Pass(images, [], [], [])
        paths = TRAINING_PATHS if self.training else PATHS[DEFAULT_EFFORT]
        state = latents = self.decoder.start.expand_as(found[0].features)
        for level, quantizer in enumerate(self.quantizers):
            if level >= levels or not quantizer.config.stages:
                latents = self._zeros(level, found[level].features)
                result.bits.append(images.new_zeros(batch))
                result.distance.append(images.new_zeros(batch))
            else:
                latents = self._latents(level, found[level], state, gain)
                shape = (batch, *latents.shape[2:], latents.shape[1])
                if noisy:
                    values, bits = quantizer.noisy(flat(latents))
                    distance = torch.zeros_like(bits)
                else:
                    context = flat(self.context[level](state, anchors))
                    values, codes, bits, distance = quantizer(flat(latents), context, rate_weight, paths)
                    result.codes.append(codes)
                result.bits.append(bits.view(batch, -1).sum(1) / pixels)
                result.distance.append(distance.view(batch, -1).sum(1) / pixels)
                latents = values.view(shape).permute(0, 3, 1, 2) / gain
            state = self.decoder.refine(level, state + self.decoder.enter[level](latents), anchors)
        return result._replace(images=self.decoder.finish(self.decoder.features(state, anchors), latents).float())

    def latents_for_start(self, images: Tensor, quality: Tensor, kept: Sequence[int] = (0, 0, 0)) -> list[Tensor]:
        """Latents (N, D) of each level for the k-means start: as they are, or what its `kept` stages leave where all are used."""
        anchors, gain = self.anchors(quality), self.gain(quality)
        found = self.encoder(images, anchors)
        state = self.decoder.start.expand_as(found[0].features)
        for_start: list[Tensor] = []
        for level, quantizer in enumerate(self.quantizers):
            latents = self._latents(level, found[level], state, gain)
            values, start = latents * (quantizer.config.stages > 0), flat(latents)
            if kept[level]:
                taken = quantizer(start, flat(self.context[level](state, anchors)), 1.0)
                values = taken.latents.view(len(images), *latents.shape[2:], -1).permute(0, 3, 1, 2)
                all_used = taken.codes[:, : kept[level]].all(1)
                start = (start - taken.latents)[all_used if all_used.any() else slice(None)]
            for_start.append(start)
            state = self.decoder.refine(level, state + self.decoder.enter[level](values / gain), anchors)
        return for_start

    def before_search(self, level: int, found: Found, state: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """A level's latents (B, D, h, w) and context (B, C, h, w), from what the encoder found for it and the decoder's state."""
        return self._latents(level, found, state, self.gain(quality)), self.context[level](state, self.anchors(quality))

    def refined(self, level: int, codes: Tensor, state: Tensor, quality: Tensor) -> Tensor:
        """The decoder's state once a level's codes (B, S, h, w) are known."""
        entered = self.decoder.enter[level](self.looked_up(level, codes, self.gain(quality)))
        return self.decoder.refine(level, state + entered, self.anchors(quality))

    def encode(self, images: Tensor, quality: Tensor, paths: int) -> list[Tensor]:
        """(B, 3, H, W), (B,) -> codes of the three levels, each (B, S, h, w), from a search that keeps `paths` (quantize.py)."""
        self.eval()
        found = self.encoder(images, self.anchors(quality))
        state = self.decoder.start.expand_as(found[0].features)
        codes: list[Tensor] = []
        for level, quantizer in enumerate(self.quantizers):
            latents, context = self.before_search(level, found[level], state, quality)
            height, width = latents.shape[2:]
            if quantizer.config.stages:
                result = quantizer(flat(latents), flat(context), 0.0 if self.plain else 1.0, paths)
                codes.append(result.codes.view(-1, height, width, result.codes.shape[1]).permute(0, 3, 1, 2))
            else:
                codes.append(torch.zeros(len(images), 0, height, width, dtype=torch.long, device=images.device))
            if level < 2:
                state = self.refined(level, codes[-1], state, quality)
        return codes

    def decode(self, codes: list[Tensor], quality: Tensor, keep: Tensor) -> Tensor:
        """Codes, (B,), keep (3,) of 0 or 1 per level -> images (B, 3, H, W); a dropped level counts as zero latents."""
        return self.decoder.finish(*self.features(codes, quality, keep))

    def features(self, codes: list[Tensor], quality: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """As `decode`, but for the last layer: what that takes, (B, C, h, w) and (B, D, h', w')."""
        anchors, gain = self.anchors(quality), self.gain(quality)
        batch, _, height, width = codes[0].shape
        state = self.decoder.start.expand(batch, -1, height, width)
        latents = state
        for level in range(3):
            latents = self.looked_up(level, codes[level], gain) * keep[level]
            state = self.decoder.refine(level, state + self.decoder.enter[level](latents), anchors)
        return self.decoder.features(state, anchors), latents

    def looked_up(self, level: int, codes: Tensor, gain: Tensor) -> Tensor:
        """Codes (B, S, h, w) -> latents (B, D, h, w)."""
        codebooks = self.quantizers[level].codebooks
        if not len(codebooks):
            return codebooks.new_zeros(len(codes), codebooks.shape[2], *codes.shape[2:])
        latents = sum((F.embedding(codes[:, s], codebooks[s]) for s in range(len(codebooks))), start=codebooks.new_zeros(()))
        return latents.permute(0, 3, 1, 2) / gain
