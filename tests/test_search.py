"""The search for codes, in numpy and compiled: what torch's finds, whatever the range of numbers; misshapen arrays are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.support import Array
from vqcodec import kernel, search
from vqcodec.config import LevelConfig
from vqcodec.errors import InvalidModelError
from vqcodec.search import Search

WIDTH = 6
LEVEL = LevelConfig(3, 8, 4)


@pytest.fixture(params=["0", "avx2", "best"], autouse=True)
def every_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In numpy, and with both widths of vectors where the processor has them."""
    monkeypatch.setenv("VQCODEC_KERNEL", request.param)
    kernel.library.cache_clear()
    if request.param != "0" and kernel.library() is None:
        pytest.skip("no compiled kernel for this processor")
    yield
    kernel.library.cache_clear()


def tensors(seed: int = 0, level: LevelConfig = LEVEL, width: int = WIDTH) -> dict[str, Array]:
    """A quantiser of random numbers, under the names of an export."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"codebooks": (level.stages, level.codebook_size, level.dim)}
    for stage in range(level.stages):
        shapes |= {f"hidden.{stage}.weight": (width, width), f"hidden.{stage}.bias": (width,)}
        shapes |= {f"logits.{stage}.weight": (level.codebook_size, width), f"logits.{stage}.bias": (level.codebook_size,)}
        if stage:
            shapes |= {f"from_sum.{stage - 1}.weight": (width, level.dim), f"from_sum.{stage - 1}.bias": (width,)}
    return {f"q.{name}": rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def latents_and_context(count: int, seed: int = 1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(count, LEVEL.dim)).astype(np.float32), rng.normal(size=(count, WIDTH)).astype(np.float32)


def costs(made: dict[str, Array], latents: Array, context: Array, codes: tuple[int, ...]) -> Array:
    """||z - sum e||^2 - log2 p(codes), from the definition, in float64: (N,)."""
    numbers = {name.removeprefix("q."): tensor.astype(np.float64) for name, tensor in made.items()}
    total, bits = np.zeros_like(latents, np.float64), np.zeros(len(latents))
    for stage, code in enumerate(codes):
        hidden = context @ numbers[f"hidden.{stage}.weight"].T + numbers[f"hidden.{stage}.bias"]
        if stage:
            hidden += total @ numbers[f"from_sum.{stage - 1}.weight"].T + numbers[f"from_sum.{stage - 1}.bias"]
        logits = np.where(hidden > 0, hidden, 0.1 * hidden) @ numbers[f"logits.{stage}.weight"].T + numbers[f"logits.{stage}.bias"]
        logits -= logits.max(1, keepdims=True)
        bits -= logits[:, code] / np.log(2) - np.log2(np.exp(logits).sum(1))
        total += numbers["codebooks"][stage, code]
    return np.square(latents - total).sum(1) + bits


@pytest.fixture(scope="module")
def everything() -> tuple[dict[str, Array], Array, Array, Array]:
    """Tensors, latents, context, and the cost of every path of codes: (512, N)."""
    made, (latents, context) = tensors(), latents_and_context(200)
    for stage in range(LEVEL.stages):
        made[f"q.logits.{stage}.bias"][0] = -100  # code 0, which ends a position, is too dear
    paths = product(range(LEVEL.codebook_size), repeat=LEVEL.stages)
    return made, latents, context, np.stack([costs(made, latents, context, path) for path in paths])


def cost_of(codes: Array, table: Array) -> Array:
    index = codes[0] * LEVEL.codebook_size**2 + codes[1] * LEVEL.codebook_size + codes[2]
    return np.asarray(table[index, np.arange(codes.shape[1])])


def test_with_all_paths_the_search_finds_the_best(everything: tuple[dict[str, Array], Array, Array, Array]) -> None:
    made, latents, context, table = everything
    found = cost_of(Search.from_tensors(made, "q", LEVEL, WIDTH)(latents, context, LEVEL.codebook_size**2), table)
    assert np.allclose(found, table.min(0), atol=1e-3)


def test_the_cheapest_paths_come_in_order(everything: tuple[dict[str, Array], Array, Array, Array]) -> None:
    made, latents, context, table = everything
    quantiser = Search.from_tensors(made, "q", LEVEL, WIDTH)
    ranked = quantiser.ranked(latents, context, LEVEL.codebook_size**2, 5)
    assert np.array_equal(ranked[0], quantiser(latents, context, LEVEL.codebook_size**2))
    found = np.stack([cost_of(codes, table) for codes in ranked])
    assert np.allclose(found, np.sort(table, 0)[:5], atol=1e-3)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_distances_are_those_from_the_sums_of_the_codebooks(weight: float) -> None:
    """Zeros among them, in which most positions end."""
    level = replace(LEVEL, rate_weight=weight)
    made, (latents, _) = tensors(), latents_and_context(20)
    codes = np.random.default_rng(3).integers(level.codebook_size, size=(4, level.stages, 20), dtype=np.int32)
    codes[1, 1:] = 0
    found = Search.from_tensors(made, "q", level, WIDTH).distances(latents, codes)
    for index, paths in enumerate(codes):
        sums = sum(made["q.codebooks"][stage, chosen].astype(np.float32) for stage, chosen in enumerate(paths))
        assert np.allclose(found[index], np.square(latents - sums).sum(1) / weight, rtol=1e-5)


def test_where_there_are_fewer_paths_the_last_comes_again() -> None:
    made, (latents, context) = tensors(level=LevelConfig(1, 2, 4)), latents_and_context(50)
    ranked = Search.from_tensors(made, "q", LevelConfig(1, 2, 4), WIDTH).ranked(latents, context, 4, 4)
    assert np.array_equal(ranked[0] + ranked[1], np.ones((1, 50)))
    assert np.array_equal(ranked[2:], np.stack([ranked[1]] * 2))


def test_alternatives_end_where_the_position_ends() -> None:
    """All paths took code 0 there, after different codes."""
    made, (latents, context) = tensors(), latents_and_context(300)
    made["q.codebooks"][:, 0] = 0
    made["q.logits.1.bias"][0] = 1000
    quantiser = Search.from_tensors(made, "q", LEVEL, WIDTH)
    ranked = quantiser.ranked(latents, context, 2, 2)
    assert np.array_equal(ranked[0], quantiser(latents, context, 2))
    assert not ranked[:, 1:].any()
    assert (ranked[0, 0] != ranked[1, 0]).all()


@pytest.mark.parametrize("rate_weight", [0.2, 3.0])
def test_bits_count_by_the_rate_weight(rate_weight: float) -> None:
    made, (latents, context) = tensors(), latents_and_context(200)
    level = replace(LEVEL, stages=1, rate_weight=rate_weight)
    found = Search.from_tensors({**made, "q.codebooks": made["q.codebooks"][:1]}, "q", level, WIDTH)(latents, context, 1)[0]
    squared = np.square(latents[None] - made["q.codebooks"][0].astype(np.float64)[:, None]).sum(2)
    bits = np.stack([costs(made, latents, context, (code,)) for code in range(LEVEL.codebook_size)]) - squared
    weighed = squared + rate_weight * bits
    assert np.allclose(weighed[found, np.arange(200)], weighed.min(0), atol=1e-3)
    assert (found != (squared + bits).argmin(0)).any()


def test_more_paths_find_better_codes(everything: tuple[dict[str, Array], Array, Array, Array]) -> None:
    made, latents, context, table = everything
    quantiser = Search.from_tensors(made, "q", LEVEL, WIDTH)
    means = [cost_of(quantiser(latents, context, paths), table).mean() for paths in (1, 2, 4, 16)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]


def test_a_path_ends_with_its_first_code_0() -> None:
    """Up to there the codes are those of a quantiser with so many stages, after it all are 0."""
    made, (latents, context) = tensors(), latents_and_context(300)
    made["q.codebooks"][:, 0] = 0
    for stage in range(LEVEL.stages):
        made[f"q.logits.{stage}.bias"][0] += 2 * stage  # so that every length occurs
    quantiser = Search.from_tensors(made, "q", LEVEL, WIDTH)
    found = quantiser(latents, context, 1)
    lengths = (np.arange(1, LEVEL.stages + 1)[:, None] * (found != 0)).max(0)
    assert set(lengths) == set(range(LEVEL.stages + 1))
    assert all((found[stage, lengths <= stage] == 0).all() and (found[stage, lengths > stage] != 0).all() for stage in range(LEVEL.stages))
    for stages in range(1, LEVEL.stages + 1):
        codes = Search(quantiser.stages[:stages])(latents, context, 1)
        assert np.array_equal(codes, found[:stages])
    several = quantiser.ranked(latents, context, 4, 4)
    assert not ((several == 0)[:, :-1] & (several != 0)[:, 1:]).any()
    assert ((several[0] == 0) & (several[1] != 0)).any()  # the best path has ended, and others went on


def test_positions_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser, (latents, context) = Search.from_tensors(tensors(), "q", LEVEL, WIDTH), latents_and_context(100)
    whole = quantiser(latents, context, 3)
    monkeypatch.setattr(search, "TABLE_COSTS", 7 * 3 * LEVEL.codebook_size)
    monkeypatch.setattr(search, "COMPILED_ROWS", 7)
    assert np.array_equal(quantiser(latents, context, 3), whole)
    assert np.array_equal(quantiser(latents[50:], context[50:], 3), whole[:, 50:])


@pytest.mark.parametrize("scale", [60.0, 30_000.0])
def test_logits_beyond_the_range_of_powers(scale: float) -> None:
    """Where 2^logit leaves float32, the search still finds what the definition says."""
    made, (latents, context) = tensors(), latents_and_context(100)
    made["q.logits.0.weight"] = (made["q.logits.0.weight"].astype(np.float32) * scale / 10).astype(np.float16)
    context *= 10
    found = Search.from_tensors(made, "q", LEVEL, WIDTH)(latents, context, 1)
    rest = made["q.codebooks"][1:, 0].astype(np.float32).sum(0)  # code 0 of the later stages, as if the position ended here
    first = np.stack([costs(made, latents - rest, context, (code,)) for code in range(LEVEL.codebook_size)])
    chosen = first[found[0], np.arange(100)]
    assert np.allclose(chosen, first.min(0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("rate_weight", [1.0, 0.35])
def test_the_search_in_torch_finds_the_same(rate_weight: float) -> None:
    torch = pytest.importorskip("torch")
    from vqcodec.training.quantize import ResidualQuantizer

    made, (latents, context) = tensors(), latents_and_context(300)
    level = replace(LEVEL, rate_weight=rate_weight)
    quantiser = ResidualQuantizer(level, WIDTH)
    with torch.no_grad():
        for name, parameter in quantiser.named_parameters():
            parameter.copy_(torch.from_numpy(made[f"q.{name}"].astype(np.float32)))
        for paths in (1, 4):
            expected = quantiser.search(torch.from_numpy(latents), torch.from_numpy(context), 1.0, paths)[0].T.numpy()
            assert np.array_equal(Search.from_tensors(made, "q", level, WIDTH)(latents, context, paths), expected)


@pytest.mark.parametrize("seed", range(20))
def test_quantisers_of_all_shapes(seed: int) -> None:
    """What is found costs what numpy's search finds costs, up to rounding; numbers that are none do no harm."""
    rng = np.random.default_rng(seed)
    level, width = LevelConfig(int(rng.integers(1, 5)), int(rng.integers(1, 90)), int(rng.integers(1, 40))), int(rng.integers(1, 50))
    count, paths = int(rng.integers(1, 600)), int(rng.choice([1, 2, 4, 16]))
    latents = 3 * rng.normal(size=(count, level.dim)).astype(np.float32)
    context = rng.normal(size=(count, width)).astype(np.float32)
    made = tensors(seed, level, width)
    made["q.logits.0.bias"][0] += rng.choice([0, 3, 20])
    made["q.codebooks"][:, 0] *= seed % 2
    quantiser = Search.from_tensors(made, "q", level, width)
    found = quantiser(latents, context, paths)
    expected = quantiser._some(latents, context, paths, paths)
    assert (found == expected[0]).all(0).mean() > 0.99
    ranked = quantiser.ranked(latents, context, paths, paths)
    assert (ranked == expected).all(1).mean() > 0.95  # paths of nearly equal cost
    made["q.logits.0.bias"][-1] = rng.choice([np.nan, np.inf, -np.inf])
    found = Search.from_tensors(made, "q", level, width)(latents, context, paths)
    assert ((found >= 0) & (found < level.codebook_size)).all()


