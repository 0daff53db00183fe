"""`vqcodec train`: photographs in, model folder out. Transform first, then the prior on its codes, then the export."""

from __future__ import annotations

import math
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcodec import __version__, codec, metrics
from vqcodec.config import LevelConfig, ModelConfig, PriorConfig, TransformConfig
from vqcodec.errors import TrainingError
from vqcodec.model import load_model
from vqcodec.training.data import CropSampler, load_images
from vqcodec.training.export import export_model
from vqcodec.training.prior import CodedImage, PriorTrainer, WindowSampler, encode_images, evaluate_prior, load_codes, save_codes, write_log
from vqcodec.training.schedule import Schedule
from vqcodec.training.transform import TransformTrainer, evaluate

Report = Callable[[str], None]

PRESETS = {
    "default": ModelConfig(
        TransformConfig(
            widths=(64, 96, 128, 160),
            encoder_depths=(3, 6, 4, 2),
            decoder_depths=(4, 8, 5, 2),
            levels=(LevelConfig(2, 512, 16), LevelConfig(3, 512, 24), LevelConfig(6, 512, 32)),
            lambda_min=24.0,
            lambda_max=2400.0,
            anchors=5,
        ),
        PriorConfig(channels=96, trunk_blocks=(3, 4, 5), context_blocks=(3, 3), quality_anchors=9),
    ),
    "tiny": ModelConfig(  # for tests and for trying a data set out
        TransformConfig(
            widths=(12, 16, 16, 16),
            encoder_depths=(1, 1, 1, 1),
            decoder_depths=(1, 1, 1, 1),
            levels=(LevelConfig(1, 32, 4), LevelConfig(2, 32, 4), LevelConfig(2, 64, 4)),
            lambda_min=24.0,
            lambda_max=1600.0,
            anchors=3,
        ),
        PriorConfig(channels=16, trunk_blocks=(1, 1, 1), context_blocks=(1, 1), quality_anchors=3),
    ),
}
CROP = {"default": 192, "tiny": 96}  # pixels; also the smallest image side that is used
TRANSFORM_SHARE = 0.7  # of the minutes; the prior's codes take a tenth, the prior itself the rest
CODES_SHARE = 0.1
PRIOR_LEARNING_RATE = 1e-2  # of parameters whose unit is 64 integer steps: see bench/LOG.md
HELD_OUT = 16  # every 16th photograph where no validation folder is given
REPORT_IMAGES = 8  # photographs of the validation set in the card's table
REPORT_QUALITIES = (0, 25, 50, 75, 100)


def train(
    folder: Path,
    out: Path,
    *,
    preset: str = "default",
    max_minutes: float = 120,
    valid: Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: Report = print,
) -> None:
    """Trains a model on the photographs below `folder` and exports it to `out`.

    Checkpoints lie in `out/checkpoints`; `resume` continues from them and starts anew where there are none.
    Raises `TrainingError` for an unusable folder and for checkpoints that would be overwritten or do not fit.
    """
    checkpoints = out / "checkpoints"
    if not resume and any(checkpoints.glob("*.safetensors")):
        raise TrainingError(f"{checkpoints} holds an earlier training; continue it with --resume, or choose another --out")
    if threads:
        torch.set_num_threads(threads)
    config, crop = PRESETS[preset], CROP[preset]
    images = load_images(folder, crop, progress)
    if valid is not None:
        held_out = load_images(valid, crop, progress)
    else:
        held_out, images = (images[::HELD_OUT], [x for i, x in enumerate(images) if i % HELD_OUT]) if len(images) > 1 else (images, images)
    progress(f"{len(images)} photographs to train on, {len(held_out)} held out")
    checkpoints.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    schedule = Schedule(10**9, max_minutes * TRANSFORM_SHARE, crop=crop, seed=seed)
    transform = train_transform(config, images, checkpoints, schedule, device, progress)
    for row in evaluate(transform.average, held_out[:REPORT_IMAGES], [quality / 100 for quality in REPORT_QUALITIES]):
        progress("transform: " + _figures(row))
    minutes = max_minutes * (1 - TRANSFORM_SHARE - CODES_SHARE)
    coded = load_codes(checkpoints / "codes.safetensors", transform.step)
    if not coded:
        coded = list(encode_images(transform.average, images, seed, max_minutes * CODES_SHARE))
        save_codes(checkpoints / "codes.safetensors", coded, transform.step)
    progress(f"prior: {len(coded)} photographs encoded")
    prior = train_prior(
        config, coded, checkpoints, Schedule(10**9, minutes, seed=seed, learning_rate=PRIOR_LEARNING_RATE), device, progress
    )
    prior_valid = list(encode_images(transform.average, held_out[:REPORT_IMAGES], seed, math.inf, passes=1))
    card = {
        "created": time.strftime("%Y-%m-%d"),
        "training": {
            "preset": preset,
            "photographs": len(images),
            "transform": {"steps": transform.step, "minutes": round(transform.minutes, 1)},
            "prior": {"steps": prior.step, "minutes": round(prior.minutes, 1), "coded_images": len(coded)},
            "bits_per_code_held_out": evaluate_prior(prior.average, prior_valid),
            "seed": seed,
            "threads": torch.get_num_threads(),
            "machine": f"{device.type}, {platform.machine()}",
            "vqcodec": __version__,
            "commit": _commit(),
            "torch": torch.__version__,
        },
    }
    export_model(transform.average, prior.average, out, out.resolve().name, card)
    for row in measure(out, held_out[:REPORT_IMAGES], REPORT_QUALITIES):
        progress("model: " + _figures(row))
    progress(f"model written to {out}; use it with --model {out}")


def train_transform(
    config: ModelConfig, images: Sequence[Tensor], checkpoints: Path, schedule: Schedule, device: torch.device, progress: Report
) -> TransformTrainer:
    """Trains the transform to the end of its schedule, from its checkpoint where there is one."""
    trainer = TransformTrainer(config.transform, schedule, device)
    checkpoint = checkpoints / "transform.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
        progress(f"transform: resumed at step {trainer.step}")
    for row in trainer.run(CropSampler(images, schedule, device), checkpoint):
        write_log(checkpoints / "transform.jsonl", row)
        progress("transform: " + _figures(row))
    return trainer


def train_prior(
    config: ModelConfig, coded: Sequence[CodedImage], checkpoints: Path, schedule: Schedule, device: torch.device, progress: Report
) -> PriorTrainer:
    """Trains the prior on coded photographs to the end of its schedule, from its checkpoint where there is one."""
    trainer = PriorTrainer(config, schedule, device)
    checkpoint = checkpoints / "prior.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
        progress(f"prior: resumed at step {trainer.step}")
    for row in trainer.run(WindowSampler(coded, schedule.batch, schedule.seed), checkpoint):
        write_log(checkpoints / "prior.jsonl", row)
        progress("prior: " + _figures(row))
    return trainer


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
