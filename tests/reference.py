"""The prior once more, written for the reader: position by position, in Python's integers, straight from the tensors.

Shares no line with `vqcodec.prior`: no wavefronts, no matrix products of maps, no floating point. Vectors are lists of
`int`; a map is a dict from (row, column) to a vector, and what it lacks is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from tests.range_decoder import RangeDecoder
from vqcodec.config import LEVELS, ModelConfig
from vqcodec.entropy import FREQ_TABLE

Vector = list[int]
Map = dict[tuple[int, int], Vector]
Tensors = dict[str, NDArray[Any]]

IMPOSSIBLE = -(2**24)
BEFORE = ((-1, -1), (-1, 0), (-1, 1), (0, -1))  # what a position may see of its own map
AROUND = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))


def clamp(vector: Vector, low: int = -127) -> Vector:
    return [max(low, min(127, value)) for value in vector]


def add(*vectors: Vector) -> Vector:
    return [sum(values) for values in zip(*vectors, strict=True)]


def layer(tensors: Tensors, name: str, inputs: Vector) -> Vector:
    """floor((inputs @ weight + bias) / 2 ** shift + 1/2)."""
    weight, bias = tensors[f"{name}.weight"].tolist(), tensors[f"{name}.bias"].tolist()
    shift = int(tensors[f"{name}.shift"])
    sums = [b + sum(x * row[out] for x, row in zip(inputs, weight, strict=True)) for out, b in enumerate(bias)]
    return [(total + ((1 << shift) >> 1)) >> shift for total in sums]


def neighbours(values: Map, row: int, column: int, taps: Sequence[tuple[int, int]], width: int) -> Vector:
    return [value for i, j in taps for value in values.get((row + i, column + j), [0] * width)]


def block(tensors: Tensors, name: str, values: Map, taps: Sequence[tuple[int, int]], width: int) -> Map:
    """x + mix(relu(convolution(x))) at every position."""
    found: Map = {}
    for (row, column), x in values.items():
        hidden = clamp(layer(tensors, f"{name}.spatial", neighbours(values, row, column, taps, width)), 0)
        found[row, column] = clamp(add(x, layer(tensors, f"{name}.mix", hidden)))
    return found


def quality_vector(table: list[Vector], quality: int) -> Vector:
    """The table's rows lie at equal distances over 0..10,000; between them in 128ths."""
    index, rest = divmod(quality * (len(table) - 1), 10_000)
    if index == len(table) - 1:
        return table[index]
    upper = (rest * 128 + 5_000) // 10_000
    return [((128 - upper) * a + upper * b + 64) // 128 for a, b in zip(table[index], table[index + 1], strict=True)]


def context(tensors: Tensors, config: ModelConfig, level: int, quality: int, coarser: NDArray[Any] | None, above: Map) -> Map:
    """The context of every position of a level; `above` is that of the coarser level (for the top level: unused)."""
    name, width = LEVELS[level], config.prior.channels
    vector = quality_vector(tensors[f"{name}.quality"].tolist(), quality)
    if coarser is None:
        return dict.fromkeys(above, vector)
    tables = tensors[f"{name}.context.embed"].tolist()
    values = {
        place: clamp(add(*[table[code] for table, code in zip(tables, coarser[:, *place], strict=True)], x, vector))
        for place, x in above.items()
    }
    for index in range(config.prior.context_blocks[level - 1]):
        values = block(tensors, f"{name}.context.{index}", values, AROUND, width)
    found: Map = {}
    for (row, column), x in values.items():
        up = clamp(layer(tensors, f"{name}.context.up", x))
        for part, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            found[2 * row + i, 2 * column + j] = up[part * width : (part + 1) * width]
    return found


def level_logits(tensors: Tensors, config: ModelConfig, level: int, codes: NDArray[Any], around: Map) -> list[Map]:
    """The logits of every position that has the symbol, one map a stage and one of the lengths, given the level's codes (S, H, W)."""
    name, width = LEVELS[level], config.prior.channels
    tables = tensors[f"{name}.embed"].tolist()
    embedded = {place: clamp(add(*[table[code] for table, code in zip(tables, codes[:, *place], strict=True)])) for place in around}
    values: Map = {}
    for (row, column), x in around.items():
        values[row, column] = clamp(layer(tensors, f"{name}.first", neighbours(embedded, row, column, BEFORE, width) + x))
    for index in range(config.prior.trunk_blocks[level]):
        values = block(tensors, f"{name}.trunk.{index}", values, (*BEFORE, (0, 0)), width)
    lengths = {place: max([stage + 1 for stage, code in enumerate(codes[:, *place]) if code], default=0) for place in values}
    found: list[Map] = []
    coded = f"{name}.length.embed" in tensors
    if coded:
        first = head(tensors, f"{name}.length", values, around)
        table = tensors[f"{name}.length.embed"].tolist()
        values = {place: clamp(add(x, table[lengths[place]])) for place, x in values.items()}
    for stage, code_map in enumerate(codes):
        values = {place: x for place, x in values.items() if lengths[place] > stage or not coded}
        logits = head(tensors, f"{name}.head.{stage}", values, around)
        found.append({place: [IMPOSSIBLE, *v[1:]] if coded and lengths[place] == stage + 1 else v for place, v in logits.items()})
        if stage < len(codes) - 1:
            table = tensors[f"{name}.head.{stage}.embed"].tolist()
            values = {place: clamp(add(x, table[code_map[place]])) for place, x in values.items()}
    return [*found, first] if coded else found


def head(tensors: Tensors, name: str, values: Map, around: Map) -> Map:
    """The logits of one kind of symbol at the places that have it."""
    hidden = {place: clamp(layer(tensors, f"{name}.hidden", x + around[place]), 0) for place, x in values.items()}
    return {place: layer(tensors, f"{name}.logits", h) for place, h in hidden.items()}


def frequencies(logits: Vector) -> list[int]:
    """test_entropy.py checks the table itself; beyond its end the frequency stays 1."""
    return [int(FREQ_TABLE[min(max(logits) - logit, len(FREQ_TABLE) - 1)]) for logit in logits]


def range_decode(words: Sequence[int], tables: Sequence[Sequence[int]]) -> Vector:
    """The codes in the range coder's words, one for each table of frequencies."""
    decoder = RangeDecoder(words)
    return [decoder.one(freqs) for freqs in tables]
