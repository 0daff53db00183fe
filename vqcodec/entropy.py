"""Integer frequencies for the range coder: the last step from the prior's logits to bits.

Logits are integers in units of 1/16 bit. A symbol whose logit lies d units below the largest one of its position
has the frequency `FREQ_TABLE[d] = max(1, floor(2 ** (24 - d / 16) + 1/2))`. No floating-point function is
evaluated: the table is built by integer arithmetic alone, so that it is the same everywhere.
"""

from __future__ import annotations

from math import isqrt
from threading import Thread

import constriction
import numpy as np
from numpy.typing import NDArray

LOGIT_STEPS = 16  # logit units per bit
FREQ_BITS = 24  # the largest frequency is 2 ** 24: constriction's own precision

FAMILY = constriction.stream.model.Categorical(perfect=False)  # explicit: the default changes between constriction's versions


# At its first array, constriction looks numpy up by a few lines of Python. An exception there, such as the one that a signal's handler
# raises, would be a panic; handlers run in the main thread alone, so another one does it.
_first = Thread(target=constriction.stream.queue.RangeDecoder, args=(np.zeros(0, np.uint32),))
_first.start()
_first.join()


def _power_of_two(exponent16: int) -> int:
    """floor(2 ** (exponent16 / 16) + 1/2), by four exact integer square roots of 2 ** exponent16."""
    guard = 64  # extra fractional bits, in the unit of the result
    value = 1 << (exponent16 + 16 * guard)
    for _ in range(4):
        value = isqrt(value)
    return (value + (1 << (guard - 1))) >> guard


FREQ_TABLE: NDArray[np.float64] = np.array(
    [max(1, _power_of_two(FREQ_BITS * LOGIT_STEPS - d)) for d in range(FREQ_BITS * LOGIT_STEPS + 1)], dtype=np.float64
)


def freqs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Turns integer-valued logits (n, K) into integer-valued frequencies (n, K), each at least 1."""
    below = logits.max(axis=1, keepdims=True) - logits
    return FREQ_TABLE.take(below.astype(np.intp), mode="clip")
