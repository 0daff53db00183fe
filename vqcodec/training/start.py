"""Starts a training from a model that ships: its weights, in a network that may have grown since.

What grew starts so that the function is that of the smaller network: new blocks add nothing and new latent dimensions
reach nothing yet (function-preserving growth: Chen, Goodfellow and Shlens 2016, Net2Net). New stages of a quantiser get their codes
from what the old ones leave (transform.py). With another range of qualities the network does at each anchor what it did at that Lagrangian.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from torch import Tensor

from vqcodec.config import ModelConfig, TransformConfig
from vqcodec.errors import TrainingError, VQCodecError
from vqcodec.model import PRIOR, WEIGHTS, load_model, restored
from vqcodec.training.pixelcnn import Tensors
from vqcodec.training.vqvae import VQVAE

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

    Quantisers with codebooks of another shape start anew, and then all of them: a warm-up and a k-means start must follow.
    Raises `TrainingError` where the model is smaller than the weights, or other than them.
    """
    kept: list[int] = []
    for level, quantizer in enumerate(model.quantizers):
        stored = weights.get(f"quantizers.{level}.codebooks")
        fits = stored is not None and stored.shape[1:] == quantizer.codebooks.shape[1:] and len(stored) <= len(quantizer.codebooks)
        kept.append(len(stored) if stored is not None and fits else 0)
    if any(stages == 0 < quantizer.config.stages for stages, quantizer in zip(kept, model.quantizers, strict=True)):
        kept = [0] * len(kept)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if (name not in weights and ".mix." in name) or any(part in name for part in (".enter.", ".direct.")):
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
