"""The search for codes: entropy-constrained residual vector quantisation in numpy, as training/quantize.py has it in torch.

Shapes: latents `(N, D)`, context `(N, C)`, codebooks `(S, K, D)`, codes `(S, N)`, or `(R, S, N)` where the R cheapest paths are wanted;
N runs over positions.

Stage after stage, the paths with the smallest `||z - sum e||^2 / w - log2 p(codes | context)` so far go on (entropy-constrained vector
quantisation: Chou, Lookabaugh and Gray 1989, eq. 5; with the M-algorithm: Jelinek and Anderson 1971), p by the transform's light
conditional model, w the level's `rate_weight` (config.py). The prior that writes the file knows more, but needs the finer codes'
neighbours, which are not chosen yet.
A path ends with its first code 0: all later ones are 0 too. Codes 0 are no zero vectors, and the decoder adds those of all later stages:
so a path counts as if it ended where it is. A position ends where all its paths have, and most do early.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.blas import one_blas_thread
from vqcodec.config import LevelConfig
from vqcodec.errors import InvalidModelError, SettingError
from vqcodec.kernel import library
from vqcodec.search_kernel import CompiledSearch

Floats = NDArray[np.float32]

LOG2_E = np.float32(1.4426950408889634)
SLOPE = np.float32(0.1)  # of the leaky ReLU
COMPILED_ROWS = 256  # positions that the compiled search gets at once
TABLE_COSTS = 1 << 18  # of the codes after each path, at once: such a table (1 MiB) stays in the processor's cache


@dataclass(frozen=True)
class Stage:
    """One stage's codebook and its part of the conditional model. Matrices take their biases as a last row."""

    codebook: Floats  # (K, D)
    from_sum: Floats | None  # (D + 1, C): what the sum of the earlier stages says; None for the first
    hidden: Floats  # (C + 1, C)
    logits: Floats  # (C + 1, K): in bits, but for what all codes share
    rate_weight: float = 1.0
    rest: Floats | float = 0.0  # (D,): what the later stages' codes 0 add up to

    @cached_property
    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def costs(self) -> Floats:
        """(D + 2, K): with a residual r, 1 and a cost this gives `(|r - e - rest|^2 - |r - e_0 - rest|^2) / rate_weight + cost`."""
        further = self.codebook - self.codebook[0]
        constant = (further * (self.codebook + self.codebook[0] + 2 * self.rest)).sum(1)
        distances = np.concatenate([-2 * further.T, constant[None]]) / np.float32(self.rate_weight)
        return np.concatenate([distances, np.ones_like(constant)[None]])


