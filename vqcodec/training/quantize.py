"""Entropy-constrained residual vector quantisation (torch).

Shapes: latents `(N, D)`, codebooks `(S, K, D)`, codes `(N, S)`; N runs over batch and positions.

One level's quantiser chooses, stage after stage, the code that minimises `||r - e_k||^2 - w log2 p(k | context)`
(Chou, Lookabaugh and Gray 1989, eq. 5; with a learned conditional p as in NVTC, Feng et al. 2023, section 3.3).
The distance already is in bits: the caller scales the latents by `sqrt(lambda)` of the quality. w is the level's `rate_weight` (config.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.config import LevelConfig

LOG2_E = 1.4426950408889634
NOISE_STD = 0.85  # sqrt(1 / (2 ln 2)): where a unit of squared error and a bit trade evenly at high rate
SURE = 8.0  # nats by which code 0 of a new stage stands out: another one costs 12 bits at first
SHRINKAGE = 3  # positions' worth of zeros in each mean of the few positions that new stages start from
ROWS = 256  # products have a multiple of these, or a processor's library would prepare itself for each number of rows anew
SPREAD = 0.5  # deviation between split codes: closer ones would cost more bits than they save


class Quantized(NamedTuple):
    """latents (N, D) with straight-through gradient, codes (N, S), bits (N,), squared error (N,)."""

    latents: Tensor
    codes: Tensor
    bits: Tensor
    distance: Tensor


class ResidualQuantizer(nn.Module):
    """The residual codebooks of one level and their light conditional rate model."""

    def __init__(self, config: LevelConfig, context_width: int, plain: bool = False):
        super().__init__()
        self.config, self.plain = config, plain
        stages, size, dim = config.stages, config.codebook_size, config.dim
        self.codebooks = nn.Parameter(torch.randn(stages, size, dim))
        self.from_sum = nn.ModuleList([nn.Linear(dim, context_width) for _ in range(stages - 1)])
        self.hidden = nn.ModuleList([nn.Linear(context_width, context_width) for _ in range(stages)])
        self.logits = nn.ModuleList([nn.Linear(context_width, size) for _ in range(stages)])
        self.register_buffer("usage", torch.ones(stages, size), persistent=True)
        if plain:
            self.codebooks.requires_grad_(False)
            self.register_buffer("sums", torch.zeros(stages, size, dim), persistent=True)

    def raw_logits(self, stage: int, hidden: Tensor, quantized: Tensor) -> Tensor:
        """Logits of p(k | context, sum of the earlier stages) in nats: the context's `hidden` (N, C) and the sum (N, D) -> (N, K)."""
        if stage:
            hidden = hidden + self.from_sum[stage - 1](quantized)
        return self.logits[stage](F.leaky_relu(hidden, 0.1)).float()

    @torch.compiler.disable  # type: ignore # how many positions go on is not known beforehand
    def forward(self, latents: Tensor, context: Tensor, rate_weight: float | Tensor, paths: int = 1) -> Quantized:
        """Quantises `latents` (N, D) under `context` (N, C); `rate_weight` 0 is nearest neighbour, 1 the full rate.

        `paths` are kept after every stage of the search (the M-algorithm); 1 is the greedy search.
        """
        with torch.no_grad():
            codes, searched = self.search(latents.detach(), context.detach(), rate_weight, paths)
        total = torch.zeros_like(latents)  # sum of the chosen vectors, with gradient to the codebooks
        bits = latents.new_zeros(latents.shape[0])
        for stage in range(self.config.stages):
            longer = (searched > stage).nonzero()[:, 0]  # a position that has ended costs no more bits
            here = filled(longer)
            logits = self.raw_logits(stage, self.hidden[stage](context[here]), total.detach()[here])
            spent = F.cross_entropy(logits, codes[here, stage], reduction="none")[: len(longer)] * LOG2_E
            bits = bits.index_add(0, longer, spent)
            total = total + F.embedding(codes[:, stage], self.codebooks[stage])
        if self.training:
            self._count(codes)
            if self.plain:
                self._move(latents.detach(), codes)
        distance = (latents - total).square().sum(-1)
        return Quantized(total + (latents - latents.detach()), codes, bits, distance)

    def search(self, latents: Tensor, context: Tensor, rate_weight: float | Tensor, paths: int) -> tuple[Tensor, Tensor]:
        """The path through the stages with the smallest `||z - sum e||^2 + rate_weight * bits` that is found.

        Returns codes (N, S) and the number of stages searched (N,): a path ends with its first code 0, and a position where all its paths
        have (search.py).
        `rate_weight` comes on top of the level's own.
        """
        size, count = self.config.codebook_size, len(latents)
        weight = rate_weight * self.config.rate_weight * LOG2_E
        found = torch.zeros(count, self.config.stages, dtype=torch.long, device=latents.device)
        searched = found.new_zeros(count)
        here = torch.arange(count, device=latents.device)  # the positions that have not ended; their paths stand together
        total, residual = torch.zeros_like(latents), latents
        cost = latents.new_zeros(count)  # of each path so far: its squared distance, less that of no codes but 0, and its bits
        history = here.new_zeros(count, 0)
        kept = 1
        for stage in range(self.config.stages):
            logits = self.raw_logits(stage, self.hidden[stage](context[here]).repeat_interleave(kept, 0), total)
            table = self._continued(stage, cost, residual, logits, weight)
            if stage:  # what has ended goes on with code 0, at no cost
                ended = history[:, -1] == 0
                table[ended] = torch.inf
                table[ended, 0] = cost[ended]
            table = table.view(len(here), kept * size)
            following = 1 if stage == self.config.stages - 1 else paths
            least, best = table.min(-1, keepdim=True) if following == 1 else table.topk(following, -1, largest=False)
            which = best // size  # of the position's paths
            path, codes = torch.arange(len(here), device=here.device)[:, None] * kept + which, best - which * size
            history = torch.cat([history[path], codes[..., None]], -1)
            found[here, : stage + 1], searched[here] = history[:, 0], stage + 1
            longer = filled(codes.any(1).nonzero()[:, 0])
            here, path, codes, cost, history = (x[longer] for x in (here, path, codes, least, history))
            total = total[path.flatten()] + F.embedding(codes.flatten(), self.codebooks[stage])
            residual = latents[here].repeat_interleave(following, 0) - total
            cost, history, kept = cost.flatten(), history.flatten(0, 1), following
        return found, searched

    def _continued(self, stage: int, cost: Tensor, residual: Tensor, logits: Tensor, weight: float | Tensor) -> Tensor:
        """Costs (N, K) of all codes after paths of `cost` (N,): bits by `logits` (N, K), and what e_k changes in ||r - e - rest||^2.

        The rest are the later stages' codes 0; and the change is that from code 0, after which the distance stays as it was.
        """
        codebook = self.codebooks[stage].detach()
        rest = self.codebooks[stage + 1 :, 0].detach().sum(0)
        further = codebook - codebook[0]
        constant = (further * (codebook + codebook[0] + 2 * rest)).sum(-1, keepdim=True)
        with torch.autocast(residual.device.type, enabled=False):  # bfloat16 distances would choose wrong codes
            # -2 r.e + constant + cost - weight * logits as one product: each such table takes as much memory as all else together
            cost = cost + weight * logits.logsumexp(-1)
            left = torch.cat([F.pad(residual, (0, 1), value=-0.5), -0.5 * cost[:, None]], 1)
            right = torch.cat([further, F.pad(constant, (0, 1), value=1)], 1)
            if isinstance(weight, Tensor):
                return torch.addmm(logits.mul_(-weight), left, right.T, alpha=-2.0)
            return torch.addmm(logits, left, right.T, beta=-weight, alpha=-2.0)

    @torch.no_grad()
    def _count(self, chosen: Tensor) -> None:
        """Usage as a moving average."""
        new = torch.zeros_like(self.usage)
        for stage, codes in enumerate(chosen.T):
            new[stage].index_add_(0, codes, torch.full(codes.shape, 0.01, device=codes.device))
        self.usage.mul_(0.99).add_(_of_all(new))

    @torch.no_grad()
    def _move(self, latents: Tensor, codes: Tensor) -> None:
        """Codebooks as moving averages of what was assigned to them (van den Oord et al. 2017, appendix A.1)."""
        new, residual = torch.zeros_like(self.sums), latents.clone()
        for stage, chosen in enumerate(codes.T):
            new[stage].index_add_(0, chosen, 0.01 * residual)
            residual -= self.codebooks[stage][chosen]
        self.sums.mul_(0.99).add_(_of_all(new))
        self.codebooks.copy_(self.sums / self.usage.clamp(min=1e-5)[..., None])

    def used(self) -> Tensor:
        """The effective number of codes, as a fraction: the perplexity of their usage over their number, mean over stages."""
        share = self.usage / self.usage.sum(1, keepdim=True)
        return (-(share * (share + 1e-9).log()).sum(1)).exp().mean() / self.config.codebook_size

    def noisy(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The warm-up's stand-in for quantisation: additive noise and the capacity of that Gaussian channel.

        Returns latents (N, D) plus noise, and bits (N,) `sum 0.5 log2(1 + z^2 / var)`.
        """
        bits = 0.5 * torch.log2(1 + latents.square() / NOISE_STD**2).sum(-1)
        return latents + NOISE_STD * torch.randn_like(latents), bits

    @torch.no_grad()
    def kmeans_start(self, latents: Tensor, first: int = 0, iterations: int = 10) -> None:
        """Lloyd's algorithm stage after stage, from stage `first` on: latents (N, D), N >= K, or what the stages before leave.

        Code 0 of every stage starts at zero. New stages after old ones start with the rate model of the last of these.
        """
        residual = latents.clone()
        spread, shrinkage = (0.0, SHRINKAGE) if first else (SPREAD, 0)
        for stage in range(first, self.config.stages):
            codebook = residual[torch.randperm(len(residual), device=residual.device)[: self.config.codebook_size]]
            codebook[0] = 0
            for _ in range(iterations):
                codes = torch.cdist(residual, codebook).argmin(-1)
                sums = torch.zeros_like(codebook).index_add_(0, codes, residual)
                counts = torch.bincount(codes, minlength=len(codebook))
                used = counts > 0
                used[0] = False
                codebook[used] = sums[used] / (counts[used, None] + shrinkage)
            codebook[1:] += spread * torch.randn_like(codebook[1:])  # finer codes than that are not worth their bits
            self.codebooks[stage] = codebook
            residual = residual - codebook[torch.cdist(residual, codebook).argmin(-1)]
            if first:
                self._rates_of_another(stage, first - 1)
        self.usage[first:] = 1.0
        if self.plain:
            self.sums.copy_(self.codebooks)

    def _rates_of_another(self, stage: int, other: int) -> None:
        """`stage` ends a position as `other` does; which code goes on is open."""
        self.hidden[stage].load_state_dict(self.hidden[other].state_dict())
        if other:
            self.from_sum[stage - 1].load_state_dict(self.from_sum[other - 1].state_dict())
        for to, of in zip(self.logits[stage].parameters(), self.logits[other].parameters(), strict=True):
            to[0], to[1:] = of[0], of[1:].mean(0)

    @torch.no_grad()
    def silence(self, first: int) -> None:
        """Stages from `first` on add nothing, and code 0 is all but certain: others are taken where they save more than their bits."""
        self.codebooks[first:] = 0
        for logits in self.logits[first:]:
            nn.init.normal_(logits.weight, std=0.02)
            nn.init.zeros_(logits.bias)
            logits.bias[0] = SURE

    @torch.no_grad()
    def split_dead(self, threshold: float) -> int:
        """Replaces codes used less than `threshold` of the mean by halves of the most used; returns how many."""
        replaced = 0
        for stage in range(self.config.stages):
            usage = self.usage[stage]
            dead = (usage < threshold * usage.mean()).nonzero()[:, 0]
            # a few at a time, from codes used more than the mean: splitting rarer ones makes two that the rate term empties again
            parents = usage.argsort(descending=True)[: min(len(dead), self.config.codebook_size // 32)]
            parents = parents[usage[parents] > usage.mean()]
            parents = parents[parents != 0]  # the zero vector is the cheapest code as a whole only
            dead = dead[: len(parents)]
            codebook = self.codebooks[stage]
            codebook[dead] = codebook[parents] + SPREAD * torch.randn_like(codebook[parents])
            layer = self.logits[stage]
            layer.bias[parents] -= 0.6931  # each half is chosen half as often: one bit dearer
            layer.weight[dead], layer.bias[dead] = layer.weight[parents], layer.bias[parents]
            usage[parents] *= 0.5
            usage[dead] = usage[parents]
            replaced += len(dead)
        return replaced


def _of_all(sums: Tensor) -> Tensor:
    """The sums over all processes that train together, so that their moving averages are those of one with the joint batch."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def filled(rows: Tensor) -> Tensor:
    """Indices of rows (M,), the last one again and again up to a multiple of `ROWS`."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % ROWS)])
