"""Training photographs: read once, kept as uint8 in memory, cropped, flipped and rescaled on the device.

Shapes: images uint8 `(3, H, W)`, batches float32 `(B, 3, crop, crop)` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from vqcodec import image
from vqcodec.errors import ImageError, LimitError, TrainingError
from vqcodec.limits import MAX_PIXELS
from vqcodec.training.loop import World
from vqcodec.training.schedule import Schedule

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
RESCALE = (0.6, 1.0)  # of each side, at random: hides the 8x8 grid of JPEG sources and varies sharpness


def load_images(folder: Path, minimum: int, report: Callable[[str], None] = print, apart: Iterable[Path] = ()) -> list[Tensor]:
    """Reads all photographs below `folder` whose sides are at least `minimum` pixels.

    What lies in folders `apart` below it is left out. Unreadable, too small and too large files are skipped, and `report` is told how
    many. Raises `TrainingError` where nothing is left.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder; give one with photographs in it")
    images: list[Tensor] = []
    skipped = 0
    top = folder.resolve()
    others = [other for other in (path.resolve() for path in apart) if top in other.parents]
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        if any(other in path.resolve().parents for other in others):
            continue
        try:
            pixels = image.read(path.read_bytes(), path.name)
        except (OSError, ImageError, LimitError):
            skipped += 1
            continue
        if min(pixels.shape[:2]) < minimum:
            skipped += 1
            continue
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    if not images:
        raise TrainingError(f"no usable photograph below {folder}: images must be readable and at least {minimum} pixels a side")
    if skipped:
        report(f"{skipped} files below {folder} skipped: unreadable, smaller than {minimum} pixels or larger than {MAX_PIXELS} in all")
    return images


class CropSampler:
    """Random crops of random images, the same sequence for the same seed and step (so that a resume is exact).

    The images are kept on the device as uint8, and cropped and rescaled there; several processes draw disjoint parts of a batch.
    """

    def __init__(self, images: Sequence[Tensor], schedule: Schedule, world: World):
        self.images = [image.to(world.device) for image in images]
        self.world = world
        self.crop, self.batch, self.seed = schedule.crop, schedule.batch, schedule.seed

    def __call__(self, step: int) -> Tensor:
        """The batch of `step` (negative ones never coincide with a training step's): float32 (B, 3, crop, crop) in [0, 1]."""
        world = self.world
        rows = range(world.rank, self.batch * world.size, world.size)  # of the batch that all processes draw together
        return torch.stack([self._sample(np.random.default_rng((self.seed, step % 2**63, row))) for row in rows])

    def _sample(self, random: np.random.Generator) -> Tensor:
        image = self.images[int(random.integers(len(self.images)))]
        height, width = image.shape[1:]
        scale = 1.0 if random.random() < 0.25 else random.uniform(*RESCALE)
        side = min(round(self.crop / scale), height, width)
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        patch = image[:, top : top + side, left : left + side].float() / 255
        if side != self.crop:
            patch = transforms.resize(patch, [self.crop, self.crop], antialias=True).clamp(0, 1)
        if random.random() < 0.5:
            patch = patch.flip(2)
        return patch


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of (B, C, H, W) up to a multiple of `multiple`."""
    height, width = image.shape[2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    return torch.nn.functional.pad(image, padding, mode="replicate")
