"""Targets: the search comes closest without being worse, and says what can be reached."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import GOLDEN
from vqcodec import codec, metrics
from vqcodec.codes import Codes
from vqcodec.container import Extras, Metadata
from vqcodec.errors import TargetError
from vqcodec.model import Model
from vqcodec.targets import TOLERANCE, compress_to, search


def picture() -> np.ndarray:
    with np.load(GOLDEN / "photo-q60.image.npz", allow_pickle=False) as data:
        return np.asarray(data["original"])


def mse_at(quality: float, model: Model) -> float:
    return metrics.mse(picture(), codec.decompress(codec.compress(picture(), quality, model), model))


@given(st.floats(1, 1e6), st.floats(1, 8), st.floats(0.5, 2))
def test_search_finds_the_closest_step_that_is_not_above(limit: float, growth: float, scale: float) -> None:
    calls: list[int] = []

    def measure(step: int) -> float:
        calls.append(step)
        return 100 * scale * (1 + step / 100) ** growth

    step, reached = search(measure, limit)
    assert len(calls) == len(set(calls)) <= 16
    assert reached == measure(step)
    if reached > limit:
        assert step == 0
    else:
        assert reached >= (1 - TOLERANCE) * limit or step == 10_000 or measure(step + 1) > limit


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_size(fraction: float, model: Model) -> None:
    small, large = (len(codec.compress(picture(), quality, model)) for quality in (0, 100))
    goal = int(min(small, large) + fraction * abs(large - small))
    data = compress_to(picture(), "size", goal, model)
    assert len(data) <= goal
    quality = codec.info(data, model)["quality"]
    assert data == codec.compress(picture(), quality, model)
    assert compress_to(picture(), "bpp", 8 * goal / (88 * 104), model) == data


def test_size_counts_everything_in_the_file(model: Model) -> None:
    metadata = Metadata(exif=bytes(500))
    goal = len(codec.compress(picture(), 50, model)) + 300
    with pytest.raises(TargetError):
        compress_to(picture(), "size", 500, model, metadata)
    assert len(compress_to(picture(), "size", goal + 500, model, metadata)) <= goal + 500


def test_distortion(model: Model) -> None:
    goal = mse_at(100, model) * 1.05
    data = compress_to(picture(), "mse", goal, model)
    assert metrics.mse(picture(), codec.decompress(data, model)) <= goal
    assert compress_to(picture(), "psnr", metrics.psnr(goal) - 1e-9, model) == data


def test_gray_with_alpha_is_measured_on_its_colours(model: Model) -> None:
    gray = np.dstack([picture()[:, :, 1], picture()[:, :, 0]])
    reached = metrics.mse(gray[:, :, :1], codec.decompress(codec.compress(gray, 100, model), model)[:, :, :1])
    restored = codec.decompress(compress_to(gray, "mse", reached * 1.1, model), model)
    assert metrics.mse(gray[:, :, :1], restored[:, :, :1]) <= reached * 1.1


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [("size", 10, "bytes.*or more$"), ("bpp", 1e-3, "bpp.*or more$"), ("psnr", 90, "dB.*little less$"), ("mse", 0.01, "MSE.*little more$")],
)
def test_out_of_reach(kind: str, value: float, says: str, model: Model) -> None:
    with pytest.raises(TargetError, match=says):
        compress_to(picture(), kind, value, model)


def test_more_than_the_model_can_use_is_its_best(model: Model) -> None:
    assert codec.info(compress_to(picture(), "size", 10**9, model), model)["quality"] == 100


@pytest.mark.parametrize("kind", ["size", "mse"])
def test_one_try_is_kept_at_a_time(kind: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of all tries of a large picture would take gigabytes."""
    alive: list[int] = []
    made: list[weakref.ref[object]] = []

    def watched(*arguments: object) -> tuple[Codes, Extras]:
        found = codec.encode(*arguments)  # type: ignore[arg-type]
        made.append(weakref.ref(found[0].bottom))
        alive.append(sum(one() is not None for one in made))
        return found

    monkeypatch.setattr("vqcodec.targets.encode", watched)
    value = sum(len(codec.compress(picture(), quality, model)) for quality in (0, 100)) / 2 if kind == "size" else mse_at(37, model)
    compress_to(picture(), kind, value, model)
    assert len(alive) >= 3
    assert max(alive) <= 2  # the newest and the closest


@pytest.mark.parametrize(("kind", "value"), [("ssim", 1), ("size", 0), ("psnr", float("nan")), ("mse", -1)])
def test_impossible_targets(kind: str, value: float, model: Model) -> None:
    with pytest.raises(ValueError, match="target"):
        compress_to(picture(), kind, value, model)
