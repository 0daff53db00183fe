"""Trains the transform: warm-up with noise, k-means start, then rate and distortion together, averaged weights.

Loss per image, in bits per pixel: `rate + lambda * MSE + VQ distance`, with the VQ distance already in bits
(quantize.py), and lambda drawn anew for every image of every batch so that one net serves all qualities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vqcodec.config import LEVELS, TransformConfig
from vqcodec.training.checkpoint import load_checkpoint, save_checkpoint
from vqcodec.training.data import CropSampler, pad_to_multiple
from vqcodec.training.quantize import SPREAD
from vqcodec.training.schedule import Clock, Schedule
from vqcodec.training.start import start_from
from vqcodec.training.vqvae import VQVAE

WARMUP = 0.06  # fraction of the run with noise instead of quantisers
RATE_END = 0.12  # fraction at which the rate term, from RATE_FIRST at the k-means start, has grown to 1
RATE_FIRST = 0.3
START_BATCHES = 12  # for the k-means start
COOLDOWN = 0.4  # fraction of the run over which the learning rate falls to zero
WARMUP_DROP, DROP = 0.15, 0.05  # chance that a batch is decoded without its bottom level (half of them also without middle)
SPLIT_END = 0.75  # no codes are split after this fraction, so that the rate model can settle
CODEBOOK_BOOST = 10.0  # learning rate of the codebooks against that of the networks
BALANCE = 0.35  # losses are divided by lambda**BALANCE: high qualities must not own the gradient


def learning_rate_factor(progress: float) -> float:
    """Constant, then a cosine to zero over the last `COOLDOWN`."""
    if progress < 1 - COOLDOWN:
        return min(1.0, progress / 0.005 + 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - 1 + COOLDOWN) / COOLDOWN))


def rate_ramp(progress: float) -> float:
    """Weight of the rate term after the k-means start."""
    return min(1.0, max(0.0, RATE_FIRST + (1 - RATE_FIRST) * (progress - WARMUP) / (RATE_END - WARMUP)))


class TransformTrainer:
    """Model, averaged weights, optimiser and the step that ties them; saves and resumes exactly."""

    def __init__(self, config: TransformConfig, schedule: Schedule, device: torch.device, start: dict[str, Tensor] | None = None):
        torch.manual_seed(schedule.seed)
        self.schedule, self.device = schedule, device
        model = VQVAE(config)
        self.continued = start is not None and start_from(model, start)  # quantisers and all: no warm-up
        self.model = model.to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        codebooks = [quantizer.codebooks for quantizer in self.model.quantizers]
        others = [p for p in self.model.parameters() if all(p is not c for c in codebooks)]
        # the codebooks must keep up with latents that a whole network moves
        groups = [{"params": others, "boost": 1.0}, {"params": codebooks, "boost": CODEBOOK_BOOST}]
        self.optimizer = torch.optim.Adam(groups, lr=schedule.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        self.started = self.continued  # whether the k-means start has been made
        self.minutes = 0.0

    def run(self, sampler: CropSampler, checkpoint: Path, save_every: float = 5.0) -> Iterator[dict[str, float]]:
        """Trains to the end of the schedule; yields a row of figures every 50 steps."""
        clock = Clock(self.schedule, self.minutes)
        saved, count = clock.minutes(), 0
        sums: dict[str, Tensor] = {}
        while (progress := clock.progress(self.step)) < 1:
            if progress >= WARMUP and not self.started:
                self.kmeans_start([sampler(-1 - index) for index in range(START_BATCHES)])
            row = self.train_step(sampler(self.step), progress)
            for key, value in row.items():  # tensors: a number asked for at every step would make an accelerator wait
                sums[key] = sums[key] + value if key in sums else value
            self.step, count, self.minutes = self.step + 1, count + 1, clock.minutes()
            if count == 50:
                yield {"step": self.step, "minutes": self.minutes, **{k: v.item() / count for k, v in sums.items()}}
                sums, count = {}, 0
            if clock.minutes() - saved > save_every:
                self.save(checkpoint)
                saved = clock.minutes()
        self.save(checkpoint)

    def train_step(self, images: Tensor, progress: float) -> dict[str, Tensor]:
        """One optimiser step on float images (B, 3, H, W); returns its figures as scalars on the device."""
        noisy = progress < WARMUP and not self.started
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.step)  # a step's noise must not depend on when a run was resumed
        # stratified: every batch sees the whole range of qualities
        quality = (torch.arange(len(images)) + torch.rand(len(images))) / len(images)
        quality = quality.to(self.device)
        drop = (WARMUP_DROP if noisy else DROP) * torch.rand(()).reciprocal().item()
        levels = 3 if drop < 1 else 2 if drop < 2 else 1
        rate_weight = 1.0 if self.continued else rate_ramp(progress)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16):
            images_last = images.contiguous(memory_format=torch.channels_last)
            result = self.model(images_last, quality, rate_weight, noisy, levels)
        weight = self.model.lagrangian(quality)
        mse = (result.images - images).square().mean((1, 2, 3))
        bits, distance = sum(result.bits), sum(result.distance)
        loss = weight * mse + distance + bits * (1.0 if noisy else rate_weight)
        loss = (loss * (weight / self.model.config.lambda_min) ** -BALANCE).mean()
        factor = learning_rate_factor(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * factor * group["boost"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        replaced = 0
        if not noisy and progress < SPLIT_END and self.step % 200 == 199:
            replaced = sum(quantizer.split_dead(0.02) for quantizer in self.model.quantizers)
        self.update_average()
        psnr = -10 * (mse.detach() + 1e-9).log10()
        return {
            "loss": loss.detach(),
            "mse": mse.detach().mean(),
            "bpp": bits.detach().mean(),
            "vq": distance.detach().mean(),
            **{f"bpp_{name}": level.detach().mean() for name, level in zip(LEVELS, result.bits, strict=False)},
            "low_psnr": psnr[0],
            "high_psnr": psnr[-1],
            "replaced": torch.tensor(float(replaced)),
        }

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average of the weights, with a horizon that grows to 1,000 steps."""
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for mean, value in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(value)

    @torch.no_grad()
    def kmeans_start(self, batches: Sequence[Tensor]) -> None:
        """Starts every codebook from the latents that the warmed-up net gives for these batches."""
        torch.manual_seed(self.schedule.seed * 1_000_003 - 1)  # the start must not depend on when a run was resumed either
        found: list[list[Tensor]] = []
        for images in batches:
            # the upper half of the qualities, where latents are widest: codes near zero are plenty in any case
            quality = torch.linspace(0.5, 1, len(images), device=self.device)
            found.append(self.model.latents_for_start(images, quality))
        for quantizer, parts in zip(self.model.quantizers, zip(*found, strict=True), strict=True):
            latents = torch.cat(parts)
            while len(latents) < 2 * quantizer.config.codebook_size:
                latents = torch.cat([latents, latents + SPREAD * torch.randn_like(latents)])
            quantizer.kmeans_start(latents[torch.randperm(len(latents), device=self.device)[:20_000]])
        self.average.load_state_dict(self.model.state_dict())
        self.started = True

    def save(self, path: Path) -> None:
        """Writes everything that a resume needs, atomically."""
        state = {"step": self.step, "minutes": self.minutes, "started": self.started, "continued": self.continued}
        save_checkpoint(path, {"model": self.model, "average": self.average}, self.optimizer, state)

    def load(self, path: Path) -> None:
        """Restores what `save` wrote; raises `TrainingError` where it does not fit."""
        state = load_checkpoint(path, {"model": self.model, "average": self.average}, self.optimizer)
        self.step, self.minutes = state["step"], state["minutes"]
        self.started, self.continued = state["started"], state["continued"]


