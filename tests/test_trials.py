"""Trials: positions take the alternative that costs less, of real files too, and what disturbs nothing is decided exactly."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import GOLDENS, IMAGES, Array, load_image, noise
from vqcodec import bitstream, codec, metrics, transform
from vqcodec.codes import CodeMap
from vqcodec.model import Model, load_model
from vqcodec.trials import decided, squared_errors


@pytest.mark.parametrize("first", [(0, 0), (1, 2), (5, 0)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 3), (7, 5), (12, 10)])
def test_what_disturbs_nothing_is_decided_as_if_alone(shape: tuple[int, int], first: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, *shape))  # what each code costs, wherever its neighbours stand
    start, *alternatives = rng.permuted(np.broadcast_to(np.arange(4, dtype=np.int32)[:, None, None], table.shape), axis=0)[:3, None]

    def cost(codes: CodeMap) -> Array:
        return np.asarray(np.take_along_axis(table, codes, 0)[0])

    found = decided(start, alternatives, cost, first)
    assert np.array_equal(cost(found), np.min([cost(codes) for codes in (start, *alternatives)], 0))


@pytest.mark.parametrize(("distance", "taken"), [(1, False), (2, True)])
def test_a_position_answers_for_those_next_to_it(distance: int, taken: bool) -> None:
    """What is better at the position itself, and dearer by more in all around, is taken where that is farther away."""
    start = np.zeros((1, 9, 9), np.int32)
    other = start.copy()
    other[0, 4, 5] = 1

    def cost(codes: CodeMap) -> Array:
        ways = [(distance, 0), (-distance, 0), (0, distance), (0, -distance)]
        return np.asarray(0.3 * sum(np.roll(codes[0], way, (0, 1)) for way in ways) - codes[0])

    assert decided(start, [other], cost).any() == taken


def test_no_alternative_is_no_trial() -> None:
    codes = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
    calls: list[CodeMap] = []

    def cost(tried: CodeMap) -> Array:
        calls.append(tried)
        return np.zeros(tried.shape[1:])

    assert np.array_equal(decided(codes, [codes.copy()], cost), codes)
    assert len(calls) == 1


def test_squared_errors_add_up_to_the_mse() -> None:
    first, second = noise(24, 40), noise(24, 40)[::-1]
    errors = squared_errors(first, second, 8)
    assert errors.shape == (3, 5)
    assert errors.sum() / (24 * 40) == pytest.approx(metrics.mse(first, second))
    assert errors[1, 2] / 64 == pytest.approx(metrics.mse(first[8:16, 16:24], second[8:16, 16:24]))


def test_the_bits_of_positions_add_up_to_those_of_levels() -> None:
    model = load_model(GOLDENS[-1] / "model")
    codes = model.encode(noise(70, 90), 50)
    context = None
    for level, ideal in enumerate(bitstream.ideal_bits(model.prior, codes, 5000)):
        context = model.prior.context(level, 5000, codes[level - 1] if level else None, context)
        bits = bitstream.position_bits(model.prior, level, context, codes[level])
        assert bits.shape == codes[level].shape[1:]
        assert (bits >= 0).all()
        assert bits.sum() == pytest.approx(sum(ideal), rel=1e-9)


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_files_of_tried_codes_cost_less(quality: int, default_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By lambda times the error plus the bits; whole files of the same effort, half a per cent at least."""
    image = load_image(IMAGES / "chelsea.png")
    config = default_model.config.transform
    weight = config.lambda_min * (config.lambda_max / config.lambda_min) ** (quality / 100) / 255**2

    def cost() -> float:
        data = codec.compress(image, quality, default_model, effort=9)
        return float(weight * metrics.mse(image, codec.decompress(data, default_model)) + metrics.bpp(len(data), *image.shape[:2]))

    tried = cost()
    monkeypatch.setattr("vqcodec.model.TRIALS", ((0, 0),) * len(transform.TRIALS))
    assert tried < 0.995 * cost()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 90), (33, 64)])
def test_small_pictures(height: int, width: int) -> None:
    """Beyond a picture's end no error counts, and there may be fewer positions than are tried at a time."""
    model = load_model(GOLDENS[-1] / "model")
    image = noise(height, width)
    codes = codec.decode_codes(codec.compress(image, 50, model, effort=9), model)
    assert all(np.array_equal(*maps) for maps in zip(codes, model.encode(image, 50, effort=9), strict=True))
