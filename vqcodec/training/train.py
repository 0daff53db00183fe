"""`vqcodec train`: photographs in, model folder out. Transform first, then the prior on its codes, then the export."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcodec import __version__, codec, metrics
from vqcodec.errors import TrainingError
from vqcodec.model import CARD, load_model, open_transform
from vqcodec.training.adapt import fit, gather
from vqcodec.training.data import CropSampler, load_images
from vqcodec.training.export import export_model, export_transform, with_basis
from vqcodec.training.loop import SAVE_MINUTES, Row, World, run
from vqcodec.training.memory import large_blocks_apart
from vqcodec.training.presets import PRESETS, Preset
from vqcodec.training.prior import CodedImage, PriorTrainer, WindowSampler, encode_images, load_codes, save_codes
from vqcodec.training.report import Display, Silent, write_row, write_samples
from vqcodec.training.schedule import Schedule
from vqcodec.training.start import exported_prior, exported_weights
from vqcodec.training.transform import TransformTrainer, evaluate

TRANSFORM_SHARE = 0.7  # of the minutes; the prior's codes and the decoder's adaptation take a tenth, the prior itself the rest
CODES_SHARE = 0.08
ADAPTATION_SHARE = 0.02
PRIOR_LEARNING_RATE = 1e-2  # of parameters whose unit is 64 integer steps: see bench/LOG.md
PRIOR_BATCH = 8
HELD_OUT = 16  # every 16th photograph where no validation folder is given
REPORT_IMAGES = 8  # photographs of the validation set in the card's table
REPORT_QUALITIES = (0, 25, 50, 75, 100)


@dataclass(frozen=True)
class TrainOptions:
    """How to train. `start` is the folder of an exported model that the training begins with.

    `batch` is that of one process; `crop` in pixels and `learning_rate` are the preset's unless given.
    """

    preset: str = "default"
    max_minutes: float = 120
    valid: Path | None = None
    start: Path | None = None
    batch: int = 8
    crop: int | None = None
    learning_rate: float | None = None
    threads: int | None = None
    seed: int = 0
    compiled: bool | None = None
    resume: bool = False

    @property
    def chosen(self) -> Preset:
        """The preset by its name."""
        return PRESETS[self.preset]

    def schedule(self, share: float, batch: int, learning_rate: float) -> Schedule:
        """A stage's part of the minutes."""
        crop = self.crop or self.chosen.crop
        return Schedule(10**9, self.max_minutes * share, batch=batch, crop=crop, seed=self.seed, learning_rate=learning_rate)


def train(folder: Path, out: Path, options: TrainOptions, display: Display) -> None:
    """Trains a model on the photographs below `folder` and exports it to `out`.

    Checkpoints, logs and sample pictures lie in `out/checkpoints`; `resume` continues from them and starts anew where there are
    none. Under `torchrun` all processes train together. Raises `TrainingError` for an unusable folder and for checkpoints or a
    model that would be overwritten, or checkpoints that do not fit.
    """
    checkpoints = out / "checkpoints"
    begun = any(checkpoints.glob("*.safetensors"))
    if begun and not options.resume:
        raise TrainingError(f"{checkpoints} holds an earlier training; continue it with --resume, or choose another --out")
    if (out / CARD).exists() and not begun:
        raise TrainingError(f"{out} holds a model and no checkpoints; choose another --out, or move the model away")
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["VQCODEC_THREADS"] = str(options.threads)  # of the exported model, which encodes the photographs for the prior
    world = World.join()
    display = display if world.first else Silent()
    images, held_out = load_data(folder, out, options, display)
    checkpoints.mkdir(parents=True, exist_ok=True)

    transform = train_transform(images, held_out, checkpoints, options, world, display)
    for row in evaluate(transform.average, held_out[:REPORT_IMAGES], [quality / 100 for quality in REPORT_QUALITIES]):
        display.line("transform: " + _figures(row))
    exported = export_transform(transform.average)
    # on a processor, what was exported takes a third of the time that torch takes
    encoder = transform.average if world.device.type == "cuda" else open_transform(transform.average.config, *exported)
    coded = load_codes(checkpoints / "codes.safetensors", transform.step)
    if not coded:
        with large_blocks_apart():
            coded = list(encode_images(encoder, images, options.seed + world.rank, options.max_minutes * CODES_SHARE))
        if world.size == 1:
            save_codes(checkpoints / "codes.safetensors", coded, transform.step)
    display.line(f"prior: {len(coded)} codings of photographs")
    prior_valid = list(encode_images(encoder, held_out[:REPORT_IMAGES], options.seed, math.inf, passes=1))
    del encoder  # and its sessions
    prior = train_prior(coded, prior_valid, checkpoints, options, world, display)
    if not world.first:
        return
    card = _card(options, len(images), transform, prior, len(coded))
    card["training"]["bits_per_position_held_out"] = prior.finish()
    config = transform.average.config
    if config.adaptations:
        with large_blocks_apart():
            samples = list(gather(open_transform(config, *exported), images, options.seed, options.max_minutes * ADAPTATION_SHARE))
        exported = with_basis(exported, fit(samples, config))
        card["training"]["adaptation_pieces"] = len(samples)
    export_model(exported, prior.average, out, out.resolve().name, card)
    for row in measure(out, held_out[:REPORT_IMAGES], REPORT_QUALITIES):
        display.line("model: " + _figures(row))
    display.line(f"model written to {out}; use it with --model {out}")


