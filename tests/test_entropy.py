"""Literal values of the frequency table and of the range coder's words: both are part of the format."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal, localcontext

import constriction
import numpy as np
import pytest

from tests import reference
from tests.range_decoder import RangeDecoder
from vqcodec.entropy import FAMILY, FREQ_TABLE, freqs

LITERALS = {0: 16777216, 1: 16065917, 2: 15384775, 3: 14732511, 8: 11863283, 15: 8760003, 16: 8388608, 17: 8032959, 100: 220436, 200: 2896}

# One row of frequencies a symbol; the last row asks for the rarest symbol there can be.
FREQS = [
    [1, 2, 3, 2**24],
    [2**24, 1, 1, 1],
    [5, 5, 5, 5],
    [1000, 1, 2**20, 77],
    [3, 2**24, 2**24, 9],
    [1, 1, 1, 2**24],
]
SYMBOLS = np.array([3, 0, 2, 1, 3, 0], np.int32)
WORDS = [0x800FA13F, 0x23DE418E, 0x00000000]


@pytest.mark.parametrize(("below", "expected"), LITERALS.items())
def test_table_has_literal_values(below: int, expected: int) -> None:
    assert FREQ_TABLE[below] == expected


def test_table_is_the_rounded_power_of_two_everywhere() -> None:
    assert len(FREQ_TABLE) == 24 * 16 + 1
    with localcontext() as context:
        context.prec = 60
        for below, found in enumerate(FREQ_TABLE):
            exact = Decimal(2) ** (Decimal(24) - Decimal(below) / 16)
            assert found == max(1, int((exact + Decimal("0.5")).to_integral_value(ROUND_FLOOR)))


def test_frequencies_depend_on_differences_alone_and_are_never_zero() -> None:
    logits = np.array([[0, -16, -1_000_000, -384], [500, 484, -999_500, 116]], np.float32)
    expected = [2**24, 2**23, 1, 1]
    assert freqs(logits).tolist() == [expected, expected]


def test_range_coder_writes_literal_words() -> None:
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(SYMBOLS, FAMILY, np.array(FREQS, np.float64))
    assert encoder.get_compressed().tolist() == WORDS


def test_range_coder_reads_literal_words() -> None:
    decoder = constriction.stream.queue.RangeDecoder(np.array(WORDS, np.uint32))
    assert decoder.decode(FAMILY, np.array(FREQS, np.float64)).tolist() == SYMBOLS.tolist()


def test_range_coder_symbol_by_symbol_equals_all_at_once() -> None:
    """Wavefronts push symbols in groups of any size: the words must not depend on the grouping."""
    encoder = constriction.stream.queue.RangeEncoder()
    for symbol, row in zip(SYMBOLS, FREQS, strict=True):
        encoder.encode(np.array([symbol]), FAMILY, np.array([row], np.float64))
    assert encoder.get_compressed().tolist() == WORDS


def test_the_specified_range_decoder_ends_where_the_library_does() -> None:
    """docs/FORMAT.md says which words may be left over."""
    rng = np.random.default_rng(6)
    tables = FREQ_TABLE.take(rng.integers(0, 400, (40, 17)), mode="clip")
    symbols = np.array([rng.choice(17, p=row / row.sum()) for row in tables], np.int32)
    found = set()
    for count in range(len(tables) + 1):
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols[:count], FAMILY, tables[:count])
        written = encoder.get_compressed().tolist()
        for words in (*(written + [fill] * more for fill in (0, 1, 2**32 - 1) for more in range(4)), written[:-1]):
            library = constriction.stream.queue.RangeDecoder(np.array(words, np.uint32))
            ours = RangeDecoder(words)
            assert library.decode(FAMILY, tables[:count]).tolist() == ours.decode(FAMILY, tables[:count]).tolist()
            assert library.maybe_exhausted() == ours.maybe_exhausted()
            found.add((words == written, ours.maybe_exhausted()))
    assert found == {(True, True), (False, True), (False, False)}


def test_the_specified_range_decoder_reads_what_the_library_writes() -> None:
    assert reference.range_decode(WORDS, FREQS) == SYMBOLS.tolist()
    rng = np.random.default_rng(5)
    for size in (2, 3, 17, 512):
        tables = FREQ_TABLE.take(rng.integers(0, 400, (60, size)), mode="clip")
        symbols = np.array([rng.choice(size, p=row / row.sum()) for row in tables], np.int32)
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols, FAMILY, tables)
        words = encoder.get_compressed().tolist()
        assert reference.range_decode(words, tables.astype(int).tolist()) == symbols.tolist()
