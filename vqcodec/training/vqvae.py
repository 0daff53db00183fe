"""The VQ-VAE-2 transform with a rate (torch): images to codes and back, for all qualities in one net.

Shapes: images `(B, 3, H, W)` float in [0, 1], H and W multiples of 32; latents `(B, D, h, w)`;
codes of a level `(B, S, h, w)`; qualities `(B,)` in [0, 1].

Architecture after Razavi et al. 2019 (VQ-VAE-2, section 3.1: a hierarchy of code maps, coarse conditions fine),
with each finer level coding what the coarser decoder state leaves (as Lossy-VAE, Duan et al. 2023), three levels
at 1/32, 1/16 and 1/8. Only convolutions, leaky ReLU and pixel shuffles: no global operation, so tiles equal the
whole.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.config import DEFAULT_EFFORT, TransformConfig
from vqcodec.training.quantize import ResidualQuantizer
from vqcodec.transform import PATHS

SLOPE = 0.1  # of the leaky ReLU
TRAINING_PATHS = 2  # kept by the search for codes: most of the gain of more, at an eighth of a step's time
LAMBDA_UNIT = 100.0  # the Lagrangian at which latents have gain 1


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


class Encoder(nn.Module):
    """Bottom-up: (B, 3, H, W) -> features at 1/8, 1/16 and 1/32."""

    def __init__(self, config: TransformConfig):
        super().__init__()
        widths, depths = config.widths, config.encoder_depths
        strides = (4, 2, 2, 2)
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList([nn.Conv2d(i, o, s, stride=s) for i, o, s in zip(inputs, widths, strides, strict=True)])
        self.blocks = nn.ModuleList([nn.Sequential(*[Block(w) for _ in range(d)]) for w, d in zip(widths, depths, strict=True)])
        self.scales = nn.ModuleList([QualityScale(config.anchors, w) for w in widths])

    def forward(self, images: Tensor, anchors: Tensor) -> list[Tensor]:
        """Returns the features at 1/32, 1/16, 1/8 (coarse first)."""
        x = images - 0.5
        features: list[Tensor] = []
        for down, scale, blocks in zip(self.down, self.scales, self.blocks, strict=True):
            x = blocks(scale(down(x), anchors))
            features.append(x)
        return features[:0:-1]


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
        self.out = nn.Conv2d(widths[3], 48, 3, padding=1)

    def refine(self, level: int, state: Tensor, anchors: Tensor) -> Tensor:
        """Runs a level's blocks and goes up to the next finer state."""
        x = self.blocks[level](self.scales[level](state, anchors))
        return F.pixel_shuffle(self.up[level](x), 2)

    def finish(self, state: Tensor, anchors: Tensor) -> Tensor:
        """State at 1/4 -> image (B, 3, H, W), unclamped."""
        x = self.blocks[3](self.scales[3](state, anchors))
        return F.pixel_shuffle(self.out(x), 4).float() + 0.5


class Pass(NamedTuple):
    """What one training pass gives: images, and per level bits and squared latent error, each (B,) per pixel."""

    images: Tensor
    bits: list[Tensor]
    distance: list[Tensor]
    codes: list[Tensor]


class VQVAE(nn.Module):
    """The whole transform. `forward` is the training pass; `encode` and `decode` are what gets exported.

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

    def _anchors(self, quality: Tensor) -> Tensor:
        return anchor_weights(self._held(quality), self.config.anchors)

    def _latents(self, level: int, features: Tensor, state: Tensor, gain: Tensor) -> Tensor:
        return self.posterior[level](torch.cat([features, state], 1)).float() * gain

    def forward(self, images: Tensor, quality: Tensor, rate_weight: float | Tensor, noisy: bool = False, levels: int = 3) -> Pass:
        """The training pass, of the `levels` coarsest levels alone (the others count as zero latents).

        With `noisy`, additive noise stands in for the quantisers (the warm-up).
        """
        anchors, gain = self._anchors(quality), self.gain(quality)
        features = self.encoder(images, anchors)
        batch, pixels = images.shape[0], images.shape[2] * images.shape[3]
        result = Pass(images, [], [], [])
        paths = TRAINING_PATHS if self.training else PATHS[DEFAULT_EFFORT]
        state = self.decoder.start.expand_as(features[0])
        for level, quantizer in enumerate(self.quantizers):
            if level >= levels or not quantizer.config.stages:
                state = self.decoder.refine(level, state + self.decoder.enter[level].bias[:, None, None], anchors)
                result.bits.append(images.new_zeros(batch))
                result.distance.append(images.new_zeros(batch))
                continue
            latents = self._latents(level, features[level], state, gain)
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
        return result._replace(images=self.decoder.finish(state, anchors).float())

    def latents_for_start(self, images: Tensor, quality: Tensor) -> list[Tensor]:
        """Latents (N, D) of each level where nothing is quantised, for the k-means start."""
        anchors, gain = self._anchors(quality), self.gain(quality)
        features = self.encoder(images, anchors)
        state = self.decoder.start.expand_as(features[0])
        found: list[Tensor] = []
        for level in range(3):
            latents = self._latents(level, features[level], state, gain)
            found.append(flat(latents))
            entered = latents / gain * (self.quantizers[level].config.stages > 0)
            state = self.decoder.refine(level, state + self.decoder.enter[level](entered), anchors)
        return found

    def encode(self, images: Tensor, quality: Tensor, paths: int) -> list[Tensor]:
        """(B, 3, H, W), (B,) -> codes of the three levels, each (B, S, h, w), from a search that keeps `paths` (quantize.py)."""
        self.eval()
        anchors, gain = self._anchors(quality), self.gain(quality)
        features = self.encoder(images, anchors)
        state = self.decoder.start.expand_as(features[0])
        found: list[Tensor] = []
        for level, quantizer in enumerate(self.quantizers):
            latents = self._latents(level, features[level], state, gain)
            if not quantizer.config.stages:
                found.append(torch.zeros(len(images), 0, *latents.shape[2:], dtype=torch.long, device=images.device))
                state = self._add(level, found[-1], state, gain, anchors)
                continue
            result = quantizer(flat(latents), flat(self.context[level](state, anchors)), 0.0 if self.plain else 1.0, paths)
            height, width = latents.shape[2:]
            found.append(result.codes.view(-1, height, width, result.codes.shape[1]).permute(0, 3, 1, 2))
            state = self._add(level, found[-1], state, gain, anchors)
        return found

    def decode(self, codes: list[Tensor], quality: Tensor, keep: Tensor) -> Tensor:
        """Codes, (B,), keep (3,) of 0 or 1 per level -> images (B, 3, H, W); a dropped level counts as zero latents."""
        anchors, gain = self._anchors(quality), self.gain(quality)
        batch, _, height, width = codes[0].shape
        state = self.decoder.start.expand(batch, -1, height, width)
        for level in range(3):
            state = self._add(level, codes[level], state, gain, anchors, keep[level])
        return self.decoder.finish(state, anchors)

    def _add(self, level: int, codes: Tensor, state: Tensor, gain: Tensor, anchors: Tensor, keep: Tensor | None = None) -> Tensor:
        codebooks = self.quantizers[level].codebooks
        if not len(codebooks):
            return self.decoder.refine(level, state + self.decoder.enter[level].bias[:, None, None], anchors)
        latents = sum((F.embedding(codes[:, s], codebooks[s]) for s in range(len(codebooks))), start=codebooks.new_zeros(()))
        latents = latents.permute(0, 3, 1, 2) / gain
        if keep is not None:
            latents = latents * keep
        return self.decoder.refine(level, state + self.decoder.enter[level](latents), anchors)
