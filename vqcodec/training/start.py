"""Starts a training from a model that ships: its weights, in a network that may have grown since.

What grew starts so that the function is that of the smaller network: new blocks add nothing and new latent dimensions
reach nothing yet (function-preserving growth: Chen, Goodfellow and Shlens 2016, Net2Net).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from torch import Tensor

from vqcodec.errors import TrainingError
from vqcodec.model import PRIOR, WEIGHTS
from vqcodec.training.pixelcnn import Tensors
from vqcodec.training.vqvae import VQVAE


def exported_weights(folder: Path) -> dict[str, Tensor]:
    """The parameters of an exported transform under the names of `VQVAE`; raises `TrainingError` where there is none."""
    try:
        return {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder} holds no exported model to start from: {error}") from error


def exported_prior(folder: Path) -> Tensors:
    """The integers of an exported prior; raises `TrainingError` where there are none."""
    try:
        return load_numpy(folder / PRIOR)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder} holds no exported prior to start from: {error}") from error


@torch.no_grad()
def start_from(model: VQVAE, weights: dict[str, Tensor]) -> bool:
    """Copies `weights` into `model`, which may be deeper and have other quantisers; returns whether the quantisers came along.

    Quantisers of another shape start anew: then a warm-up and a k-means start must follow.
    Raises `TrainingError` where the model is smaller than the weights, or other than them.
    """
    same = all(
        stored is not None and stored.shape == quantizer.codebooks.shape
        for level, quantizer in enumerate(model.quantizers)
        for stored in [weights.get(f"quantizers.{level}.codebooks")]
    )
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if (name not in weights and ".mix." in name) or any(part in name for part in (".enter.", ".direct.")):
            parameter.zero_()
    for name, stored in weights.items():
        if name.startswith("quantizers.") and not same:
            continue
        target = parameters.get(name)
        if target is None or target.dim() != stored.dim() or any(s > t for s, t in zip(stored.shape, target.shape, strict=True)):
            found = "nothing" if target is None else list(target.shape)
            raise TrainingError(f"the model to start from does not fit: {name} is {list(stored.shape)} there and {found} here")
        target[tuple(slice(side) for side in stored.shape)] = stored
    return same
