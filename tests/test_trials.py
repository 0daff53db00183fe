"""Trials: positions take the alternative that costs less, of real files too, and what disturbs nothing is decided exactly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.support import GOLDENS, IMAGES, Array, load_image, noise
from vqcodec import bitstream, codec, metrics, transform
from vqcodec.adaptation import unpacked
from vqcodec.codes import CodeMap
from vqcodec.config import LEVELS
from vqcodec.model import Model, load_model
from vqcodec.prior import Prior
from vqcodec.trials import BOTTOM, SPACING, WORTHLESS, Placed, Trials, decided, spread_out, squared_errors


@pytest.mark.parametrize("first", [(0, 0), (1, 2), (5, 0)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 3), (7, 5), (12, 10)])
def test_what_disturbs_nothing_is_decided_as_if_alone(shape: tuple[int, int], first: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, *shape))  # what each code costs, wherever its neighbours stand
    start, *alternatives = rng.permuted(np.broadcast_to(np.arange(4, dtype=np.int32)[:, None, None], table.shape), axis=0)[:3, None]
    guesses = rng.normal(size=(2, *shape))  # in whatever order they are tried

    def cost(codes: CodeMap) -> Array:
        return np.asarray(np.take_along_axis(table, codes, 0)[0])

    found = decided(start, np.stack(alternatives), guesses, cost, 99, first)
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

    assert decided(start, other[None], np.zeros((1, 9, 9)), cost, 1).any() == taken


def test_no_alternative_is_no_trial() -> None:
    codes = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
    calls: list[CodeMap] = []

    def cost(tried: CodeMap) -> Array:
        calls.append(tried)
        return np.zeros(tried.shape[1:])

    assert np.array_equal(decided(codes, codes[None], np.zeros((1, 3, 4)), cost, 9), codes)
    assert np.array_equal(decided(codes, codes[None] + 1, np.full((1, 3, 4), WORTHLESS), cost, 9), codes)
    assert len(calls) == 2


def test_what_promises_most_is_tried_first() -> None:
    codes, calls = np.zeros((1, 1, 1), np.int32), []

    def cost(tried: CodeMap) -> Array:
        calls.append(int(tried[0, 0, 0]))
        return 10.0 - tried[0]

    alternatives = np.array([1, 2, 3], np.int32).reshape(3, 1, 1, 1)
    assert decided(codes, alternatives, np.array([2.0, -1.0, 1.0]).reshape(3, 1, 1), cost, 2).item() == 3
    assert calls == [0, 2, 3]


def test_what_was_refused_is_not_tried_again() -> None:
    """Where it was: elsewhere the same codes are. What was taken may come back."""
    codes, calls = np.zeros((2, 1, 9), np.int32), []
    one, two = codes.copy(), codes.copy()
    one[:, 0, 1], two[:, 0, [1, 5]] = 1, [[1, 2], [1, 2]]
    refused: list[Placed] = []

    def cost(tried: CodeMap) -> Array:
        calls.append(tried)
        return np.asarray((tried[0] == 1) - (tried[0] == 2).astype(float))

    assert np.array_equal(decided(codes, one[None], -np.ones((1, 1, 9)), cost, 9, refused=refused), codes)
    found = decided(codes, two[None], -np.ones((1, 1, 9)), cost, 9, refused=refused)
    assert found[0, 0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert [tried[0, 0, [1, 5]].tolist() for tried in calls] == [[0, 0], [1, 0], [0, 0], [0, 2]]
    assert np.array_equal(decided(codes, found[None], -np.ones((1, 1, 9)), cost, 9, refused=refused), found)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (17, 23)])
def test_positions_of_a_round_lie_apart_and_leave_no_better_one_out(shape: tuple[int, int], falling: bool) -> None:
    guesses = np.random.default_rng(1).normal(size=shape) + 1
    guesses[guesses > 2] = WORTHLESS
    if falling:
        guesses = -np.sort(-guesses.ravel()).reshape(shape)
    chosen = spread_out(guesses, (0, 0))
    assert not chosen[guesses >= WORTHLESS].any()
    rows, columns = chosen.nonzero()
    apart = np.maximum(abs(rows[:, None] - rows), abs(columns[:, None] - columns))
    assert (apart[~np.eye(len(rows), dtype=bool)] >= SPACING).all()
    for row, column in np.argwhere((guesses < WORTHLESS) & ~chosen):
        near = np.maximum(abs(rows - row), abs(columns - column)) < SPACING
        assert guesses[rows[near], columns[near]].min() < guesses[row, column]


@pytest.mark.parametrize("first", [(0, 0), (1, 2)])
def test_equals_are_tried_on_a_lattice(first: tuple[int, int]) -> None:
    """So that a plain picture's positions all have their turn in nine rounds, and in the same order whatever tile they lie in."""
    whole, part = np.zeros((12, 12), bool), spread_out(np.zeros((9, 8)), first)
    whole[::SPACING, ::SPACING] = True
    assert np.array_equal(part, whole[first[0] :, first[1] :][:9, :8])


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


