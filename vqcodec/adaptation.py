"""The decoder's last layer, adapted to one picture: a few integers in the file, fitted by least squares.

The decoder's last convolution is linear in its features, so its best change for one picture is a regression of the picture's error on
them. Such changes lie near a space of few dimensions, whose basis comes with the model (training/adapt.py), and a file keeps the
picture's coordinates there (van Rozendaal, Huijben and Cohen 2021, "Overfitting for fun and profit", send all of a decoder's weights;
the few dimensions are those of Aharon, Elad and Bruckstein 2006, "K-SVD", with every atom in use).

Shapes: features (n, F) and errors (n, E) on [0, 1] at positions of 4 x 4 pixels, E = 48 values of three colours there; a basis
(K, F + 1, E), the last row for a constant feature; coordinates integers (K,) from -`LARGEST` to `LARGEST`. In the file two of them
share a byte, low half first, as two's complement; zeros at the end are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqcodec.config import ADAPTED_STRIDE, LAMBDA_UNIT, TransformConfig
from vqcodec.errors import DamagedError

Floats = NDArray[np.floating]
LARGEST = 7  # of a coordinate: four bits
SECTION_BITS = 40  # of a section's length and checksum


@dataclass
class Moments:
    """Sums over a picture's `count` positions: of products of its features with each other (F + 1, F + 1) and with the errors (F + 1, E).

    And of the errors' squares.
    """

    squares: Floats
    products: Floats
    error: float
    count: int

    @staticmethod
    def of(features: Floats, errors: Floats) -> Moments:
        """Those of features (n, F) and errors (n, E)."""
        known = np.concatenate([features, np.ones_like(features[:, :1])], 1)
        squares, products = ((known.T @ other).astype(np.float64) for other in (known, errors))
        return Moments(squares, products, float(np.square(errors, dtype=np.float64).sum()), len(features))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.squares + other.squares, self.products + other.products, self.error + other.error, self.count + other.count)

    def standing_for(self, count: int) -> Moments:
        """The same as if they were of so many positions; of none they stay."""
        share = count / self.count if self.count else 1.0
        return Moments(share * self.squares, share * self.products, share * self.error, count)

    def system(self, basis: Floats) -> tuple[Floats, Floats]:
        """The normal equations of the coordinates: matrix (K, K) and right side (K,)."""
        flat = basis.reshape(len(basis), -1)
        return flat @ (self.squares @ basis).reshape(len(basis), -1).T, flat @ self.products.ravel()


def errors_of(image: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> Floats:
    """What is missing in the decoded image, both uint8 (4h, 4w, 3) -> (h * w, 48), as the pixel shuffle of the decoder has it."""
    height, width, colours = image.shape
    stride = ADAPTED_STRIDE
    missing = (image.astype(np.float32) - decoded) / 255
    blocks = missing.reshape(height // stride, stride, width // stride, stride, colours).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(blocks).reshape(-1, colours * stride**2)


def scale_of(config: TransformConfig, quality: float) -> float:
    """What a coordinate counts at a quality in [0, 1]: errors shrink with about the fourth root of the Lagrangian."""
    return float((config.lagrangian(quality) / LAMBDA_UNIT) ** -0.25)


@np.errstate(all="ignore")  # a spoilt model's numbers may be none
def fitted(moments: Moments, basis: Floats, lagrangian: float) -> NDArray[np.int8]:
    """The coordinates (K,) of a picture; zeros where they are not worth their bits.

    One after the other is rounded and those after it are fitted to what that leaves; the first so many are kept that rate and distortion
    together, in bits, are least.
    """
    matrix, right = moments.system(basis)
    count = len(basis)
    ridge = 1e-6 * np.trace(matrix) / count * np.eye(count)
    found = np.zeros(count)
    best, least = np.zeros(count, np.int8), 0.0
    for kept in range(1, count + 1):
        found[:] = 0
        for index in range(kept):
            rest = slice(index, kept)
            left = right[rest] - matrix[rest, :index] @ found[:index]
            try:
                wanted = np.linalg.solve((matrix + ridge)[rest, rest], left)[0]
            except np.linalg.LinAlgError:
                return best
            if not np.isfinite(wanted):
                return best
            found[index] = np.clip(np.rint(wanted), -LARGEST, LARGEST)
        bits = SECTION_BITS + 8 * len(packed(found.astype(np.int8))) + lagrangian / 3 * (found @ matrix @ found - 2 * right @ found)
        if bits < least:
            best, least = found.astype(np.int8), float(bits)
    return best


def packed(coordinates: NDArray[np.int8]) -> bytes:
    """Coordinates (K,) as bytes."""
    used = np.trim_zeros(coordinates, "b").astype(np.uint8) & 15
    halves = np.pad(used, (0, len(used) % 2)).reshape(-1, 2)
    return bytes((halves[:, 0] | halves[:, 1] << 4).tolist())


def unpacked(payload: bytes, count: int) -> NDArray[np.float32]:
    """Coordinates (`count`,) from bytes; raises `DamagedError` for more than there can be."""
    halves = np.frombuffer(payload, np.uint8)[:, None] >> np.array([0, 4], np.uint8) & 15
    values = (halves.ravel().astype(np.int8) ^ 8) - 8
    if np.trim_zeros(values, "b").size > count or (values < -LARGEST).any():
        what = f"the file adapts the decoder by what its model does not have ({len(values)} numbers for {count})"
        raise DamagedError(f"{what}; the program that wrote it is at fault")
    return np.pad(values[:count], (0, max(0, count - len(values)))).astype(np.float32)
