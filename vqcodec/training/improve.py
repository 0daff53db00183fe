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

from vqcodec.config import ADAPTED_STRIDE
from vqcodec.training.vqvae import BLOCK, SLOPE, VQVAE, Block, QualityScale

MIDDLE, BOTTOM = 1, 2  # the levels' indices


def wanted_bottom(
    transform: VQVAE, images: Tensor, bottom: Tensor, state: Tensor, quality: Tensor, coordinates: Tensor | None = None
) -> Tensor:
    """Where the bottom latents should go, (B, D, h, w), as long as the other levels' codes stay.

    Takes images (B, 3, H, W), the bottom codes (B, S, h, w), the decoder's state there and qualities (B,); also coordinates that adapt the
    decoder's last layer, as `Decoder.finish` does. The reconstruction's error counts as it is shown, clamped; its gradient goes on as if it
    were not.
    """
    gain = transform.gain(quality)
    latents = transform.looked_up(BOTTOM, bottom, gain)
    by_state, error = _gradients(transform, images, latents, state, quality, coordinates)
    half = _back(transform.decoder.enter[BOTTOM], by_state) + _back(transform.decoder.direct, F.pixel_unshuffle(error, BLOCK))
    return latents * gain - half / gain


def wanted_middle(
    transform: VQVAE,
    images: Tensor,
    codes: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    quality: Tensor,
    coordinates: Tensor | None = None,
) -> Tensor:
    """The same of the middle latents: takes the codes, and the decoder's states, of the middle and the bottom."""
    decoder, gain, anchors = transform.decoder, transform.gain(quality), transform.anchors(quality)
    middle, bottom = (transform.looked_up(level, found, gain) for level, found in zip((MIDDLE, BOTTOM), codes, strict=True))
    by_state, _ = _gradients(transform, images, bottom, states[1], quality, coordinates)
    x = _back(decoder.up[MIDDLE], F.pixel_unshuffle(by_state, 2))
    _, signs = _forward(decoder.scales[MIDDLE], decoder.blocks[MIDDLE], states[0] + decoder.enter[MIDDLE](middle), anchors)
    x = _backward(decoder.scales[MIDDLE], decoder.blocks[MIDDLE], x, anchors, signs)
    return middle * gain - _back(decoder.enter[MIDDLE], x) / gain


def _gradients(
    transform: VQVAE, images: Tensor, bottom: Tensor, state: Tensor, quality: Tensor, coordinates: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Half the gradient by the decoder's state (B, C, h, w) at the bottom, of given latents (B, D, h, w), and by the picture shown."""
    decoder, anchors = transform.decoder, transform.anchors(quality)
    x = state + decoder.enter[BOTTOM](bottom)
    kept: list[tuple[int, list[Tensor]]] = []
    for level in (BOTTOM, BOTTOM + 1):
        x, signs = _forward(decoder.scales[level], decoder.blocks[level], x, anchors)
        kept.append((level, signs))
        if level == BOTTOM:
            x = F.pixel_shuffle(decoder.up[level](x), 2)
    shown = decoder.finish(x, bottom, coordinates)
    error = (shown.clamp(0, 1) - images) * (transform.lagrangian(quality)[:, None, None, None] / 3)

    by_last = F.pixel_unshuffle(error, ADAPTED_STRIDE)
    x = _back(decoder.out, by_last)
    if coordinates is not None:
        x = x + decoder.change_back(by_last, coordinates)
    for level, signs in reversed(kept):
        x = _backward(decoder.scales[level], decoder.blocks[level], x, anchors, signs)
        if level != BOTTOM:
            x = _back(decoder.up[level - 1], F.pixel_unshuffle(x, 2))
    return x, error


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
