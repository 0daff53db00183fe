"""Trains the transform: warm-up with noise, k-means start, then rate and distortion together, averaged weights.

Loss per image, in bits per pixel: `rate + lambda * MSE + VQ distance`, with the VQ distance already in bits
(quantize.py), and lambda drawn anew for every image of every batch so that one net serves all qualities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vqcodec.config import LEVELS, TransformConfig
from vqcodec.training.checkpoint import load_checkpoint, save_checkpoint
from vqcodec.training.data import pad_to_multiple
from vqcodec.training.loop import World
from vqcodec.training.quantize import SPREAD
from vqcodec.training.schedule import Schedule
from vqcodec.training.start import new_latents, start_from, start_latents
from vqcodec.training.vqvae import VQVAE

WARMUP = 0.06  # fraction of the run with noise instead of quantisers
RATE_END = 0.12  # fraction at which the rate term, from RATE_FIRST at the k-means start, has grown to 1
RATE_FIRST = 0.3
START_BATCHES = 12  # for the k-means start
GROWTH_BATCHES = 40  # for that of new stages: few positions use all of the old ones
COOLDOWN = 0.4  # fraction of the run over which the learning rate falls to zero
CONTINUED_COOLDOWN = 0.85  # that of a run from trained weights: what a high learning rate loses at first must be won back
WARMUP_DROP, DROP = 0.15, 0.05  # chance that a batch is decoded without its bottom level (half of them also without middle)
COMMITMENT = 0.25  # weight of the VQ distance in a plain training (van den Oord et al. 2017, eq. 3)
SPLIT_STEPS = 200
SPLIT_END = 0.75  # no codes are split after this fraction, so that the rate model can settle
CODEBOOK_BOOST = 10.0  # learning rate of the codebooks against that of the networks
BALANCE = 0.35  # losses are divided by lambda**BALANCE: high qualities must not own the gradient


def learning_rate_factor(progress: float, cooldown: float = COOLDOWN) -> float:
    """Constant, then a cosine to zero over the last `cooldown`."""
    if progress < 1 - cooldown:
        return min(1.0, progress / 0.005 + 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - 1 + cooldown) / cooldown))


def rate_ramp(progress: float) -> float:
    """Weight of the rate term after the k-means start."""
    return min(1.0, max(0.0, RATE_FIRST + (1 - RATE_FIRST) * (progress - WARMUP) / (RATE_END - WARMUP)))


class TransformTrainer:
    """Model, averaged weights, optimiser and the step that ties them; saves and resumes exactly.

    `start` are weights to continue from (start.py). A `plain` training is that of the papers (presets.py).
    """

    def __init__(
        self,
        config: TransformConfig,
        schedule: Schedule,
        world: World,
        *,
        plain: bool = False,
        start: dict[str, Tensor] | None = None,
        compiled: bool = False,
    ):
        torch.manual_seed(schedule.seed)
        self.schedule, self.world, self.plain = schedule, world, plain
        model = VQVAE(config, plain)
        self.kept = start_from(model, start) if start is not None else [0] * len(model.quantizers)  # stages a level to go on from
        self.continued = any(self.kept)  # no warm-up
        self.model = model.to(world.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.parallel = world.parallel(self.model)
        if compiled:
            self.parallel = cast(nn.Module, torch.compile(self.parallel))
        codebooks = [quantizer.codebooks for quantizer in self.model.quantizers]
        others = [p for p in self.model.parameters() if all(p is not c for c in codebooks)]
        # the codebooks must keep up with latents that a whole network moves
        groups = [{"params": others, "boost": 1.0}, {"params": codebooks, "boost": CODEBOOK_BOOST}]
        self.optimizer = torch.optim.Adam(groups, lr=schedule.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        grown = bool(new_latents(self.model).any()) or self.kept != [level.stages for level in config.levels]
        self.started = self.continued and not grown  # whether k-means has been run
        self.minutes = 0.0

    def prepare(self, draw: Callable[[int], Tensor], progress: float) -> None:
        """The k-means start after the warm-up, and from then on the splitting of dead codes."""
        if not self.started and (self.plain or self.continued or progress >= WARMUP):
            self.kmeans_start([draw(-1 - index) for index in range(GROWTH_BATCHES if self.continued else START_BATCHES)])
        elif self.started and not self.plain and progress < SPLIT_END and self.step % SPLIT_STEPS == SPLIT_STEPS - 1:
            torch.manual_seed(self.schedule.seed * 1_000_003 - 1 - self.step)  # nor may what is split depend on it
            for quantizer in self.model.quantizers:
                quantizer.split_dead(0.02)
                self.world.share([*quantizer.parameters(), *quantizer.buffers()])

    def qualities(self, count: int) -> Tensor:
        """This process's part of the batch's qualities (B,): stratified, so that every batch sees the whole range."""
        total = count * self.world.size
        return ((torch.arange(total) + torch.rand(total)) / total)[self.world.rank :: self.world.size].to(self.world.device)

    def train_step(self, images: Tensor, progress: float) -> dict[str, Tensor]:
        """One optimiser step on float images (B, 3, H, W); returns its figures as scalars on the device."""
        noisy = not self.started
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.step)  # a step's noise must not depend on when a run was resumed
        quality = self.qualities(len(images))
        drop = (WARMUP_DROP if noisy else DROP) * torch.rand(()).reciprocal().item()
        levels = 3 if drop < 1 or self.plain else 2 if drop < 2 else 1
        rate_weight = 0.0 if self.plain else 1.0 if self.continued else rate_ramp(progress)
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.step + 7919 * self.world.rank)  # each process its own noise
        with self.world.autocast():
            loss, figures = self.loss(images, quality, rate_weight, noisy, levels)
        factor = learning_rate_factor(progress, CONTINUED_COOLDOWN if self.continued else COOLDOWN)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * factor * group["boost"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.update_average()
        return figures

    def loss(
        self, images: Tensor, quality: Tensor, rate_weight: float, noisy: bool = False, levels: int = 3
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, 3, H, W) in [0, 1], quality (B,) -> the loss, with its gradient, and the figures to report."""
        self.model.train()
        weight_of_rate = torch.tensor(rate_weight, device=images.device)  # a number would compile the net anew at every step
        result = self.parallel(images.contiguous(memory_format=torch.channels_last), quality, weight_of_rate, noisy, levels)
        weight = self.model.lagrangian(quality)
        mse = (result.images - images).square().mean((1, 2, 3))
        bits, distance = sum(result.bits), sum(result.distance)
        if self.plain:
            loss = weight * mse + COMMITMENT * distance
        else:
            loss = weight * mse + distance + bits * (1.0 if noisy else rate_weight)
            loss = loss * (weight / self.model.config.lambda_min) ** -BALANCE
        psnr = -10 * (mse.detach() + 1e-9).log10()
        figures = {
            "loss": loss.detach().mean(),
            "mse": 65025 * mse.detach().mean(),
            "psnr": psnr.mean(),
            "bpp": bits.detach().mean(),
            "vq": distance.detach().mean(),
            **{f"bpp_{name}": level.detach().mean() for name, level in zip(LEVELS, result.bits, strict=True)},
            "low_psnr": psnr[0],
            "high_psnr": psnr[-1],
            "codes_used": torch.stack([quantizer.used() for quantizer in self.model.quantizers if quantizer.config.stages]).mean(),
        }
        return loss.mean(), figures

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average of the weights, with a horizon that grows to 1,000 steps."""
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for mean, value in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(value)

    @torch.no_grad()
    def kmeans_start(self, batches: Sequence[Tensor]) -> None:
        """Starts every codebook from the latents that the net gives for these batches; of quantisers that came along, new stages."""
        torch.manual_seed(self.schedule.seed * 1_000_003 - 1)  # the start must not depend on when a run was resumed either
        found: list[list[Tensor]] = []
        self.model.eval()  # nothing is counted
        # the upper half of the qualities, where latents are widest: codes near zero are plenty in any case
        quality = torch.linspace(0.5, 1, len(batches[0]), device=self.world.device)
        if self.continued and new_latents(self.model).any():
            start_latents(self.model, ((images, quality) for images in batches))
        for images in batches:
            found.append(self.model.latents_for_start(images, quality, self.kept))
        for quantizer, first, parts in zip(self.model.quantizers, self.kept, zip(*found, strict=True), strict=True):
            latents = torch.cat(parts)
            while len(latents) < 2 * quantizer.config.codebook_size:
                latents = torch.cat([latents, latents + SPREAD * torch.randn_like(latents)])
            quantizer.kmeans_start(latents[torch.randperm(len(latents), device=self.world.device)[:20_000]], first)
        self.world.share([*self.model.parameters(), *self.model.buffers()])
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