def test_no_positions_have_no_codes() -> None:
    latents, context = latents_and_context(0)
    assert Search.from_tensors(tensors(), "q", LEVEL, WIDTH)(latents, context, 4).shape == (LEVEL.stages, 0)


def test_a_level_without_stages_has_no_codes() -> None:
    level = LevelConfig(0, 8, 4)
    latents, context = latents_and_context(5)
    assert Search.from_tensors(tensors(level=level), "q", level, WIDTH)(latents, context, 4).shape == (0, 5)


@pytest.mark.parametrize("name", sorted(tensors()))
def test_missing_and_misshapen_tensors_are_named(name: str) -> None:
    made = tensors()
    for wrong in (None, made[name][..., :-1], made[name].astype(np.float64)):
        spoilt = {**made, name: wrong} if wrong is not None else {key: value for key, value in made.items() if key != name}
        with pytest.raises(InvalidModelError, match=name):
            Search.from_tensors(spoilt, "q", LEVEL, WIDTH)


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x[:, :-1], lambda x: x.astype(np.float64), lambda x: x[None]])
def test_arrays_that_do_not_fit_are_refused(change: object) -> None:
    quantiser, (latents, context) = Search.from_tensors(tensors(), "q", LEVEL, WIDTH), latents_and_context(10)
    for arrays in ((change(latents), context), (latents, change(context))):  # type: ignore[operator]
        with pytest.raises(ValueError, match="instead of float32"):
            quantiser(*arrays, 2)
