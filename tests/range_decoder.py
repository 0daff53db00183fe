"""The range decoder of docs/FORMAT.md, line by line, in Python's integers. Needs neither constriction nor vqcodec."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class RangeDecoder:
    """Stands where `constriction.stream.queue.RangeDecoder` stands on machines that have no constriction."""

    def __init__(self, words: Sequence[int] | NDArray[np.uint32]):
        self.words, self.read = [int(word) for word in words], 2
        self.lower, self.span, self.point = 0, 2**64 - 1, self._word(0) << 32 | self._word(1)

    def _word(self, index: int) -> int:
        return self.words[index] if index < len(self.words) else 0

    def one(self, freqs: Sequence[int]) -> int:
        """The next code, under integer frequencies."""
        scale = (2**24 - len(freqs)) / sum(freqs)
        edges = [int(sum(freqs[:k]) * scale) + k for k in range(len(freqs))] + [2**24]
        step = self.span >> 24
        value = (self.point - self.lower) % 2**64 // step
        assert value < 2**24, "no valid code"
        code = max(k for k in range(len(freqs)) if edges[k] <= value)
        self.lower, self.span = (self.lower + step * edges[code]) % 2**64, step * (edges[code + 1] - edges[code])
        if self.span < 2**32:
            self.lower, self.span = (self.lower << 32) % 2**64, self.span << 32
            self.point = ((self.point << 32) | self._word(self.read)) % 2**64
            self.read += 1
        return code

    def decode(self, family: object, freqs: NDArray[np.float64]) -> NDArray[np.int32]:
        """The next codes (n,), under the frequencies (n, K)."""
        return np.array([self.one([int(freq) for freq in row]) for row in freqs], np.int32)

    def maybe_exhausted(self) -> bool:
        """Whether no word is left over, and the last ones are such as an encoder ends with."""
        early = self.span != 2**64 - 1 and (self.point - self.lower) % 2**64 >= 2**33 - 1
        return self.read >= len(self.words) and not early
