"""The integer prior: exact whatever the arithmetic, equal to a plain reference, and refused where it could be inexact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tests.support import Array, make_config, random_codes, random_prior, same
from vqcodec import bitstream
from vqcodec.codes import Codes, map_sizes
from vqcodec.config import ModelConfig
from vqcodec.errors import DamagedError, InvalidModelError
from vqcodec.layers import EXACT_LIMIT, blas_product, float64_product, int64_product
from vqcodec.prior import Prior
from vqcodec.scan import scan

SMALL = make_config(3, (1, 2, 2), (4, 5, 6), 1)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    stages = st.tuples(*[st.integers(1, 3)] * 3)
    sizes = st.tuples(*[st.integers(2, 24)] * 3)
    return make_config(draw(st.integers(1, 8)), draw(stages), draw(sizes), draw(st.integers(0, 2)))


seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 100)
qualities = st.integers(0, 10_000)
spreads = st.sampled_from([1, 16, 127])


def tensors_of(seed: int = 0) -> dict[str, Array]:
    return random_prior(np.random.default_rng(seed), SMALL)


@given(configs(), seeds, sides, sides, qualities, spreads)
def test_any_codes_survive_any_prior(config: ModelConfig, seed: int, height: int, width: int, quality: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    prior = Prior.from_tensors(random_prior(rng, config, spread), config)
    codes = random_codes(rng, config, height, width)
    payloads = bitstream.write(prior, codes, height, width, quality)
    assert same(bitstream.read(prior, payloads, height, width, quality), codes)


@settings(max_examples=100)
@given(configs(), seeds, sides, sides, qualities, spreads)
def test_every_product_gives_the_same_bytes_and_codes(
    config: ModelConfig, seed: int, height: int, width: int, quality: int, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    levels = Prior.from_tensors(random_prior(rng, config, spread), config).levels
    codes = random_codes(rng, config, height, width)
    priors = [Prior(levels, product) for product in (blas_product, float64_product, int64_product)]
    written = [bitstream.write(prior, codes, height, width, quality) for prior in priors]
    assert written[0] == written[1] == written[2]
    assert all(same(bitstream.read(prior, written[0], height, width, quality), codes) for prior in priors)


@settings(max_examples=40)
@given(seeds, st.sampled_from([(1, 1), (33, 65), (65, 33), (1, 130), (130, 1)]), qualities, st.sampled_from([16, 127]))
def test_scan_agrees_with_the_plain_reference(seed: int, size: tuple[int, int], quality: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = random_prior(rng, SMALL, spread)
    codes = random_codes(rng, SMALL, *size)
    found = scanned_freqs(Prior.from_tensors(tensors, SMALL), codes, size, quality)
    above: reference.Map = {(row, column): [] for row in range(codes.top.shape[1]) for column in range(codes.top.shape[2])}
    for level, code_map in enumerate(codes):
        above = reference.context(tensors, SMALL, level, quality, codes[level - 1] if level else None, above)
        for stage, logits in enumerate(reference.level_logits(tensors, SMALL, level, code_map, above)):
            for place, values in logits.items():
                assert found[level][stage][place].tolist() == reference.frequencies(values), (level, stage, place)


def scanned_freqs(prior: Prior, codes: Codes, size: tuple[int, int], quality: int) -> list[list[dict[tuple[int, int], Array]]]:
    """What `scan` offers to the range coder: per level and stage, the frequencies at each position."""
    found: list[list[dict[tuple[int, int], Array]]] = []
    context: Array | None = None
    for level, (code_map, map_size) in enumerate(zip(codes, map_sizes(*size), strict=True)):
        context = prior.context(level, quality, codes[level - 1] if level else None, context)
        stages: list[dict[tuple[int, int], Array]] = [{} for _ in code_map]

        def visit(stage: int, rows: Array, columns: Array, freqs: Array, stages: list = stages, known: Array = code_map) -> Array:
            stages[stage].update(zip(zip(rows.tolist(), columns.tolist(), strict=True), freqs, strict=True))
            return known[stage, rows, columns]

        scan(prior, level, context, map_size, visit)
        found.append(stages)
    return found


@pytest.mark.parametrize(("height", "width"), list(itertools.product([1, 2, 3, 7], [1, 2, 3, 8])))
def test_scan_visits_every_position_once_in_few_steps(height: int, width: int) -> None:
    prior = Prior.from_tensors(tensors_of(), SMALL)
    visited = np.zeros((height, width), int)

    def visit(stage: int, rows: Array, columns: Array, freqs: Array) -> Array:
        visited[rows, columns] += 1
        return np.zeros(len(rows), np.int32)

    assert scan(prior, 0, prior.context(0, 5000, None, None), (height, width), visit) == width + 2 * (height - 1)
    assert (visited == 1).all()


def test_payload_lengths_that_cannot_be_are_refused() -> None:
    prior, codes = Prior.from_tensors(tensors_of(), SMALL), random_codes(np.random.default_rng(1), SMALL, 40, 40)
    payloads = bitstream.write(prior, codes, 40, 40, 100)
    for payload in (b"", payloads[1][:3], payloads[1] + b"\0"):
        with pytest.raises(DamagedError, match="middle"):
            bitstream.read(prior, [payloads[0], payload, payloads[2]], 40, 40, 100)


def test_codes_that_do_not_fit_are_refused() -> None:
    prior, codes = Prior.from_tensors(tensors_of(), SMALL), random_codes(np.random.default_rng(1), SMALL, 40, 40)
    with pytest.raises(ValueError, match="shape"):
        bitstream.write(prior, codes, 80, 40, 100)
    for wrong in (-1, 4):
        top = codes.top.copy()
        top[0, 0, 0] = wrong
        with pytest.raises(ValueError, match=r"outside 0\.\.3"):
            bitstream.write(prior, codes._replace(top=top), 40, 40, 100)


@pytest.mark.parametrize(
    "name", ["top.first", "middle.context.0.spatial", "middle.context.up", "bottom.trunk.0.mix", "bottom.head.1.logits"]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_bound_is_exact_and_names_layer_and_channel(name: str, sign: int) -> None:
    tensors = tensors_of()
    shift, weight = int(tensors[f"{name}.shift"]), tensors[f"{name}.weight"].astype(int)
    largest = EXACT_LIMIT - 127 * int(np.abs(weight[:, 1]).sum()) - ((1 << shift) >> 1)
    tensors[f"{name}.bias"][1] = sign * largest
    Prior.from_tensors(tensors, SMALL)
    tensors[f"{name}.bias"][1] = sign * (largest + 1)
    with pytest.raises(InvalidModelError, match=rf"{name} is not exact: channel 1 "):
        Prior.from_tensors(tensors, SMALL)


def test_weight_of_minus_128_is_refused() -> None:
    for name in ("bottom.first.weight", "top.embed", "top.quality"):
        tensors = tensors_of()
        tensors[name].flat[0] = -128
        with pytest.raises(InvalidModelError, match=f"{name} holds -128"):
            Prior.from_tensors(tensors, SMALL)


@pytest.mark.parametrize("name", sorted(tensors_of()))
def test_missing_or_wrong_tensor_is_refused(name: str) -> None:
    tensors = tensors_of()
    good = tensors.pop(name)
    with pytest.raises(InvalidModelError, match=f"lacks the tensor {name};"):
        Prior.from_tensors(tensors, SMALL)
    for wrong in (good[None], np.stack([good, good]), good.astype(np.int16), good.astype(np.float32)):
        with pytest.raises(InvalidModelError, match=f"{name} is {wrong.dtype}"):
            Prior.from_tensors({**tensors, name: wrong}, SMALL)


def test_unknown_tensor_is_refused() -> None:
    with pytest.raises(InvalidModelError, match=r"unknown tensors.*surplus"):
        Prior.from_tensors({**tensors_of(), "surplus": np.zeros(1, np.int8)}, SMALL)


@pytest.mark.parametrize("shift", [-1, 21, 2**31 - 1])
def test_impossible_shift_is_refused(shift: int) -> None:
    tensors = {**tensors_of(), "top.first.shift": np.array(shift, np.int32)}
    with pytest.raises(InvalidModelError, match=r"top\.first\.shift"):
        Prior.from_tensors(tensors, SMALL)
