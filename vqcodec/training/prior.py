"""Trains the integer PixelCNN on the codes of a finished transform, over all qualities.

Shapes: codes per level int16 `(S, h, w)` of photographs or pieces of them; batches are windows that lie alike on all levels.
Loss: bits per pixel under the prior, each image divided by `lambda ** BALANCE` as in the transform's training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from vqcodec.config import DEFAULT_EFFORT, LEVEL_STRIDES, QUALITY_STEPS, ModelConfig
from vqcodec.training.checkpoint import UNREADABLE, load_checkpoint, read_tensors, save_checkpoint, write_tensors
from vqcodec.training.data import RESCALE, pad_to_multiple
from vqcodec.training.loop import World
from vqcodec.training.pixelcnn import PixelCNN, Tensors
from vqcodec.training.schedule import Clock, Schedule
from vqcodec.training.transform import BALANCE
from vqcodec.training.vqvae import VQVAE
from vqcodec.transform import PATHS, Transform

CODE_PATHS = PATHS[DEFAULT_EFFORT]  # of the search for the codes to train on: those that files will hold
WINDOW = 384  # pixels a side: 48 x 48 bottom codes
PIECE = 512  # pixels a side: what is encoded of a photograph at most, so that there is more than one window in it
WATCH_STEPS = 200
COOLDOWN = 0.6  # fraction of the run over which the learning rate falls to zero


Coded = tuple[list[Tensor], Tensor]  # codes per level int64 (B, S, h, w), qualities in hundredths (B,)


class CodedImage(NamedTuple):
    """The codes of a photograph or a piece of one, each int16 (S, h, w), and the quality in hundredths that they were chosen at."""

    codes: list[Tensor]
    quality: int


@torch.no_grad()
def encode_images(
    transform: VQVAE | Transform, images: Sequence[Tensor], seed: int, minutes: float, passes: int = 20
) -> Iterator[CodedImage]:
    """Encodes uint8 images (3, H, W) at random qualities.

    Passes over all images again and again until `minutes` are over, each time over other pieces of them (`varied`), or once over whole
    ones where `passes` is 1. The first one is encoded in any case.
    """
    random = np.random.default_rng(seed)
    encode = _encoder(transform)
    clock = Clock(Schedule(steps=10**9, minutes=minutes))
    order = (index for _ in range(passes) for index in random.permutation(len(images)))
    for count, index in enumerate(order):
        if count and clock.progress(0) >= 1:
            return
        image = images[int(index)]
        if passes > 1:
            image = varied(image, random)
        quality = int(random.integers(QUALITY_STEPS + 1))
        yield CodedImage(encode(image, quality), quality)


def varied(image: Tensor, random: np.random.Generator) -> Tensor:
    """A piece of an image uint8 (3, H, W) from anywhere in it, half of them mirrored and half of them made smaller.

    It has other codes every time: on the same ones again and again the prior learns them by heart (bench/LOG.md).
    """
    if random.random() < 0.5:
        image = image.flip(2)
    height, width = image.shape[1:]
    scale = max(random.uniform(*RESCALE), (WINDOW + LEVEL_STRIDES[0]) / min(height, width))
    if random.random() < 0.5 and scale < 1:
        height, width = round(height * scale), round(width * scale)
        image = transforms.resize(image, [height, width], antialias=True)
    sides = [min(side, max(min(side, PIECE) - int(random.integers(LEVEL_STRIDES[0])), WINDOW)) for side in (height, width)]
    top, left = (int(random.integers(whole - side + 1)) for whole, side in zip((height, width), sides, strict=True))
    return image[:, top : top + sides[0], left : left + sides[1]].contiguous()


def _encoder(transform: VQVAE | Transform) -> Callable[[Tensor, int], list[Tensor]]:
    """What gives the codes, int16 (S, h, w) per level, of an image uint8 (3, H, W) at a quality in hundredths."""
    if isinstance(transform, Transform):
        return lambda image, quality: [
            torch.from_numpy(codes.astype(np.int16)) for codes in transform.encode(image.permute(1, 2, 0).contiguous().numpy(), quality)
        ]
    transform.eval()
    device = next(transform.parameters()).device

    def encode(image: Tensor, quality: int) -> list[Tensor]:
        padded = pad_to_multiple(image[None].to(device).float() / 255, LEVEL_STRIDES[0])
        codes = transform.encode(padded, torch.tensor([quality / QUALITY_STEPS], device=device), CODE_PATHS)
        return [c[0].short().cpu() for c in codes]

    return encode


class WindowSampler:
    """Random windows of coded images, the same sequence for the same seed and step."""

    def __init__(self, images: Sequence[CodedImage], batch: int, seed: int, world: World):
        sides = [min(image.codes[0].shape[1:]) for image in images]
        self.side = min(WINDOW // LEVEL_STRIDES[0], max(sides))  # in top codes
        self.images = [image for image, side in zip(images, sides, strict=True) if side >= self.side]
        self.batch, self.seed, self.world = batch, seed, world

    def __call__(self, step: int) -> Coded:
        """Codes per level int64 (B, S, h, w) and qualities in hundredths (B,)."""
        random = np.random.default_rng((self.seed, step, self.world.rank))
        chosen = [self.images[int(random.integers(len(self.images)))] for _ in range(self.batch)]
        windows: list[list[Tensor]] = []
        for image in chosen:
            height, width = image.codes[0].shape[1:]
            row, column = int(random.integers(height - self.side + 1)), int(random.integers(width - self.side + 1))
            factors = [LEVEL_STRIDES[0] // stride for stride in LEVEL_STRIDES]
            windows.append(
                [
                    c[:, f * row : f * (row + self.side), f * column : f * (column + self.side)]
                    for c, f in zip(image.codes, factors, strict=True)
                ]
            )
        levels = [torch.stack(parts).long() for parts in zip(*windows, strict=True)]
        return levels, torch.tensor([image.quality for image in chosen])


class PriorTrainer:
    """PixelCNN, averaged weights, optimiser; saves and resumes exactly.

    `start` is an exported prior to begin with; it is passed over where it has another shape. On the coded images `held_out` every level is
    looked at now and then: coarse levels have few codes, which a long training learns by heart (bench/LOG.md).
    """

    def __init__(
        self, config: ModelConfig, schedule: Schedule, world: World, start: Tensors | None = None, held_out: Sequence[CodedImage] = ()
    ):
        torch.manual_seed(schedule.seed)
        self.schedule, self.world, self.held_out = schedule, world, held_out
        model = PixelCNN(config)
        self.continued = start is not None and model.take(start)
        self.model = model.to(world.device)
        self.began = copy.deepcopy(self.model).requires_grad_(False) if self.continued else None
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.best = copy.deepcopy(self.average)  # each level as it was when it took the fewest bits of the held out images
        self.least = [math.inf] * len(self.best.levels)  # these bits, per position
        self.parallel = world.parallel(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99))
        self.step, self.minutes = 0, 0.0

    def prepare(self, draw: Callable[[int], Coded], progress: float) -> None:
        """Looks at the held out images every `WATCH_STEPS` steps."""
        if self.held_out and self.step % WATCH_STEPS == 0:
            self.watch()

    def watch(self) -> list[list[float]]:
        """What `evaluate_prior` gives on the held out images, averaged weights; keeps the levels that are better than before."""
        return self._watched(self.average)

    def _watched(self, prior: PixelCNN) -> list[list[float]]:
        found = evaluate_prior(prior, self.held_out)
        for index, (bits, level) in enumerate(zip(found, prior.levels, strict=True)):
            if sum(bits) < self.least[index]:
                self.least[index] = sum(bits)
                self.best.levels[index].load_state_dict(level.state_dict())
        return found

    def finish(self) -> list[list[float]]:
        """Takes as the averaged weights those of the end, those halfway from where it began to there, or the best levels together.

        Halfway from another prior is often better than either: both have learned codes by heart, but not the same ones (Wortsman et al.
        2022, "Model soups"; bench/LOG.md). Returns what `evaluate_prior` gives of these weights on the held out images, of which there
        must be some.
        """
        candidates = [(self.watch(), self.average)]
        if self.began is not None:
            halfway = copy.deepcopy(self.began)
            torch._foreach_lerp_(list(halfway.parameters()), list(self.average.parameters()), 0.5)
            candidates.append((self._watched(halfway), halfway))
        candidates.append((evaluate_prior(self.best, self.held_out), self.best))
        bits, prior = min(candidates, key=lambda candidate: _per_pixel(candidate[0]))
        self.average.load_state_dict(prior.state_dict())
        return bits

    def train_step(self, batch: Coded, progress: float) -> dict[str, Tensor]:
        """One optimiser step on codes per level (B, S, h, w) and qualities (B,); returns bits per pixel, a scalar on the device."""
        codes, quality = [c.to(self.world.device) for c in batch[0]], batch[1].to(self.world.device)
        pixels = codes[0].shape[2] * codes[0].shape[3] * LEVEL_STRIDES[0] ** 2
        self.model.train()
        # bfloat16 holds the integers themselves; its sums are off by a unit at times, which exact evaluation does not mind
        with self.world.autocast():
            levels = self.parallel(codes, quality)
        bits = torch.stack([level.sum((1, 2, 3)) for level in levels]).sum(0) / pixels
        config = self.model.config.transform
        weight = (config.lambda_max / config.lambda_min) ** (-BALANCE * quality / QUALITY_STEPS)
        factor = 1.0 if progress < 1 - COOLDOWN else 0.5 * (1 + math.cos(math.pi * (progress - 1 + COOLDOWN) / COOLDOWN))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * min(factor, (self.step + 1) / 100)
        self.optimizer.zero_grad(set_to_none=True)
        (bits * weight).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.keep_in_range()
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return {"bpp": bits.detach().mean()}

    def save(self, path: Path) -> None:
        """Writes everything that a resume needs, atomically."""
        state = {"step": self.step, "minutes": self.minutes, "least": self.least}
        save_checkpoint(path, self._modules(), self.optimizer, state)

    def load(self, path: Path) -> None:
        """Restores what `save` wrote; raises `TrainingError` where it does not fit."""
        state = load_checkpoint(path, self._modules(), self.optimizer)
        self.step, self.minutes, self.least = state["step"], state["minutes"], state["least"]

    def _modules(self) -> dict[str, PixelCNN]:
        return {"model": self.model, "average": self.average, "best": self.best}


def _per_pixel(levels: Sequence[Sequence[float]]) -> float:
    """Bits per pixel from bits per position of each level and stage; infinite where they are no number, which no minimum passes over."""
    bits = sum(sum(bits) / stride**2 for bits, stride in zip(levels, LEVEL_STRIDES, strict=True))
    return math.inf if math.isnan(bits) else bits


@torch.no_grad()
def evaluate_prior(prior: PixelCNN, images: Sequence[CodedImage]) -> list[list[float]]:
    """Mean bits per position of every level and stage, the lengths' last, on whole coded images."""
    prior.eval()
    device = next(prior.parameters()).device
    sums = [[0.0] * (level.stages + bool(level.stages)) for level in prior.config.transform.levels]
    counts = [0] * len(sums)
    for image in images:
        codes = [c[None].long().to(device) for c in image.codes]
        for index, bits in enumerate(prior(codes, torch.tensor([image.quality], device=device))):
            counts[index] += bits.shape[2] * bits.shape[3]
            sums[index] = [a + b for a, b in zip(sums[index], bits.sum((0, 2, 3)).tolist(), strict=True)]
    return [[value / count for value in level] for level, count in zip(sums, counts, strict=True)]


def save_codes(path: Path, images: Sequence[CodedImage], transform_step: int) -> None:
    """Keeps coded images, so that a resumed training goes on with the very same ones."""
    tensors = {f"{i}.{level}": codes.contiguous() for i, image in enumerate(images) for level, codes in enumerate(image.codes)}
    write_tensors(path, tensors, {"transform_step": transform_step, "qualities": [image.quality for image in images]})


def load_codes(path: Path, transform_step: int) -> list[CodedImage]:
    """Reads what `save_codes` wrote; nothing where there is no such file that can be read, or one of another step of the transform."""
    try:
        tensors, state = read_tensors(path)
        if state["transform_step"] != transform_step:
            return []
        levels = range(len(LEVEL_STRIDES))
        return [CodedImage([tensors[f"{i}.{level}"] for level in levels], q) for i, q in enumerate(state["qualities"])]
    except (*UNREADABLE, KeyError):
        return []
