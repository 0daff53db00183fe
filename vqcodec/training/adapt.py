"""The basis in which a file may adapt the decoder's last layer (vqcodec/adaptation.py), found on photographs.

Every picture has changes of the last layer that would suit it best. The basis is what serves most pictures best: coordinates for each
picture and the basis for all are fitted in turns (alternating least squares), each picture's error counting relative to what it was.
Fitted to blocks, as which it is used, and to their rates as well, it served other photographs no better (bench/LOG.md). Shapes as in
adaptation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.adaptation import FINEST, Floats, scale_of
from vqcodec.config import ADAPTED_STRIDE, DEFAULT_EFFORT, QUALITY_STEPS, TransformConfig
from vqcodec.training.prior import varied
from vqcodec.training.schedule import Clock, Schedule
from vqcodec.transform import Transform

ROUNDS = 12  # of the alternating fits
RIDGE = 1e-5  # of features that hardly vary, in mean squares
SHRINKAGE = 0.05  # of each picture's own best change, which the first basis comes from: it fits some of the noise
STEPS = 0.8  # integers to the standard deviation of a picture's coordinate: blocks' vary more, and most should be zero (bench/LOG.md)

Matrix = NDArray[np.float64]


class Sample(NamedTuple):
    """Moments of one picture, (F + 1, F + 1) and (F + 1, E), the sum of its errors' squares, and its quality in hundredths."""

    squares: Floats
    products: Floats
    error: float
    quality: int

    @property
    def positions(self) -> float:
        """How many there are: the square of the constant feature."""
        return float(self.squares[-1, -1])


def gather(transform: Transform, images: Sequence[Tensor], seed: int, minutes: float) -> Iterator[Sample]:
    """Encodes and decodes pieces of uint8 images (3, H, W) at random qualities for some minutes; an image once at most, one in any case."""
    random = np.random.default_rng((seed, 1))
    clock = Clock(Schedule(steps=10**9, minutes=minutes))
    for count, index in enumerate(random.permutation(len(images))):
        if count and clock.progress(0) >= 1:
            return
        piece = np.ascontiguousarray(varied(images[int(index)], random).permute(1, 2, 0).numpy())
        quality = int(random.integers(QUALITY_STEPS + 1))
        codes = transform.encode(piece, quality, DEFAULT_EFFORT)
        tiles = [moments for _, _, moments in transform.moments(piece, codes, quality, max(FINEST))]
        squares, products, errors = (sum(part.sum((0, 1), np.float64) for part in parts) for parts in zip(*tiles, strict=True))
        yield Sample(squares, products, float(errors), quality)


def fit(samples: Sequence[Sample], config: TransformConfig) -> Matrix:
    """The basis (K, F + 1, E), most useful first, in units of the integers that files hold.

    Where there are fewer samples than K, or errors are nothing, the rest is zeros.
    """
    used = [sample for sample in samples if sample.error > 0]
    if not used:
        return np.zeros((config.adaptations, config.widths[0] + 1, 3 * ADAPTED_STRIDE**2))
    squares = np.stack([sample.squares / sample.positions for sample in used])
    products = np.stack([sample.products / sample.positions for sample in used])
    errors = np.array([sample.error / sample.positions for sample in used])
    mean = squares.mean(0)
    ridge = RIDGE * np.trace(mean) / len(mean) * np.eye(len(mean))
    lower = np.linalg.cholesky(mean + ridge)
    own = np.linalg.solve(squares + SHRINKAGE * mean + ridge, products)
    directions = np.linalg.svd((lower.T @ own / np.sqrt(errors)[:, None, None]).reshape(len(used), -1), full_matrices=False)[2]
    count = min(config.adaptations, len(directions))
    basis = np.linalg.solve(lower.T, directions[:count].reshape(count, *products.shape[1:]))
    for _ in range(ROUNDS):
        coordinates = _coordinates(basis, squares, products)
        left = products - squares @ np.tensordot(coordinates, basis, 1)
        weighted = coordinates / errors[:, None]
        spread = coordinates.T @ weighted
        damped = spread + 1e-3 * np.trace(spread) / count * np.eye(count)
        step = np.linalg.solve(damped, np.tensordot(weighted.T, left, 1).reshape(count, -1))
        basis = basis + 0.7 * np.linalg.solve(mean + ridge, step.reshape(basis.shape))
    scales = [scale_of(config, sample.quality / QUALITY_STEPS) for sample in used]
    return _in_steps(basis, _coordinates(basis, squares, products), mean, scales, config)


def _coordinates(basis: Matrix, squares: Matrix, products: Matrix) -> Matrix:
    """The best coordinates (N, K) of all samples, unrounded."""
    count = len(basis)
    flat = basis.reshape(count, -1)
    matrices = np.stack([flat @ (square @ basis).reshape(count, -1).T for square in squares])
    right = products.reshape(len(products), -1) @ flat.T
    ridge = 1e-4 * np.trace(matrices.mean(0)) / count * np.eye(count)
    return np.linalg.solve(matrices + ridge, right[:, :, None])[:, :, 0]


def _in_steps(basis: Matrix, coordinates: Matrix, mean: Matrix, scales: Sequence[float], config: TransformConfig) -> Matrix:
    """The same space, whose axes are the coordinates' principal ones, where a change of the same length changes the picture as much."""
    flat = basis.reshape(len(basis), -1)
    lengths = np.linalg.cholesky(flat @ (mean @ basis).reshape(len(basis), -1).T)
    across = coordinates @ lengths / np.array(scales)[:, None]
    spread, axes = np.linalg.eigh(across.T @ across / len(across))
    turned = np.linalg.solve(lengths, flat).T @ axes * np.sqrt(spread.clip(0)) / STEPS
    found = np.zeros((config.adaptations, *basis.shape[1:]))
    found[: len(basis)] = turned.T[::-1].reshape(basis.shape)
    return found
