"""What a training tells: rows of a CSV file, a sheet of sample pictures, lines and figures for whoever looks on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from vqcodec.training.loop import Row
from vqcodec.training.vqvae import VQVAE

SAMPLE_QUALITIES = (0.1, 0.5, 0.9)
SAMPLES = 4  # photographs in the sheet


class Display(Protocol):
    """Where a training's news goes."""

    def line(self, text: str) -> None:
        """One line of text."""

    def figures(self, stage: str, row: Row) -> None:
        """Figures of a stage, whose key `progress` runs from 0 to 1."""


class Silent:
    """The display of the processes that are not the first."""

    def line(self, text: str) -> None:
        """Drops it."""

    def figures(self, stage: str, row: Row) -> None:
        """Drops them."""


def write_row(path: Path, row: Row) -> None:
    """Appends a row to a CSV file, under the head that the file has or gets."""
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        head = next(csv.reader(file), None)
        writer = csv.DictWriter(file, head or list(row), restval="", extrasaction="ignore")
        if head is None:
            writer.writeheader()
        writer.writerow(row)


@torch.no_grad()
def write_samples(path: Path, transform: VQVAE, images: Sequence[Tensor], side: int) -> None:
    """A PNG with a row for each photograph, uint8 (3, H, W): the middle square of `side` pixels and its reconstructions."""
    transform.eval()
    device = next(transform.parameters()).device
    cells: list[Tensor] = []
    for image in images[:SAMPLES]:
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        square = image[None, :, top : top + side, left : left + side].to(device).float() / 255
        shown = [transform(square, torch.tensor([quality], device=device), 1.0).images[0] for quality in SAMPLE_QUALITIES]
        cells += [square[0], *(x.clamp(0, 1) for x in shown)]
    temporary = path.with_suffix(".tmp.png")
    save_image(make_grid(cells, nrow=1 + len(SAMPLE_QUALITIES), padding=4, pad_value=1.0), temporary)
    temporary.replace(path)
