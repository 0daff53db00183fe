"""Writes what one training step on a fixed batch gives, computed by however many processes `torchrun` started."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from vqcodec.training.loop import World
from vqcodec.training.presets import PRESETS
from vqcodec.training.schedule import Schedule
from vqcodec.training.transform import TransformTrainer


def write(world: World, folder: Path) -> None:
    """Each process takes its part of four images; the first one writes the gradients, and each the codebooks of a plain training."""
    tiny = PRESETS["tiny"].config.transform
    trainer = TransformTrainer(tiny, Schedule(10, 1e9), world)
    torch.manual_seed(3)
    images = torch.rand(4, 3, 64, 64)[world.rank :: world.size]
    torch.manual_seed(4)
    quality = trainer.qualities(len(images))
    loss, _ = trainer.loss(images, quality, rate_weight=1.0, levels=2)  # weights of the bottom level stay unused
    loss.backward()
    if world.first:
        named = trainer.model.named_parameters()
        gradients = {name: p.grad.contiguous() for name, p in named if p.grad is not None and p.grad.abs().max() > 0}
        save_file(gradients, folder / "gradients.safetensors")
    levels = (replace(tiny.levels[0], stages=0), *tiny.levels[1:])  # as in the preset "vqvae"
    trainer = TransformTrainer(replace(tiny, levels=levels), Schedule(10, 1e9), world, plain=True)
    trainer.loss(images, quality, rate_weight=0.0)
    moved = {str(level): quantizer.codebooks.detach() for level, quantizer in enumerate(trainer.model.quantizers)}
    save_file(moved, folder / f"codebooks-{world.rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(World.join(), Path(sys.argv[1]))
    dist.destroy_process_group()
