"""Starts a training from a model that ships: its weights, in a network that may have grown since.

What grew starts so that the function is that of the smaller network: new blocks add nothing and new latents
reach nothing yet (function-preserving growth: Chen, Goodfellow and Shlens 2016, Net2Net). New stages of a quantiser get their codes
from what the old ones leave (transform.py), and new bottom latents hold what a regression finds of it in the pixels. With another range
of qualities the network does at each anchor what it did at that Lagrangian.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from torch import Tensor
from torch.nn import functional as F

from vqcodec.config import LAMBDA_UNIT, ModelConfig, TransformConfig
from vqcodec.errors import TrainingError, VQCodecError
from vqcodec.model import PRIOR, WEIGHTS, load_model, restored
from vqcodec.training.pixelcnn import Tensors
from vqcodec.training.vqvae import BLOCK, VQVAE, flat

BOTTOM = 2  # the index of the level
RIDGE = 1e-4  # of the regression, in mean squares of a pixel: neighbouring pixels are nearly the same
QUALITY_SCALES = (".log_scale", ".shift")  # the parameters of vqvae.QualityScale


def exported_weights(folder: Path, config: TransformConfig) -> dict[str, Tensor]:
    """The parameters of an exported transform under the names of `VQVAE`, its quality scales at the qualities of `config`.

    Raises `TrainingError` where there is none.
    """
    try:
        weights = {name: torch.from_numpy(tensor).float() for name, tensor in restored(load_numpy(folder / WEIGHTS)).items()}
        old = load_model(folder.resolve()).config.transform  # a bare name would be that of a shipped model
        moved = torch.from_numpy(anchors_moved(old, config, old.anchors, config.anchors))
        return {name: moved @ tensor if name.endswith(QUALITY_SCALES) else tensor for name, tensor in weights.items()}
    except (OSError, ValueError, RuntimeError, SafetensorError, VQCodecError) as error:
        raise TrainingError(f"{folder} holds no exported model to start from: {error}") from error


def exported_prior(folder: Path, config: ModelConfig) -> Tensors:
    """The integers of an exported prior, its quality vectors at the qualities of `config`; raises `TrainingError` where there are none."""
    try:
        tensors = load_numpy(folder / PRIOR)
        old = load_model(folder.resolve()).config
        moved = anchors_moved(old.transform, config.transform, old.prior.quality_anchors, config.prior.quality_anchors)
        return {name: np.rint(moved @ t).astype(t.dtype) if name.endswith(".quality") else t for name, t in tensors.items()}
    except (OSError, ValueError, SafetensorError, VQCodecError) as error:
        raise TrainingError(f"{folder} holds no exported prior to start from: {error}") from error


def anchors_moved(old: TransformConfig, new: TransformConfig, stored: int, anchors: int) -> NDArray[np.float32]:
    """What interpolates values (stored, ...) at qualities of `old` at the Lagrangians that `new` has at its: (anchors, stored).

    Beyond the old ones the value of the last holds on.
    """
    lagrangians = math.log(new.lambda_min) + np.linspace(0, 1, anchors) * math.log(new.lambda_max / new.lambda_min)
    positions = (lagrangians - math.log(old.lambda_min)) / math.log(old.lambda_max / old.lambda_min) * (stored - 1)
    distances = np.abs(positions.clip(0, stored - 1)[:, None] - np.arange(stored))
    return (1 - distances).clip(0).astype(np.float32)


@torch.no_grad()
def start_from(model: VQVAE, weights: dict[str, Tensor]) -> list[int]:
    """Copies `weights` into `model`, which may be deeper and have other quantisers; returns the stages that came along, for each level.

    Codes may also get more dimensions, in which old ones are zero; at the bottom `start_latents` must follow. Quantisers with other
    numbers of codes, or with new dimensions at other levels, start anew, and then all of them: a warm-up and a k-means start must follow.
    Raises `TrainingError` where the model is smaller than the weights, or other than them.
    """
    kept: list[int] = []
    for level, quantizer in enumerate(model.quantizers):
        stored = weights.get(f"quantizers.{level}.codebooks")
        kept.append(0 if stored is None or not _continues(stored, quantizer.codebooks, level == BOTTOM) else len(stored))
    if any(stages == 0 < quantizer.config.stages for stages, quantizer in zip(kept, model.quantizers, strict=True)):
        kept = [0] * len(kept)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        grows = any(kept) and name in weights and any(part in name for part in (".codebooks", ".from_sum.", f"posterior.{BOTTOM}."))
        if grows or (name not in weights and ".mix." in name) or any(part in name for part in (".enter.", ".direct.")):
            parameter.zero_()
    for name, stored in weights.items():
        if name.startswith("quantizers.") and not any(kept):
            continue
        target = parameters.get(name)
        if target is None or target.dim() != stored.dim() or any(s > t for s, t in zip(stored.shape, target.shape, strict=True)):
            found = "nothing" if target is None else list(target.shape)
            raise TrainingError(f"the model to start from does not fit: {name} is {list(stored.shape)} there and {found} here")
        target[tuple(slice(side) for side in stored.shape)] = stored
    for stages, quantizer in zip(kept, model.quantizers, strict=True):
        if stages:
            quantizer.silence(stages)
        if quantizer.plain:
            quantizer.sums.copy_(quantizer.codebooks)
    return kept


def _continues(stored: Tensor, codebooks: Tensor, may_widen: bool) -> bool:
    """Whether codebooks (S, K, D) hold those stored, with further stages and, where they `may_widen`, further dimensions."""
    stages, size, dim = stored.shape
    return (
        stages <= len(codebooks) and size == codebooks.shape[1] and (dim <= codebooks.shape[2] if may_widen else dim == codebooks.shape[2])
    )


def new_latents(model: VQVAE) -> Tensor:
    """Which bottom latents nothing reaches yet, (D,)."""
    return (model.encoder.direct.weight.flatten(1) == 0).all(1)


@torch.no_grad()
def start_latents(model: VQVAE, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Makes new bottom latents of what is linear in the pixels of the error that the model leaves where it uses many stages.

    Takes images (B, 3, H, W) and qualities (B,). A regression of a block's error on the pixels around it, of as many directions as there
    are new latents (reduced-rank regression: Izenman 1975), gives their part of the linear path, there and back. Their scale is that of
    the Lagrangian: a distance between them is in bits what it means to the picture.
    """
    new, stages = new_latents(model), model.quantizers[BOTTOM].config.stages
    inputs = model.encoder.direct.weight[0].numel()
    squares, products = torch.zeros(inputs, inputs, dtype=torch.double), torch.zeros(inputs, 3 * BLOCK**2, dtype=torch.double)
    for images, quality in batches:
        found = model(images, quality, 1.0)
        lengths = (torch.arange(1, stages + 1, device=images.device) * (found.codes[BOTTOM] != 0)).amax(1)
        longer = lengths > lengths.max() // 2
        pixels = F.unfold(images - 0.5, 3 * BLOCK, stride=BLOCK, padding=BLOCK).transpose(1, 2).flatten(0, 1)[longer]
        error = flat(F.pixel_unshuffle(images - found.images, BLOCK))[longer]
        squares += (pixels.T @ pixels).double().cpu()
        products += (pixels.T @ error).double().cpu()
    ridge = RIDGE * squares.trace() / inputs * torch.eye(inputs, dtype=torch.double)
    regression = torch.linalg.solve(squares + ridge, products)
    directions = torch.linalg.eigh(regression.T @ products).eigenvectors[:, -int(new.sum()) :]
    scale = math.sqrt(LAMBDA_UNIT / 3)
    model.encoder.direct.weight[new] = (scale * regression @ directions).T.reshape(-1, 3, 3 * BLOCK, 3 * BLOCK).to(new.device).float()
    model.decoder.direct.weight[:, new, 1, 1] = (directions / scale).to(new.device).float()
