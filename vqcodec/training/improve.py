"""Where the middle and the bottom latents should go, written out so that it can be exported: the gradient of the picture's error.

The search takes a squared distance of latents for the picture's error. How near that comes depends on the place, and the decoder knows:
at the values e of the codes chosen, with g the gradient of lambda times the squared error, `e - g / 2` are the latents whose squared
distance has that very gradient. Encoding then goes a part of the way from its latents to those and searches again (after Campos et al.
2019, "Content adaptive optimization for neural image compression", and Yang, Bamler and Mandt 2020, "Improving inference for neural
image compression", who descend the same gradient with scalar quantisers).

Shapes as in vqvae.py. torch's own differentiation gives the same (tests), but does not export.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.training.vqvae import BLOCK, SLOPE, VQVAE, Block, QualityScale

MIDDLE, BOTTOM = 1, 2  # the levels' indices


def wanted_latents(
    transform: VQVAE, images: Tensor, codes: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], quality: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the middle latents should go and where the bottom ones, (B, D, h, w), each as long as all other codes stay.

    Takes images (B, 3, H, W), the middle and the bottom codes (B, S, h, w), the decoder's states at these levels and qualities (B,). The
    reconstruction's error counts as it is shown, clamped; its gradient goes on as if it were not.
    """
    decoder, anchors, gain = transform.decoder, transform.anchors(quality), transform.gain(quality)
    middle, bottom = (transform.looked_up(level, found, gain) for level, found in zip((MIDDLE, BOTTOM), codes, strict=True))
    x = states[1] + decoder.enter[BOTTOM](bottom)
    kept: list[tuple[int, list[Tensor]]] = []
    for level in (BOTTOM, BOTTOM + 1):
        x, signs = _forward(decoder.scales[level], decoder.blocks[level], x, anchors)
        kept.append((level, signs))
        if level == BOTTOM:
            x = F.pixel_shuffle(decoder.up[level](x), 2)
    shown = F.pixel_shuffle(decoder.out(x), 4) + F.pixel_shuffle(decoder.direct(bottom), BLOCK) + 0.5
    error = (shown.clamp(0, 1) - images) * (transform.lagrangian(quality)[:, None, None, None] / 3)  # half the gradient by `shown`

    x = _back(decoder.out, F.pixel_unshuffle(error, 4))
    for level, signs in reversed(kept):
        x = _backward(decoder.scales[level], decoder.blocks[level], x, anchors, signs)
        if level != BOTTOM:
            x = _back(decoder.up[level - 1], F.pixel_unshuffle(x, 2))
    half = _back(decoder.enter[BOTTOM], x) + _back(decoder.direct, F.pixel_unshuffle(error, BLOCK))
    x = _back(decoder.up[MIDDLE], F.pixel_unshuffle(x, 2))
    _, signs = _forward(decoder.scales[MIDDLE], decoder.blocks[MIDDLE], states[0] + decoder.enter[MIDDLE](middle), anchors)
    x = _backward(decoder.scales[MIDDLE], decoder.blocks[MIDDLE], x, anchors, signs)
    return middle * gain - _back(decoder.enter[MIDDLE], x) / gain, bottom * gain - half / gain


def _forward(scale: QualityScale, blocks: Iterable[nn.Module], x: Tensor, anchors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A level's scale and blocks, and of each block which of its hidden values are positive."""
    x, signs = scale(x, anchors), []
    for block in blocks:
        hidden = F.leaky_relu(block.spatial(x), SLOPE)
        signs.append(hidden > 0)
        x = x + block.mix(hidden)
    return x, signs


def _backward(scale: QualityScale, blocks: Iterable[nn.Module], x: Tensor, anchors: Tensor, signs: list[Tensor]) -> Tensor:
    """The gradient by what `_forward` took, from that by what it gave."""
    for block, positive in reversed(list(zip(blocks, signs, strict=True))):
        assert isinstance(block, Block)
        hidden = _back(block.mix, x)
        x = x + _back(block.spatial, torch.where(positive, hidden, SLOPE * hidden))
    return x * (anchors @ scale.log_scale).exp()[:, :, None, None]


def _back(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The gradient by a convolution's input, from that by its output: the convolution with the weights turned around.

    The layer's stride is 1 and its padding keeps the size.
    """
    return F.conv2d(x, layer.weight.flip(2, 3).transpose(0, 1), padding=layer.padding)
