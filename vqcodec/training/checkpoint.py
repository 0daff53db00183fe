"""Checkpoints in safetensors: networks, Adam's state and a few numbers; written atomically, never pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vqcodec.errors import TrainingError


def save_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Writes the modules under their names, the optimiser under `optimizer` and `state` as JSON."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    temporary = path.with_suffix(".tmp")
    # clones, since safetensors refuses tensors that share memory
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, temporary, {"state": json.dumps(dict(state))})
    temporary.replace(path)


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores what `save_checkpoint` wrote and returns its state; raises `TrainingError` where it does not fit."""
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
        restored = optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, field = key.split(".")
                restored["state"].setdefault(int(index), {})[field] = value
        optimizer.load_state_dict(restored)
    except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise TrainingError(f"{path} is no checkpoint of this configuration: {error}; remove it, or train without --resume") from error
    return state
