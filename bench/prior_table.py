"""What the parts of the prior are worth: bits per code and per pixel, of the prior and of what is less than it.

python3 bench/prior_table.py models/default CODES... --sets valid=../shared/valid,kodak=../shared/kodak --steps 60 --out runs/prior_table

CODES are what a training leaves in `checkpoints/codes.safetensors`. Every variant of the network goes on from the model's prior for the
same steps on the same windows: the integers as they ship, a float twin (no rounding, weights of any size), and nets that must do without
the coarser levels, without their neighbours, or without the earlier stages. Beside them stand raw indices, static tables of order 0 counted
on training codes of similar quality, and the transform's own conditional model. Prints a table. Needs the extra "train".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vqcodec.config import QUALITY_STEPS, ModelConfig
from vqcodec.model import Model, load_model
from vqcodec.training import intlayers, pixelcnn
from vqcodec.training.data import load_images, pad_to_multiple
from vqcodec.training.loop import World
from vqcodec.training.pixelcnn import PixelCNN
from vqcodec.training.prior import CodedImage, PriorTrainer, WindowSampler, load_codes
from vqcodec.training.schedule import Schedule
from vqcodec.training.start import exported_prior, exported_weights, start_from
from vqcodec.training.vqvae import VQVAE

QUALITIES = (10, 50, 90)
SIMILAR = 0.1  # of the range of qualities: training codes this near count for a static table
LEARNING_RATE = 4e-3
Bits = list[list[float]]  # per level and stage


class Coded(NamedTuple):
    """The codes of a set's pictures at one quality, and their pixels in all."""

    images: list[CodedImage]
    pixels: int


def main() -> None:
    """Trains the variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("codes", type=Path, nargs="+")
    parser.add_argument("--sets", required=True, help="NAME=FOLDER, by commas.")
    parser.add_argument("--count", type=int, default=20, help="Pictures of each set.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    model = load_model(given.model)
    if any(net.length is None for net in model.prior.levels if net.config.stages):
        parser.error(f"the prior of {given.model} codes no lengths; train it on (vqcodec train --from {given.model})")
    training = [image for path in given.codes for image in read_codes(path)]
    folders = dict(entry.split("=") for entry in given.sets.split(","))
    pictures = {name: load_images(Path(folder), 32, print)[: given.count] for name, folder in folders.items()}
    sets = {(name, q): encode(model, found, q) for name, found in pictures.items() for q in QUALITIES}
    sets |= {("train", q): similar(training, q, given.count) for q in QUALITIES}
    table: dict[str, dict[str, float]] = {}
    rows = baselines(model, given.model, training, sets, pictures)
    for label, variant in VARIANTS.items():
        rows[label] = lambda variant=variant: trained(model.config, given.model, variant, training, given.steps, sets)  # type: ignore[misc]
    for label, row in rows.items():
        table[label] = row()
        print(json.dumps({label: table[label]}), flush=True)
        (given.out / "prior_table.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    print(markdown(table))


def read_codes(path: Path) -> list[CodedImage]:
    """What a training saved, whatever the step of its transform."""
    with safe_open(path, "pt") as file:
        return load_codes(path, json.loads((file.metadata() or {})["state"])["transform_step"])


def encode(model: Model, pictures: Sequence[Tensor], quality: int) -> Coded:
    """The codes that files would hold."""
    images, pixels = [], 0
    for picture in pictures:
        codes = model.encode(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), quality)
        images.append(CodedImage([torch.from_numpy(c.astype(np.int16)) for c in codes], quality * QUALITY_STEPS // 100))
        pixels += picture.shape[1] * picture.shape[2]
    return Coded(images, pixels)


def similar(training: Sequence[CodedImage], quality: int, count: int | None = None) -> Coded:
    """Training codes of similar quality; of these every picture counts whole, padding and all."""
    near = [image for image in training if abs(image.quality / QUALITY_STEPS - quality / 100) <= SIMILAR][:count]
    return Coded(near, sum(64 * image.codes[2][0].numel() for image in near))


def baselines(
    model: Model, folder: Path, training: Sequence[CodedImage], sets: dict[tuple[str, int], Coded], pictures: dict[str, list[Tensor]]
) -> dict[str, Callable[[], dict[str, float]]]:
    """What needs no prior, by label."""
    levels = model.config.transform.levels
    raw = [[math.log2(level.codebook_size)] * level.stages for level in levels]
    return {
        "raw indices": lambda: collected(sets, lambda coded, _: totals(coded, raw)),
        "static, order 0": lambda: collected(sets, lambda coded, quality: static(coded, similar(training, quality).images, model.config)),
        "conditional model": lambda: conditional(model.config, folder, sets, pictures),
    }


def collected(sets: dict[tuple[str, int], Coded], bits_of: Callable[[Coded, int], float]) -> dict[str, float]:
    """Bits per pixel of every set at every quality."""
    return {f"{name} {quality}": bits_of(coded, quality) / coded.pixels for (name, quality), coded in sets.items()}


def totals(coded: Coded, per_code: Bits) -> float:
    """Bits of a set whose codes take so many each."""
    return sum(
        bits * image.codes[level][stage].numel()
        for image in coded.images
        for level, stages in enumerate(per_code)
        for stage, bits in enumerate(stages)
    )


def static(coded: Coded, training: Sequence[CodedImage], config: ModelConfig) -> float:
    """Bits under tables counted on training codes, each count one more than it was."""
    bits = 0.0
    for level, shape in enumerate(config.transform.levels):
        for stage in range(shape.stages):
            counts = np.ones(shape.codebook_size)
            for image in training:
                counts += np.bincount(image.codes[level][stage].flatten().numpy(), minlength=len(counts))
            lengths = -np.log2(counts / counts.sum())
            bits += sum(float(lengths[image.codes[level][stage].flatten().numpy()].sum()) for image in coded.images)
    return bits


@torch.no_grad()
def conditional(
    config: ModelConfig, folder: Path, sets: dict[tuple[str, int], Coded], pictures: dict[str, list[Tensor]]
) -> dict[str, float]:
    """The transform's estimate of its own rate."""
    transform = VQVAE(config.transform)
    start_from(transform, exported_weights(folder, config.transform))
    transform.eval()
    found: dict[str, float] = {}
    for name, images in pictures.items():
        for quality in QUALITIES:
            bits = 0.0
            for image in images:
                padded = pad_to_multiple(image[None].float() / 255, 32)
                result = transform(padded, torch.tensor([quality / 100]), 1.0)
                bits += sum(level.item() for level in result.bits) * padded.shape[2] * padded.shape[3]
            found[f"{name} {quality}"] = bits / sets[name, quality].pixels
    return found


