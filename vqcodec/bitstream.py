"""Codes to range-coded bytes and back: the prior's probabilities meet the range coder here.

One level's payload is a checksum of its codes (2 bytes) and the words of the range coder (32 bits each), little endian. Writing and
reading ask the prior for the same frequencies in the same order (scan.py); the payloads are written coarse to fine and each one needs
the codes of the coarser levels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vqcodec.codes import CodeMap, Codes, check_codes, checksum, map_sizes
from vqcodec.config import LEVELS
from vqcodec.entropy import FAMILY, WORD_BYTES, range_decoder, range_encoder
from vqcodec.errors import DamagedError
from vqcodec.layers import Array
from vqcodec.prior import LENGTH, Prior
from vqcodec.scan import scan, scan_known, scan_others, symbols_of

CODER_TOTAL = 1 << 24  # the range coder's own frequencies add up to this
SPARE_BITS = 256  # a decoder is two words ahead, and sums of logarithms are rounded
CALLS_AT_ONCE = 64  # of the decoder, between two looks at whether the payload's bits suffice
ONES = np.ones(512)  # codebooks are rarely larger

_CHECKSUM = struct.Struct("<H")


def write(prior: Prior, codes: Codes, height: int, width: int, quality: int) -> list[bytes]:
    """Compresses the codes of an image of `height` x `width` pixels; returns a payload per level.

    `quality` is in hundredths. Raises `ValueError` for codes that do not fit the prior.
    """
    payloads: list[bytes] = []
    context: Array | None = None
    for level, (code_map, size) in enumerate(zip(codes, map_sizes(height, width), strict=True)):
        check_codes(code_map, prior.levels[level].config, size)
        context = prior.context(level, quality, codes[level - 1] if level else None, context)
        encoder = range_encoder()

        def push(stage: int, symbols: Array, freqs: Array, encoder: Any = encoder) -> None:
            del stage
            encoder.encode(symbols, FAMILY, freqs)

        scan_known(prior, level, context, symbols_of(code_map), push)
        payloads.append(_CHECKSUM.pack(checksum(code_map)) + encoder.get_compressed().astype("<u4").tobytes())
    return payloads


def read(prior: Prior, payloads: Sequence[bytes], height: int, width: int, quality: int) -> Codes:
    """Decompresses the payloads of an image of `height` x `width` pixels; levels without a payload get zeros as codes.

    Raises `DamagedError` where a payload is malformed or the decoded codes fail their checksum.
    """
    return complete(prior, list(read_levels(prior, payloads, height, width, quality)), height, width)


def complete(prior: Prior, maps: Sequence[CodeMap], height: int, width: int) -> Codes:
    """Codes of an image from the code maps of its coarsest levels: the others are zeros."""
    sizes = map_sizes(height, width)
    rest = range(len(maps), len(sizes))
    return Codes(*maps, *(np.zeros((prior.levels[level].config.stages, *sizes[level]), np.int32) for level in rest))


def read_levels(prior: Prior, payloads: Sequence[bytes], height: int, width: int, quality: int) -> Iterator[CodeMap]:
    """Decompresses one level after the other, coarse to fine. Raises `DamagedError` as `read` does, at the level that is wrong.

    Memory for a level is taken only once all coarser ones are intact: a short payload cannot ask for a large picture.
    """
    known: CodeMap | None = None
    context: Array | None = None
    for level, (payload, size) in enumerate(zip(payloads, map_sizes(height, width), strict=False)):
        if len(payload) % WORD_BYTES != _CHECKSUM.size:
            raise DamagedError(f"the payload of the level '{LEVELS[level]}' has an impossible length; copy the file again")
        context = prior.context(level, quality, known, context)
        known = _read_level(prior, level, context, size, payload)
        yield known


def _read_level(prior: Prior, level: int, context: Array, size: tuple[int, int], payload: bytes) -> CodeMap:
    name = f"the payload of the level '{LEVELS[level]}'"
    too_early = f"{name} ends too early for its codes; the program that wrote the file is at fault"
    code_map = np.zeros((prior.levels[level].config.stages, *size), np.int32)
    words = np.frombuffer(payload[_CHECKSUM.size :], "<u4").astype(np.uint32)
    decoder = range_decoder(words)
    bits, least = 32 * len(words) + SPARE_BITS, LeastBits()

    def pull(stage: int, rows: Array, columns: Array, freqs: Array) -> Array:
        symbols = decoder.decode(FAMILY, freqs)
        if stage != LENGTH:
            code_map[stage, rows, columns] = symbols
        if least.add(freqs, symbols) > bits:
            raise DamagedError(too_early)
        return symbols

    try:
        scan(prior, level, context, size, pull)
    except AssertionError as error:  # constriction's report of words that no encoder writes
        raise DamagedError(f"{name} is no valid code; copy the file again") from error
    if least.total() > bits:
        raise DamagedError(too_early)
    if not decoder.maybe_exhausted():
        raise DamagedError(f"{name} has words left over; copy the file again")
    if checksum(code_map) != _CHECKSUM.unpack_from(payload)[0]:
        raise DamagedError(
            f"the codes of the level '{LEVELS[level]}' fail their checksum in an intact file; please report this with the file"
        )
    return code_map


class LeastBits:
    """What coding symbols takes at least, whatever the coder rounds. Logarithms are taken of many symbols at once."""

    def __init__(self) -> None:
        self.bits = 0.0
        self.shares: list[Array] = []

    def add(self, freqs: Array, symbols: Array) -> float:
        """Counts symbols (n,) that had the frequencies (n, K); returns the bits of all of them, without those of the last few calls."""
        count, size = freqs.shape
        ones = ONES[:size] if size <= len(ONES) else np.ones(size)
        self.shares.append(freqs[np.arange(count), symbols] / (freqs @ ones))
        return self.total() if len(self.shares) >= CALLS_AT_ONCE else self.bits

    def total(self) -> float:
        """The bits of all symbols so far."""
        if self.shares:
            shares = np.concatenate(self.shares)
            self.shares = []
            self.bits -= float(np.log2((shares + 2 / CODER_TOTAL).clip(max=1)).sum())
        return self.bits


def position_bits(prior: Prior, level: int, context: Array, codes: CodeMap) -> Array:
    """-log2 of the probability that the prior gives the codes (S, H, W) of each position, in float64 (H, W).

    `context` is from `Prior.context`.
    """
    symbols, bits = symbols_of(codes), np.zeros(codes.shape[1:])

    def visit(stage: int, rows: Array, columns: Array, freqs: Array) -> Array:
        known: Array = symbols[stage, rows, columns]
        bits[rows, columns] += _bits(known, freqs)
        return known

    scan(prior, level, context, codes.shape[1:], visit)
    return bits


def alternative_bits(prior: Prior, level: int, context: Array, codes: CodeMap, alternatives: Array) -> Array:
    """The same for each of the `alternatives` (R, S, H, W), as if it stood alone among neighbours that keep their `codes`: (R, H, W)."""
    bits = np.zeros((len(alternatives), *codes.shape[1:]))

    def visit(which: Array, rows: Array, columns: Array, symbols: Array, freqs: Array) -> None:
        bits[which, rows, columns] += _bits(symbols, freqs)

    scan_others(prior, level, context, symbols_of(codes), np.stack([symbols_of(other) for other in alternatives]), visit)
    return bits


def _bits(symbols: Array, freqs: Array) -> Array:
    """-log2 of the probability of symbols (n,) by their frequencies (n, K)."""
    bits: Array = np.log2(freqs.sum(1) / freqs[np.arange(len(symbols)), symbols])
    return bits


def ideal_bits(prior: Prior, codes: Codes, quality: int) -> list[list[float]]:
    """-log2 of the codes' probability under the prior: bits per level and stage, the lengths' last, without any coder's overhead.

    Raises `ValueError` for codes that do not fit the prior.
    """
    levels: list[list[float]] = []
    context: Array | None = None
    for level, code_map in enumerate(codes):
        check_codes(code_map, prior.levels[level].config, code_map.shape[1:])
        context = prior.context(level, quality, codes[level - 1] if level else None, context)
        bits = [0.0] * (len(code_map) + 1)

        def add(stage: int, symbols: Array, freqs: Array, bits: list[float] = bits) -> None:
            bits[stage] += float(_bits(symbols, freqs).sum())

        scan_known(prior, level, context, symbols_of(code_map), add)
        levels.append(bits)
    return levels