@torch.no_grad()
def evaluate(model: VQVAE, images: Sequence[Tensor], qualities: Sequence[float]) -> list[dict[str, float]]:
    """Estimated rate (light conditional model) and distortion on whole uint8 images (3, H, W), a row a quality."""
    model.eval()
    device = next(model.parameters()).device
    rows: list[dict[str, float]] = []
    for quality in qualities:
        bits, mse, psnr = 0.0, 0.0, 0.0
        levels = [0.0, 0.0, 0.0]
        for image in images:
            original = image[None].to(device).float() / 255
            padded = pad_to_multiple(original, 32)
            result = model(padded, torch.tensor([float(quality)], device=device), 1.0)
            height, width = image.shape[1:]
            scale = padded.shape[2] * padded.shape[3] / (height * width)
            pixels = (result.images[:, :, :height, :width].clamp(0, 1) * 255).round() / 255
            error = (pixels - original).square().mean().item()
            per_level = [b.item() * scale for b in result.bits]
            levels = [a + b for a, b in zip(levels, per_level, strict=True)]
            bits, mse, psnr = bits + sum(per_level), mse + error, psnr - 10 * math.log10(error + 1e-12)
        n = len(images)
        rows.append(
            {
                "quality": quality,
                "bpp": bits / n,
                "mse": mse / n * 65025,
                "psnr": psnr / n,
                **{f"bpp_{i}": v / n for i, v in enumerate(levels)},
            }
        )
    return rows