class Search:
    """The quantiser of one level; `compiled` is the same for the kernel (search_kernel.py), where there is one."""

    def __init__(self, stages: list[Stage]):
        self.stages = stages

    @cached_property
    def compiled(self) -> CompiledSearch | None:
        """Made when it is first used."""
        kernel = library()
        return CompiledSearch(kernel, self.stages) if kernel and self.stages else None

    @staticmethod
    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def from_tensors(tensors: Mapping[str, NDArray[Any]], prefix: str, config: LevelConfig, width: int) -> Search:
        """Reads the tensors `<prefix>.…` of a level whose context is `width` wide; raises `InvalidModelError` for missing or wrong ones."""

        def take(name: str, *shape: int) -> Floats:
            tensor = tensors.get(f"{prefix}.{name}")
            if tensor is None or tensor.shape != shape or tensor.dtype not in (np.float16, np.float32):
                found = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
                raise InvalidModelError(f"the model's {prefix}.{name} is {found} instead of floats {shape}; export the model again")
            return tensor.astype(np.float32)

        def linear(name: str, inputs: int, outputs: int) -> Floats:
            return np.concatenate([take(f"{name}.weight", outputs, inputs).T, take(f"{name}.bias", outputs)[None]])

        size, dim = config.codebook_size, config.dim
        codebooks = take("codebooks", config.stages, size, dim)
        rests = codebooks[::-1, 0].cumsum(0)[::-1] - codebooks[:, 0]
        stages: list[Stage] = []
        for index, codebook in enumerate(codebooks):
            logits = linear(f"logits.{index}", width, size)
            logits = (logits - logits.mean(1, keepdims=True)) * LOG2_E  # without what all codes share, so that powers stay in range
            from_sum = linear(f"from_sum.{index - 1}", dim, width) if index else None
            stages.append(Stage(codebook, from_sum, linear(f"hidden.{index}", width, width), logits, config.rate_weight, rests[index]))
        return Search(stages)

    def __call__(self, latents: Floats, context: Floats, paths: int) -> NDArray[np.int32]:
        """Latents (N, D), whose squared distances are in bits, and their context (N, C) -> codes (S, N); greedy with one path.

        Raises `ValueError` for arrays of other shapes or types.
        """
        best: NDArray[np.int32] = self.ranked(latents, context, paths, 1)[0]
        return best

    @one_blas_thread()
    def ranked(self, latents: Floats, context: Floats, paths: int, count: int) -> NDArray[np.int32]:
        """The same, but the `count` cheapest of the paths, which are at least so many: codes (R, S, N), the best ones first.

        Where there are fewer, the last one comes again.
        """
        codes = np.zeros((count, len(self.stages), len(latents)), np.int32)
        if not self.stages:
            return codes
        wanted = (len(latents), self.stages[0].codebook.shape[1]), (len(latents), len(self.stages[0].hidden) - 1)
        if (latents.shape, context.shape) != wanted or latents.dtype != np.float32 or context.dtype != np.float32:
            raise ValueError(f"latents and context are {latents.shape} and {context.shape} instead of float32 {wanted[0]} and {wanted[1]}")
        compiled = self.compiled
        rows = COMPILED_ROWS if compiled else max(1, TABLE_COSTS // (paths * len(self.stages[0].codebook)))
        parts = [slice(start, start + rows) for start in range(0, len(latents), rows)]

        def search(part: slice) -> None:
            if compiled:
                compiled(latents[part], context[part], paths, codes[:, :, part])
            else:
                codes[:, :, part] = self._some(latents[part], context[part], paths, count)

        with ThreadPoolExecutor(min(threads(), len(parts)) or 1) as pool:
            list(pool.map(search, parts))
        return codes

    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def distances(self, latents: Floats, codes: NDArray[np.int32]) -> Floats:
        """The squared distances of latents (N, D) from what codes (R, S, N) say, in bits, as the search counts them: (R, N)."""
        found = np.zeros((len(codes), len(latents)), np.float32)
        for distances, stages in zip(found, codes, strict=True):
            left = latents - sum(stage.codebook[0] for stage in self.stages)
            for stage, chosen in zip(self.stages, stages, strict=True):
                here = chosen.nonzero()[0]  # most positions end early
                left[here] -= stage.codebook[chosen[here]] - stage.codebook[0]
            if self.stages:
                distances[:] = np.square(left).sum(1) / np.float32(self.stages[0].rate_weight)
        return found

    @np.errstate(all="ignore")  # numbers out of range are dealt with, and models may be spoilt
    def _some(self, latents: Floats, context: Floats, paths: int, wanted: int) -> NDArray[np.intp]:
        """The `wanted` cheapest for as many positions as fit into the cache."""
        count, dim = latents.shape
        found = np.zeros((wanted, len(self.stages), count), np.intp)
        here = np.arange(count)  # the positions that have not ended
        total = np.zeros((count, 1, dim), np.float32)  # of each path
        cost = np.zeros((count, 1), np.float32)  # of each path, but for the distance of no codes but 0, which all share
        history = np.zeros((0, count, 1), np.intp)
        for index, stage in enumerate(self.stages):
            goes_on = history[-1] > 0 if index else np.ones_like(cost, bool)
            size = len(stage.codebook)
            table = np.full((*cost.shape, size), np.inf, np.float32)
            table[goes_on] = self._costs(index, latents, context, total, cost, goes_on)
            table[~goes_on, 0] = cost[~goes_on]
            last = index == len(self.stages) - 1
            cost, best = _least(table.reshape(len(here), -1), min(wanted if last else paths, cost.shape[1] * size))
            path, codes = np.divmod(best, size)
            codes[cost == np.inf] = 0  # there are fewer
            history = np.concatenate([history[:, np.arange(len(here))[:, None], path], codes[None]])
            there = np.maximum((cost < np.inf).sum(1), 1)
            for rank in range(wanted):
                found[rank, : index + 1, here] = history[:, np.arange(len(here)), np.minimum(rank, there - 1)].T
            longer = np.flatnonzero(codes.any(1))
            if last or not len(longer):
                break
            total = total[longer[:, None], path[longer]] + stage.codebook[codes[longer]]
            here, latents, context, cost, history = here[longer], latents[longer], context[longer], cost[longer], history[:, longer]
        return found

    def _costs(self, index: int, latents: Floats, context: Floats, total: Floats, cost: Floats, paths: NDArray[np.bool_]) -> Floats:
        """What every code costs (n, K) after n of the paths (N, P), whose sums (N, P, D) and costs (N, P) these are."""
        stage, dim, positions = self.stages[index], total.shape[2], paths.nonzero()[0]
        total = total[paths]
        hidden = _affine(context, stage.hidden)[positions]
        if stage.from_sum is not None:
            hidden += _affine(total, stage.from_sum)
        hidden = np.maximum(hidden, SLOPE * hidden)
        logits = _affine(hidden, stage.logits)
        norm, table = _log_sum(logits)
        residual = np.empty((len(logits), dim + 2), np.float32)
        residual[:, :dim] = latents[positions] - total
        residual[:, dim], residual[:, dim + 1] = 1, cost[paths] + norm
        np.matmul(residual, stage.costs, out=table)
        table -= logits
        return table


def threads() -> int:
    """How many threads may compute: `VQCODEC_THREADS`, or as many as this process has processors. Raises `SettingError`."""
    return wanted_threads() or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def wanted_threads() -> int:
    """What `VQCODEC_THREADS` says, 0 where it is not set or empty; raises `SettingError`."""
    said = os.environ.get("VQCODEC_THREADS") or "0"
    if not (said.isascii() and said.isdigit() and len(said) <= 4):
        raise SettingError(f"the environment variable VQCODEC_THREADS is {said!r}; make it a number of threads, or 0 for all processors")
    return int(said)


def _affine(x: Floats, layer: Floats) -> Floats:
    """x (N, I), weight and bias (I + 1, O) -> (N, O)."""
    out: Floats = x @ layer[:-1]
    out += layer[-1]
    return out


def _log_sum(logits: Floats) -> tuple[Floats, Floats]:
    """log2 of the sum of 2^logits over each row (N, K) -> (N,), and a table (N, K) to be overwritten."""
    powers = np.exp2(logits)
    ones = np.ones(logits.shape[1], np.float32)
    sums = powers @ ones
    if not (np.isfinite(sums) & (sums > 0)).all():  # rarely: the largest logit taken out first takes twice as long
        most = logits.max(1)
        sums = np.exp2(logits - most[:, None], out=powers) @ ones
        return np.log2(sums) + most, powers
    return np.log2(sums), powers


def _least(table: Floats, count: int) -> tuple[Floats, NDArray[np.intp]]:
    """The `count` smallest of each row, in order: values and columns, each (N, count). Spoils the table."""
    columns = np.empty((len(table), count), np.intp)
    values = np.empty((len(table), count), np.float32)
    rows = np.arange(len(table))
    for rank in range(count):
        best = table.argmin(1)
        columns[:, rank], values[:, rank] = best, table[rows, best]
        if rank < count - 1:
            table[rows, best] = np.inf
    return values, columns
