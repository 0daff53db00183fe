"""Checkpoints in safetensors: networks, Adam's state and a few numbers; written atomically, never pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vqcodec.errors import TrainingError, first_line

UNREADABLE = (OSError, ValueError, SafetensorError)


def save_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Writes the modules under their names, the optimiser under `optimizer` and `state` as JSON."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    # clones, since safetensors refuses tensors that share memory
    write_tensors(path, {key: value.contiguous().clone() for key, value in tensors.items()}, state)


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores what `save_checkpoint` wrote and returns its state; raises `TrainingError` where it does not fit."""
    try:
        tensors, state = read_tensors(path)
    except UNREADABLE as error:
        raise TrainingError(f"{path} cannot be read: {first_line(error)}; remove it and the prior's, and continue with --resume") from error
    try:
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
        restored = optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, field = key.split(".")
                restored["state"].setdefault(int(index), {})[field] = value
        optimizer.load_state_dict(restored)
    except (KeyError, RuntimeError, ValueError) as error:  # torch's text names every parameter
        raise TrainingError(f"{path} is of another preset or configuration; give --resume the options that it was started with") from error
    return state


def write_tensors(path: Path, tensors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors, and `state` as JSON, atomically; raises `TrainingError` where that fails."""
    temporary = path.with_suffix(".tmp")
    try:
        save_file(tensors, temporary, {"state": json.dumps(dict(state))})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be written: {first_line(error)}; check the disk, and continue with --resume") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of `write_tensors`; raises one of `UNREADABLE`."""
    with safe_open(path, "pt") as file:
        state: dict[str, Any] = json.loads((file.metadata() or {}).get("state", ""))
        return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118 - safe_open is no mapping