@contextlib.contextmanager
def in_floats(model: PixelCNN) -> Iterator[None]:
    """The same net without integers. Clamps of activations stay: nets that were trained with them lean on them."""
    del model
    patches = [
        mock.patch.object(pixelcnn, "rounded", lambda x: x),
        mock.patch.object(intlayers, "rounded", lambda x: x),
        mock.patch.object(intlayers.IntLayer, "integer_weight", lambda self: self.weight * self.UNIT),
        mock.patch.object(intlayers.IntTable, "integers", lambda self: self.weight * self.UNIT),
        mock.patch.object(PixelCNN, "keep_in_range"),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


@contextlib.contextmanager
def as_it_ships(model: PixelCNN) -> Iterator[None]:
    """The integer net."""
    del model
    yield


@contextlib.contextmanager
def without_coarser(model: PixelCNN) -> Iterator[None]:
    """Every level knows the quality alone."""
    del model
    with mock.patch.object(pixelcnn.LevelNet, "context", lambda self, quality, coarser, above: self.quality_vector(quality)):
        yield


@contextlib.contextmanager
def without_neighbours(model: PixelCNN) -> Iterator[None]:
    """No position sees another one's codes of its own level."""
    with contextlib.ExitStack() as stack:
        for net in model.levels:
            summed = net.embed.summed
            stack.enter_context(mock.patch.object(net.embed, "summed", lambda codes, summed=summed: 0 * summed(codes)))
        yield


@contextlib.contextmanager
def without_stages(model: PixelCNN) -> Iterator[None]:
    """No stage sees the earlier ones of its own position, nor more of its length than that it has the stage."""
    with contextlib.ExitStack() as stack:
        for net in model.levels:
            for table in (*net.head_embed, net.length_embed):
                integers = table.integers
                stack.enter_context(mock.patch.object(table, "integers", lambda integers=integers: 0 * integers()))
        yield


Variant = Callable[[PixelCNN], contextlib.AbstractContextManager[None]]
VARIANTS: dict[str, Variant] = {
    "integer net": as_it_ships,
    "float twin": in_floats,
    "without coarser levels": without_coarser,
    "without neighbours": without_neighbours,
    "without earlier stages": without_stages,
}


def trained(
    config: ModelConfig, folder: Path, variant: Variant, training: Sequence[CodedImage], steps: int, sets: dict[tuple[str, int], Coded]
) -> dict[str, float]:
    """Trains a variant from the model's prior and measures it; the weights that count are those of the last step."""
    world = World(torch.device("cpu"))
    trainer = PriorTrainer(config, Schedule(steps, math.inf, learning_rate=LEARNING_RATE), world, exported_prior(folder, config))
    draw = WindowSampler(training, 8, 0, world)
    with variant(trainer.model):
        while trainer.step < steps:
            trainer.train_step(draw(trainer.step), trainer.step / steps)
            trainer.step += 1
        return collected(sets, lambda coded, _: measured(trainer.model, coded))


@torch.no_grad()
def measured(model: PixelCNN, coded: Coded) -> float:
    """Bits of whole coded pictures."""
    model.eval()
    return sum(
        float(level.sum())
        for image in coded.images
        for level in model([codes[None].long() for codes in image.codes], torch.tensor([image.quality]))
    )


def markdown(table: dict[str, dict[str, float]]) -> str:
    """The table, bits per pixel."""
    columns = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, row in table.items():
        lines.append(f"| {label} | " + " | ".join(f"{row[column]:.4f}" if column in row else "" for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