@pytest.mark.parametrize("width", [20, 90])  # of one position at the top, whose every second wavefront is empty, and of more
@pytest.mark.parametrize("compiled", [True, False])
def test_the_bits_of_alternatives_are_those_of_maps_where_one_position_has_changed(compiled: bool, width: int) -> None:
    model = load_model(GOLDENS[-1] / "model")
    prior = Prior(model.prior.levels, compiled=compiled)
    codes, others = (model.encode(noise(70, width)[::step], quality) for step, quality in ((1, 50), (-1, 90)))
    context = prior.context(0, 5000, None, None)
    for level, (code_map, other) in enumerate(zip(codes, others, strict=True)):
        if level:
            context = prior.context(level, 5000, codes[level - 1], context)
        found = bitstream.alternative_bits(prior, level, context, code_map, np.stack([code_map, other]))
        assert np.array_equal(found[0], bitstream.position_bits(prior, level, context, code_map))
        for row, column in ((0, 0), (-1, -1), (1, -1)):
            changed = code_map.copy()
            changed[:, row, column] = other[:, row, column]
            assert found[1, row, column] == bitstream.position_bits(prior, level, context, changed)[row, column]


def lagrangian(quality: int, effort: int, model: Model, name: str = "chelsea.png") -> float:
    """Lambda times the error plus the bits, of a whole file."""
    image, config = load_image(IMAGES / name), model.config.transform
    data = codec.compress(image, quality, model, effort=effort)
    weight = config.lagrangian(quality / 100) / 255**2
    return float(weight * metrics.mse(image, codec.decompress(data, model)) + metrics.bpp(len(data), *image.shape[:2]))


def test_turns_do_not_try_again_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = load_model(GOLDENS[-1] / "model"), noise(64, 96)
    known = {"image": image[None], "quality": np.array([0.5], np.float32), "coordinates": None}
    for level, name in enumerate(LEVELS):
        known = model.transform.encoded(level, known)
        known[name] = model.transform.ranked(level, known, 4)[0]
    alternatives = model.transform.ranked(BOTTOM, known, 8, 8)
    trials, calls, decode = Trials(model.transform, model.prior, 5000, image, (0, 0), (64, 96)), [], model.transform.decode

    def counted(*arguments: Any, **named: Any) -> Array:
        calls.append(1)
        return decode(*arguments, **named)

    monkeypatch.setattr(model.transform, "decode", counted)
    tried: list[int] = []
    while len(tried) < 20 and tried[-1:] != [1]:  # what was left may come back, but not for ever
        before = len(calls)
        known[LEVELS[BOTTOM]] = trials.bottom(known, alternatives, 999)
        tried.append(len(calls) - before)
    assert 9 < len(calls) < 2 * tried[0]


@pytest.mark.weights
@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize(("effort", "least"), [(7, 0.008), (9, 0.025)])
def test_files_of_tried_codes_cost_less(
    quality: int, effort: int, least: float, default_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Than those of the same effort without trials."""
    tried = lagrangian(quality, effort, default_model)
    monkeypatch.setattr("vqcodec.model.TRIALS", (((), ()),) * len(transform.TRIALS))
    assert tried < (1 - least) * lagrangian(quality, effort, default_model)


@pytest.mark.weights
def test_files_cost_less_where_the_middle_follows_the_gradient(default_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Than where all of its turns try what the first one left; four files, as single ones may gain a few hundredths of a per cent."""

    def costs() -> Array:
        pictures = itertools.product(("astronaut.png", "coffee.png"), (10, 40))
        return np.array([lagrangian(quality, 8, default_model, name) for name, quality in pictures])

    followed = costs()
    monkeypatch.setattr("vqcodec.transform.MIDDLE_TURN", 0)
    assert (followed / costs()).mean() < 0.999


def test_gradients_and_trials_see_the_adapted_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as the decoder was adapted before the last move of the bottom latents."""
    model, run, given = load_model(GOLDENS[-1] / "model"), transform.run, list[tuple[tuple[str, ...] | None, Array]]()

    def recorded(session: Any, known: dict[str, Any], last: bool, outputs: tuple[str, ...] | None = None) -> dict[str, Any]:
        given.append((outputs, known["coordinates"]))
        return run(session, known, last, outputs)

    monkeypatch.setattr(transform, "run", recorded)
    model.encode(noise(64, 96), 50, effort=9)
    expected = np.zeros(0)
    for outputs, coordinates in given:
        if outputs == ("wanted",):
            expected = coordinates
            assert expected.any()
        elif outputs in {("wanted_middle",), ("image",)}:
            assert np.array_equal(coordinates, expected)
    assert {("wanted",), ("wanted_middle",), ("image",)} <= {outputs for outputs, _ in given}


@pytest.mark.weights
def test_files_cost_less_where_the_decoder_is_adapted_meanwhile(default_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Than where that comes after all codes are chosen."""

    def costs() -> Array:
        return np.array([lagrangian(80, 7, default_model, name) for name in ("astronaut.png", "coffee.png")])

    def nothing(payload: bytes, height: int, width: int, count: int) -> Array:
        return unpacked(b"", height, width, count)

    meanwhile = costs()
    monkeypatch.setattr("vqcodec.transform.unpacked", nothing)
    assert (meanwhile < 0.999 * costs()).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 90), (33, 64)])
def test_small_pictures(height: int, width: int) -> None:
    """Beyond a picture's end no error counts, and there may be fewer positions than are tried at a time."""
    model = load_model(GOLDENS[-1] / "model")
    image = noise(height, width)
    codes = codec.decode_codes(codec.compress(image, 50, model, effort=9), model)
    assert all(np.array_equal(*maps) for maps in zip(codes, model.encode(image, 50, effort=9), strict=True))
