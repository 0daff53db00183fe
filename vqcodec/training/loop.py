"""The loop that trains the transform and the prior alike: progress, figures, checkpoints, one or several processes.

Several processes (`torchrun`) share the work by `DistributedDataParallel`: every one draws its own part of each batch, the
gradients are averaged, and whatever else must agree (the clock, k-means starts, split codes) comes from the first one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqcodec.errors import TrainingError
from vqcodec.training.schedule import Clock, Schedule

Batch = TypeVar("Batch", contravariant=True)
Row = dict[str, float]

ROW_STEPS = 50  # steps that one row of figures averages
SAVE_MINUTES = 5.0


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and where it computes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @staticmethod
    def join() -> World:
        """The processes that `torchrun` started, on an accelerator each where there are some; this process alone otherwise."""
        accelerated = torch.cuda.is_available()
        if "WORLD_SIZE" not in os.environ:
            return World(torch.device("cuda" if accelerated else "cpu"))
        dist.init_process_group("nccl" if accelerated else "gloo")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if accelerated else torch.device("cpu")
        return World(device, dist.get_rank(), dist.get_world_size())

    def autocast(self) -> torch.autocast:
        """bfloat16 where the device computes in it. A processor without such instructions would take three times as long as in float32."""
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = self.device.type != "cpu" or any(has for name, has in capabilities.items() if "bf16" in name)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    @property
    def first(self) -> bool:
        """Whether this process reports, saves and exports."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.item()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module itself, or one that averages gradients over the processes."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # a batch without its bottom level leaves that level's weights unused
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)


class Trainer(Protocol[Batch]):
    """What the loop needs of a training."""

    world: World
    schedule: Schedule
    step: int
    minutes: float

    def prepare(self, draw: Callable[[int], Any], progress: float) -> None:
        """What must happen once at some progress in [0, 1], before the step."""

    def train_step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One optimiser step; returns its figures as scalars on the device."""

    def save(self, path: Path) -> None:
        """Writes everything that a resume needs."""


def run(trainer: Trainer[Batch], draw: Callable[[int], Batch], checkpoint: Path) -> Iterator[Row]:
    """Trains to the end of the schedule on the batches `draw(step)`; yields figures, averaged over `ROW_STEPS` steps.

    Raises `TrainingError` where figures are not finite, before anything of it is saved.
    """
    world, clock = trainer.world, Clock(trainer.schedule, trainer.minutes)
    saved, count = clock.minutes(), 0
    sums: dict[str, Tensor] = {}
    while (progress := world.agree(clock.progress(trainer.step))) < 1:
        trainer.prepare(draw, progress)
        figures = trainer.train_step(draw(trainer.step), progress)
        for key, value in figures.items():  # tensors: a number asked for at every step would make an accelerator wait
            sums[key] = sums[key] + value if key in sums else value
        trainer.step, count, trainer.minutes = trainer.step + 1, count + 1, clock.minutes()
        if count == ROW_STEPS:
            yield {"step": trainer.step, "minutes": trainer.minutes, "progress": progress, **_means(sums, count)}
            sums, count = {}, 0
        if clock.minutes() - saved > SAVE_MINUTES:
            _means(sums, count)
            _save(trainer, checkpoint)
            saved = clock.minutes()
    _means(sums, count)
    trainer.minutes = clock.minutes()  # a save before may have taken long: what is at its end must be at its end after a resume
    _save(trainer, checkpoint)


def _means(sums: dict[str, Tensor], count: int) -> Row:
    """Figures of one step; raises `TrainingError` where they are not finite: then the weights soon are not, or already."""
    means = {key: value.item() / count for key, value in sums.items()}
    for key, mean in means.items():
        if not math.isfinite(mean):
            raise TrainingError(f"the training has diverged ({key} is {mean}); lower --learning-rate and --resume from the last checkpoint")
    return means


def _save(trainer: Trainer[Any], checkpoint: Path) -> None:
    if trainer.world.first:
        trainer.save(checkpoint)
