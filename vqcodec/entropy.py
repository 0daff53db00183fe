"""Integer frequencies for the range coder: the last step from the prior's logits to bits.

Logits are integers in units of 1/16 bit. A symbol whose logit lies d units below the largest one of its position
has the frequency `FREQ_TABLE[d] = max(1, floor(2 ** (24 - d / 16) + 1/2))`. No floating-point function is
evaluated: the table is built by integer arithmetic alone, so that it is the same everywhere.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from math import isqrt
from threading import Thread
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

LOGIT_STEPS = 16  # logit units per bit
WORD_BYTES = 4  # of the range coder
FREQ_BITS = 24  # the largest frequency is 2 ** 24: constriction's own precision

FAMILY = constriction.stream.model.Categorical(perfect=False)  # explicit: the default changes between constriction's versions


@cache
def _look_numpy_up() -> None:
    """Lets constriction do so: at its first array it runs a few lines of Python, and an exception there would be a panic.

    A signal's handler may raise one, but handlers run in the main thread alone.
    """
    first = Thread(target=constriction.stream.queue.RangeDecoder, args=(np.zeros(0, np.uint32),))
    with suppress(RuntimeError):  # where no thread can start the risk stays
        first.start()
        first.join()


def range_encoder() -> Any:
    """An empty encoder, a queue: what is encoded first is decoded first."""
    _look_numpy_up()
    return constriction.stream.queue.RangeEncoder()


def range_decoder(words: NDArray[np.uint32]) -> Any:
    """A decoder of what an encoder gave."""
    _look_numpy_up()
    return constriction.stream.queue.RangeDecoder(words)


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