def load_data(folder: Path, out: Path, options: TrainOptions, display: Display) -> tuple[list[Tensor], list[Tensor]]:
    """The photographs to train on and those to report on; a folder within another is not part of it, nor are a training's pictures."""
    crop = options.crop or options.chosen.crop
    apart = [out, out / "checkpoints", *([options.valid] if options.valid else [])]
    images = load_images(folder, crop, display.line, apart)
    if options.valid is not None:
        held_out = load_images(options.valid, crop, display.line, [out, out / "checkpoints", folder])
    elif len(images) > 1:
        held_out, images = images[::HELD_OUT], [x for i, x in enumerate(images) if i % HELD_OUT]
    else:
        held_out = images
    display.line(f"{len(images)} photographs to train on, {len(held_out)} held out")
    return images, held_out


def train_transform(
    images: Sequence[Tensor], held_out: Sequence[Tensor], checkpoints: Path, options: TrainOptions, world: World, display: Display
) -> TransformTrainer:
    """Trains the transform to the end of its schedule, from its checkpoint where there is one."""
    schedule = options.schedule(TRANSFORM_SHARE, options.batch, options.learning_rate or options.chosen.learning_rate)
    start = exported_weights(options.start, options.chosen.config.transform) if options.start else None
    compiled = world.device.type == "cuda" if options.compiled is None else options.compiled
    preset = options.chosen
    trainer = TransformTrainer(preset.config.transform, schedule, world, plain=preset.plain, start=start, compiled=compiled)
    checkpoint = checkpoints / "transform.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
        display.line(f"transform: resumed at step {trainer.step}")
    shown = trainer.minutes
    for row in run(trainer, CropSampler(images, schedule, world), checkpoint):
        _note("transform", row, checkpoints, world, display)
        if world.first and trainer.started and row["minutes"] - shown > SAVE_MINUTES:
            write_samples(checkpoints / "samples.png", trainer.average, held_out, schedule.crop)
            shown = row["minutes"]
    if world.first and trainer.started:
        write_samples(checkpoints / "samples.png", trainer.average, held_out, schedule.crop)
    return trainer


def train_prior(
    coded: Sequence[CodedImage], held_out: Sequence[CodedImage], checkpoints: Path, options: TrainOptions, world: World, display: Display
) -> PriorTrainer:
    """Trains the prior on coded photographs to the end of its schedule, from its checkpoint where there is one."""
    schedule = options.schedule(1 - TRANSFORM_SHARE - CODES_SHARE - ADAPTATION_SHARE, PRIOR_BATCH, PRIOR_LEARNING_RATE)
    config = options.chosen.config
    trainer = PriorTrainer(config, schedule, world, exported_prior(options.start, config) if options.start else None, held_out)
    checkpoint = checkpoints / "prior.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
        display.line(f"prior: resumed at step {trainer.step}")
    for row in run(trainer, WindowSampler(coded, schedule.batch, schedule.seed, world), checkpoint):
        _note("prior", row, checkpoints, world, display)
    return trainer


def _note(stage: str, row: Row, checkpoints: Path, world: World, display: Display) -> None:
    """Logs and shows a row."""
    if world.first:
        write_row(checkpoints / f"{stage}.csv", row)
    display.figures(stage, row)


def _card(options: TrainOptions, photographs: int, transform: TransformTrainer, prior: PriorTrainer, coded: int) -> dict[str, Any]:
    """What `model.json` says of the training."""
    return {
        "created": time.strftime("%Y-%m-%d"),
        "training": {
            "preset": options.preset,
            "photographs": photographs,
            "start": str(options.start) if options.start else None,
            "transform": {"steps": transform.step, "minutes": round(transform.minutes, 1), "batch": options.batch * transform.world.size},
            "prior": {"steps": prior.step, "minutes": round(prior.minutes, 1), "coded_images": coded},
            "seed": options.seed,
            "threads": torch.get_num_threads(),
            "processes": transform.world.size,
            "machine": f"{transform.world.device.type}, {platform.machine()}",
            "vqcodec": __version__,
            "commit": _commit(),
            "torch": torch.__version__,
        },
    }


def measure(folder: Path, images: Sequence[Tensor], qualities: Sequence[float]) -> list[dict[str, float]]:
    """Real files of the exported model: mean bpp, MSE and PSNR over uint8 images (3, H, W), a row a quality."""
    model = load_model(folder)
    rows: list[dict[str, float]] = []
    for quality in qualities:
        figures: list[tuple[float, float]] = []
        for image in images:
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            data = codec.compress(pixels, quality, model)
            figures.append((metrics.bpp(len(data), *pixels.shape[:2]), metrics.mse(pixels, codec.decompress(data, model))))
        mean_bpp, mean_mse = np.mean(figures, axis=0)
        psnr = float(np.mean([metrics.psnr(mse) for _, mse in figures]))
        rows.append({"quality": quality, "bpp": float(mean_bpp), "mse": float(mean_mse), "psnr": psnr})
    return rows


def _commit() -> str | None:
    """The commit of the code that trains, with a + where the checkout was changed; None outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _figures(row: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in row.items())
