"""The integer prior: exact whatever the arithmetic, equal to a plain reference, and refused where it could be inexact."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests import reference
from tests.support import GOLDEN, Array, make_config, noise, random_codes, random_prior, same, vqcodec
from vqcodec import bitstream, image
from vqcodec.codes import Codes, map_sizes
from vqcodec.config import ModelConfig
from vqcodec.errors import DamagedError, InvalidModelError
from vqcodec.kernel import library
from vqcodec.layers import ACTIVATION_MAX, EXACT_LIMIT, MAX_SHIFT, Product, Reader, blas_product, float64_product, int64_product
from vqcodec.model import PRIOR, load_model
from vqcodec.prior import Prior
from vqcodec.scan import scan, scan_known, symbols_of

SMALL = make_config(3, (1, 2, 2), (4, 5, 6), 1)
PRODUCTS = (blas_product, float64_product, int64_product)
KERNELS = [features for features in (1, 2) if library() and library().vqcodec_open(features)]  # AVX2, AVX-512 VNNI


@pytest.fixture(autouse=True, scope="module")
def best_kernel() -> Iterator[None]:
    """What the tests below choose is taken back."""
    yield
    if KERNELS:
        library().vqcodec_open(max(KERNELS))


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    stages = st.tuples(*[st.integers(1, 3)] * 3)
    sizes = st.tuples(*[st.integers(2, 24)] * 3)
    return make_config(draw(st.integers(1, 8)), draw(stages), draw(sizes), draw(st.integers(0, 2)), draw(st.sampled_from([0, 1, 5, 20])))


seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 100)
qualities = st.integers(0, 10_000)
spreads = st.sampled_from([1, 16, 127])
wide = st.sampled_from([15, 16, 17, 31, 33, 48, 80])


def room(tensors: dict[str, Array], layer: str) -> Array:
    """How large the absolute bias of each channel may be."""
    half = (1 << int(tensors[f"{layer}.shift"])) >> 1
    return EXACT_LIMIT - ACTIVATION_MAX * np.abs(tensors[f"{layer}.weight"].astype(int)).sum(0) - half


def up_to_the_bound(rng: np.random.Generator, tensors: dict[str, Array]) -> dict[str, Array]:
    """The same layers with every shift there is, and biases up to what they may be, half of them exactly that."""
    found = dict(tensors)
    for layer in layers_of(tensors):
        found[f"{layer}.shift"] = np.array(rng.integers(0, MAX_SHIFT + 1), np.int32)
        most = room(found, layer)
        chosen = np.where(rng.integers(0, 2, len(most)), most * rng.choice([-1, 1], len(most)), rng.integers(-most, most + 1))
        found[f"{layer}.bias"] = chosen.astype(np.int32)
    return found


def layers_of(tensors: dict[str, Array]) -> list[str]:
    return sorted(name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))


def tensors_of(seed: int = 0) -> dict[str, Array]:
    return random_prior(np.random.default_rng(seed), SMALL)


@given(configs(), seeds, sides, sides, qualities, spreads, st.booleans())
def test_any_codes_survive_any_prior(
    config: ModelConfig, seed: int, height: int, width: int, quality: int, spread: int, lengths: bool
) -> None:
    rng = np.random.default_rng(seed)
    prior = Prior.from_tensors(random_prior(rng, config, spread, lengths), config)
    codes = random_codes(rng, config, height, width)
    payloads = bitstream.write(prior, codes, height, width, quality)
    assert same(bitstream.read(prior, payloads, height, width, quality), codes)


@settings(max_examples=150)
@given(configs(), seeds, sides, sides, qualities, spreads, st.booleans(), st.booleans())
def test_every_product_gives_the_same_bytes_and_codes(
    config: ModelConfig, seed: int, height: int, width: int, quality: int, spread: int, extreme: bool, lengths: bool
) -> None:
    agree(config, seed, (height, width), quality, (spread, extreme, lengths))


@settings(max_examples=25)
@given(wide, wide, wide, seeds, sides, qualities, spreads, st.booleans())
def test_the_same_of_wide_networks(
    channels: int, inner: int, size: int, seed: int, side: int, quality: int, spread: int, extreme: bool
) -> None:
    """More channels and symbols than the kernel computes side by side."""
    agree(make_config(channels, (2, 1, 3), (size, size + 1, size), 1, inner), seed, (side, 70), quality, (spread, extreme, True))


def agree(config: ModelConfig, seed: int, shape: tuple[int, int], quality: int, drawn: tuple[int, bool, bool]) -> None:
    """A random prior, by its spread, whether at the bound, and with lengths or not, writes and reads random codes by every arithmetic."""
    rng, (spread, extreme, lengths), (height, width) = np.random.default_rng(seed), drawn, shape
    tensors = random_prior(rng, config, spread, lengths)
    levels = Prior.from_tensors(up_to_the_bound(rng, tensors) if extreme else tensors, config).levels
    codes = random_codes(rng, config, height, width)
    priors = [Prior(levels, product) for product in PRODUCTS]
    written = [bitstream.write(prior, codes, height, width, quality) for prior in priors]
    assert written[0] == written[1] == written[2]
    assert all(same(bitstream.read(prior, written[0], height, width, quality), codes) for prior in priors)
    compiled = Prior(levels, compiled=True)
    for features in KERNELS:
        library().vqcodec_open(features)
        assert bitstream.write(compiled, codes, height, width, quality) == written[0]
        assert same(bitstream.read(compiled, written[0], height, width, quality), codes)


@given(seeds, st.integers(1, 1040), st.integers(1, 40), st.integers(1, 9), st.sampled_from([0, 16, 126, 127]), st.integers(0, MAX_SHIFT))
def test_a_layer_is_exact_up_to_the_bound(seed: int, inputs: int, outputs: int, count: int, least: int, shift: int) -> None:
    """Integers of Python against every product: weights and activations as large as 1,040 inputs allow, sums of up to 2^24."""
    rng = np.random.default_rng(seed)
    magnitudes = rng.integers(least, 128, (inputs, outputs))
    signs = rng.choice([-1, 1], (inputs, 1)) if seed % 2 else rng.choice([-1, 1], (inputs, outputs))
    tensors = {"it.weight": (signs * magnitudes).astype(np.int8), "it.shift": np.array(shift, np.int32)}
    tensors["it.bias"] = (room(tensors, "it") * rng.choice([-1, 1], outputs)).astype(np.int32)
    given = signs[:, 0] * rng.integers(least, 128, (count, inputs))  # where the signs agree, all terms have the same
    layer = Reader(tensors).layer("it", inputs, outputs)
    weight, half = tensors["it.weight"].astype(object), (1 << shift) >> 1
    expected = (given.astype(object) @ weight + tensors["it.bias"].astype(object) + half) >> shift
    for product in PRODUCTS:
        assert (layer.raw(given.astype(np.float32), product) == expected).all()


@settings(max_examples=40)
@given(
    seeds,
    st.sampled_from([(1, 1), (33, 65), (65, 33), (1, 130), (130, 1)]),
    qualities,
    st.sampled_from([16, 127]),
    st.booleans(),
    st.booleans(),
)
def test_scan_agrees_with_the_plain_reference(
    seed: int, size: tuple[int, int], quality: int, spread: int, lengths: bool, compiled: bool
) -> None:
    rng = np.random.default_rng(seed)
    tensors = random_prior(rng, SMALL, spread, lengths)
    codes = random_codes(rng, SMALL, *size)
    found = scanned_freqs(Prior(Prior.from_tensors(tensors, SMALL).levels, compiled=compiled), codes, size, quality)
    above: reference.Map = {(row, column): [] for row in range(codes.top.shape[1]) for column in range(codes.top.shape[2])}
    for level, code_map in enumerate(codes):
        above = reference.context(tensors, SMALL, level, quality, codes[level - 1] if level else None, above)
        for stage, logits in enumerate(reference.level_logits(tensors, SMALL, level, code_map, above)):
            assert logits.keys() == found[level][stage].keys()
            for place, values in logits.items():
                assert found[level][stage][place].tolist() == reference.frequencies(values), (level, stage, place)


def scanned_freqs(prior: Prior, codes: Codes, size: tuple[int, int], quality: int) -> list[list[dict[tuple[int, int], Array]]]:
    """What `scan` offers to the range coder: per level and stage, the lengths last, the frequencies at each position."""
    found: list[list[dict[tuple[int, int], Array]]] = []
    context: Array | None = None
    for level, (code_map, map_size) in enumerate(zip(codes, map_sizes(*size), strict=True)):
        context = prior.context(level, quality, codes[level - 1] if level else None, context)
        symbols = symbols_of(code_map)
        stages: list[dict[tuple[int, int], Array]] = [{} for _ in symbols]

        def visit(stage: int, rows: Array, columns: Array, freqs: Array, stages: list = stages, known: Array = symbols) -> Array:
            stages[stage].update(zip(zip(rows.tolist(), columns.tolist(), strict=True), freqs.copy(), strict=True))
            return known[stage, rows, columns]

        scan(prior, level, context, map_size, visit)
        found.append(stages)
    return found


@settings(max_examples=100)
@given(configs(), seeds, st.integers(0, 2), st.integers(1, 40), st.integers(1, 40), st.sampled_from([*PRODUCTS, None]), st.booleans())
def test_scans_visit_every_symbol_once_in_few_steps(
    config: ModelConfig, seed: int, level: int, height: int, width: int, product: Product | None, lengths: bool
) -> None:
    """W + 2 (H - 1) steps a level, in each of them all positions of one wavefront that have the symbol; known ones give equal calls."""
    rng = np.random.default_rng(seed)
    prior = Prior(
        Prior.from_tensors(random_prior(rng, config, lengths=lengths), config).levels, product or blas_product, compiled=product is None
    )
    stages = config.transform.levels[level].stages
    context = rng.integers(-127, 128, (height, width, config.prior.channels), np.int8)
    symbols = np.full((stages + 1, height, width), -1, np.int32)
    calls: list[tuple[Array, ...]] = []
    again: list[tuple[Array, ...]] = []

    def visit(stage: int, rows: Array, columns: Array, freqs: Array) -> Array:
        calls.append((np.array(stage), rows, columns, freqs.copy()))
        assert (symbols[stage, rows, columns] == -1).all()
        # the last code of a position is not 0
        least = (symbols[-1, rows, columns] == stage + 1).astype(int)
        symbols[stage, rows, columns] = rng.integers(least, freqs.shape[1])
        return symbols[stage, rows, columns]

    steps = width + 2 * (height - 1)
    assert scan(prior, level, context, (height, width), visit) == steps
    held = symbols[-1] if lengths else np.full((height, width), stages)
    expected: list[tuple[int, list[tuple[int, int]]]] = []
    for t in range(steps):
        front = [(row, t - 2 * row) for row in range(height) if 0 <= t - 2 * row < width]
        expected += [(-1, front)] if lengths else []
        expected += [(stage, [place for place in front if held[place] > stage]) for stage in range(stages)]
    assert [(int(stage), list(zip(rows.tolist(), columns.tolist(), strict=True))) for stage, rows, columns, _ in calls] == [
        (stage, front) for stage, front in expected if front
    ]
    codes = symbols[:-1].clip(0)
    assert not lengths or np.array_equal(symbols_of(codes)[-1], symbols[-1])
    known = symbols_of(codes)
    scan_known(prior, level, context, known, lambda stage, *arrays: again.append((np.array(stage), *map(np.copy, arrays))))
    for (stage, rows, columns, freqs), found in zip(calls, again, strict=True):
        expected_call = (stage, known[stage, rows, columns], freqs)
        assert all(np.array_equal(a, b) for a, b in zip(expected_call, found, strict=True))


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


@given(st.sampled_from(layers_of(tensors_of())), st.integers(0, 1000), seeds, st.sampled_from([1, -1]), st.integers(1, 1 << 30))
def test_bound_is_exact_and_names_layer_and_channel(name: str, index: int, seed: int, sign: int, excess: int) -> None:
    """Any channel of any layer may use the bound up, and not by one more."""
    tensors = up_to_the_bound(np.random.default_rng(seed), tensors_of(seed))
    most, bias = room(tensors, name), tensors[f"{name}.bias"]
    channel = index % len(bias)
    bias[channel] = sign * most[channel]
    Prior.from_tensors(tensors, SMALL)
    for over in {1, excess}:
        bias[channel] = sign * (most[channel] + over)
        with pytest.raises(InvalidModelError, match=rf"{name} is not exact: channel {channel} can reach {EXACT_LIMIT + over},"):
            Prior.from_tensors(tensors, SMALL)


@pytest.mark.parametrize("rows", [1041, 2000])
def test_weights_alone_can_break_the_bound(rows: int) -> None:
    tensors = {"it.weight": np.full((rows, 3), 1, np.int8), "it.bias": np.zeros(3, np.int32), "it.shift": np.array(0, np.int32)}
    Reader(tensors).layer("it", rows, 3)
    tensors["it.weight"][:, 2] = -127
    with pytest.raises(InvalidModelError, match=rf"it is not exact: channel 2 can reach {127 * 127 * rows},"):
        Reader(tensors).layer("it", rows, 3)


def test_a_model_folder_that_breaks_the_bound_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / PRIOR)
    tensors["middle.first.bias"][5] = 1 << 24
    save_file(tensors, tmp_path / "model" / PRIOR)
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    with pytest.raises(InvalidModelError, match=r"middle\.first is not exact: channel 5 "):
        load_model(tmp_path / "model").prior  # noqa: B018 - opens it
    result = vqcodec("compress", "a.png", "-m", "model", cwd=tmp_path)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"middle.first is not exact: channel 5 " in result.stderr
    assert not (tmp_path / "a.vq").exists()


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
