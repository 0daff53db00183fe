"""The decoder's last layer, adapted to a picture: coordinates in the file, their fit, and the basis that a training finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import GOLDENS, IMAGES, Array, load_image, noise, random_codes
from vqcodec import codec, container, metrics, targets, transform
from vqcodec.adaptation import LARGEST, Moments, errors_of, fitted, packed, scale_of, unpacked
from vqcodec.container import Extras
from vqcodec.errors import DamagedError, InvalidModelError
from vqcodec.model import Model, load_model
from vqcodec.tiles import tiles

COUNT, FEATURES, OUTPUTS = 5, 7, 48
SIZE = (70, 90)


@pytest.fixture(scope="module")
def adapted() -> Model:
    """A tiny seeded model whose last layer can be adapted by three numbers."""
    return load_model(GOLDENS[-1] / "model")


@pytest.fixture(scope="module")
def picture() -> Array:
    return load_image(IMAGES / "astronaut.png")[60 : 60 + SIZE[0], 180 : 180 + SIZE[1]]


def file_with(model: Model, adaptation: bytes) -> bytes:
    codes = random_codes(np.random.default_rng(1), model.config, *SIZE)
    return codec.pack_codes(codes, *SIZE, 50, model, Extras(adaptation=adaptation))


@given(st.lists(st.integers(-LARGEST, LARGEST), min_size=1, max_size=64))
def test_coordinates_there_and_back(values: list[int]) -> None:
    payload = packed(np.array(values, np.int8))
    assert len(payload) == -(-len(np.trim_zeros(values, "b")) // 2)
    assert unpacked(payload, len(values)).tolist() == values


@pytest.mark.parametrize(("payload", "count"), [(b"\x11\x11", 3), (b"\x08", 4), (b"\x80", 4), (b"\x01", 0), (b"\x00\x01", 2)])
def test_coordinates_that_cannot_be(payload: bytes, count: int) -> None:
    with pytest.raises(DamagedError, match="adapts the decoder"):
        unpacked(payload, count)


def test_errors_lie_as_the_decoder_shuffles_pixels() -> None:
    torch = pytest.importorskip("torch")
    image, decoded = noise(8, 12), noise(8, 12, 1)
    missing = torch.from_numpy((image.astype(np.float32) - decoded) / 255).permute(2, 0, 1)
    expected = torch.nn.functional.pixel_unshuffle(missing, 4).flatten(1).T.numpy()
    assert np.allclose(errors_of(image, decoded), expected)


def drawn(seed: int, count: int = 400) -> tuple[Array, Array]:
    """A basis, and features with a scale for each."""
    random = np.random.default_rng(seed)
    basis = 0.01 * random.normal(size=(COUNT, FEATURES + 1, OUTPUTS))
    return basis, random.normal(size=(count, FEATURES)) * random.uniform(0.1, 3, FEATURES)


@given(st.lists(st.integers(-LARGEST, LARGEST), min_size=COUNT, max_size=COUNT), st.integers(0, 9))
def test_the_fit_finds_what_there_is(values: list[int], seed: int) -> None:
    basis, features = drawn(seed)
    known = np.concatenate([features, np.ones((len(features), 1))], 1)
    found = fitted(Moments.of(features, known @ np.tensordot(values, basis, 1)), basis, 1e9)
    assert found.tolist() == values


def test_what_is_not_worth_its_bits_is_left_out() -> None:
    basis, features = drawn(0)
    known = np.concatenate([features, np.ones((len(features), 1))], 1)
    errors = known @ np.tensordot([3, 0, -2, 0, 1], basis, 1)
    gains = [np.count_nonzero(fitted(Moments.of(features, errors), basis, lagrangian)) for lagrangian in (1e-9, 1e-1, 1e9)]
    assert gains[0] == 0
    assert gains == sorted(gains)
    assert gains[-1] == 3
    assert not fitted(Moments.of(features, 0 * errors), basis, 1e9).any()


def test_moments_add_up() -> None:
    basis, features = drawn(2)
    errors = np.random.default_rng(3).normal(size=(len(features), OUTPUTS))
    whole = Moments.of(features, errors)
    parts = Moments.of(features[:90], errors[:90]) + Moments.of(features[90:], errors[90:])
    assert all(np.allclose(a, b) for a, b in zip(vars(whole).values(), vars(parts).values(), strict=True))
    assert np.allclose(whole.system(basis)[1], parts.system(basis)[1])


def test_a_file_with_coordinates_is_nearer_to_the_picture(adapted: Model, picture: Array) -> None:
    quick, usual = (codec.compress(picture, 60, adapted, effort=effort) for effort in (codec.ADAPTED_EFFORT - 1, codec.ADAPTED_EFFORT))
    assert "adapt" not in codec.info(quick, adapted)["sections"]
    assert codec.info(usual, adapted)["sections"]["adapt"] > container.CHECKSUM_BYTES
    plain = adapted.decode(codec.decode_codes(usual, adapted), *SIZE, 60)
    assert metrics.mse(picture, codec.decompress(usual, adapted)) < metrics.mse(picture, plain)


def test_coarse_levels_are_not_adapted(adapted: Model, picture: Array) -> None:
    data = codec.compress(picture, 60, adapted)
    codes = codec.decode_codes(data, adapted)
    assert np.array_equal(codec.decompress(data, adapted, levels=2), adapted.decode(codes, *SIZE, 60, 2))


def test_the_last_layer_changes_by_the_basis(adapted: Model) -> None:
    """What the graph computes with coordinates is what the fit takes it for: the picture plus features times basis."""
    codes = random_codes(np.random.default_rng(4), adapted.config, 64, 96)
    coordinates = np.array([7, -5, 3], np.float32)
    steps = 0.5 / 255  # of rounding to pixels, in each of the two pictures
    basis = adapted.transform.basis
    assert basis is not None
    plain, changed = (adapted.transform.decode(codes, 64, 96, 8000, coordinates=c) for c in (None, coordinates))
    (_, _, found), *rest = adapted.transform._decoded(tiles(64, 96, 32, 1 << 20), codes, 8000, features=True)
    assert not rest
    known = np.concatenate([found["features"], np.ones((len(found["features"]), 1))], 1)
    expected = known @ np.tensordot(coordinates * scale_of(adapted.config.transform, 0.8), basis, 1)
    seen = errors_of(changed, plain)
    within = ((errors_of(plain, 0 * plain) > 0.1) & (errors_of(plain, 0 * plain) < 0.9)) & (np.abs(expected) < 0.1)
    assert within.mean() > 0.3
    assert np.abs(expected[within]).max() > 10 * steps
    assert np.abs(seen - expected)[within].max() <= 2 * steps + 1e-4


def test_tiles_give_the_moments_of_the_whole(adapted: Model, picture: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.tile(picture, (3, 3, 1))[:201, :250]
    codes = adapted.encode(image, 60)
    whole = adapted.transform.moments(image, codes, 6000)
    assert whole.count == 50 * 62
    monkeypatch.setattr(transform, "MOMENTS_PIXELS", 64 * 64)
    monkeypatch.setattr(adapted.transform, "decode_halo", 32)
    parts = adapted.transform.moments(image, codes, 6000)
    assert parts.count == whole.count
    assert np.allclose(parts.squares, whole.squares, rtol=1e-3, atol=1e-3 * np.abs(whole.squares).max())
    assert np.isclose(parts.error, whole.error, rtol=1e-3)
    monkeypatch.setattr(transform, "MOMENTS_SHARE", 200 * 250 // 4)
    some = adapted.transform.moments(image, codes, 6000)
    assert some.count == whole.count
    assert not np.allclose(some.squares, parts.squares, rtol=1e-6)
    assert np.isclose(some.squares[-1, -1], whole.count)
    assert np.isclose(some.error, whole.error, rtol=0.3)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (4, 4), (33, 5)])
def test_pictures_of_few_positions(size: tuple[int, int], adapted: Model) -> None:
    image = noise(*size)
    assert codec.decompress(codec.compress(image, 100, adapted), adapted).shape == image.shape


def test_targets_count_what_is_adapted(adapted: Model, picture: Array) -> None:
    data = targets.compress_to(picture, "mse", 8500, adapted)
    assert codec.info(data, adapted)["sections"]["adapt"]
    assert metrics.mse(picture, codec.decompress(data, adapted)) <= 8500


def test_more_coordinates_than_the_model_has(adapted: Model, model: Model) -> None:
    for opened, payload in ((adapted, b"\x11\x11"), (model, b"\x01")):
        data = file_with(opened, payload)
        with pytest.raises(DamagedError, match="adapts the decoder"):
            codec.decompress(data, opened)
        saved = codec.salvage(data, opened)
        assert saved.levels == 3
        assert "adapts the decoder" in saved.lost[0]
        assert np.array_equal(saved.image, codec.decompress(file_with(opened, b""), opened))


def test_a_damaged_section_costs_the_adaptation_alone(adapted: Model) -> None:
    whole = file_with(adapted, b"\x77")
    damaged = whole[:-1] + b"\x78"
    with pytest.raises(DamagedError, match="'adapt'"):
        codec.decompress(damaged, adapted)
    assert np.array_equal(codec.salvage(damaged, adapted).image, codec.decompress(file_with(adapted, b""), adapted))
    assert not np.array_equal(codec.decompress(whole, adapted), codec.decompress(file_with(adapted, b""), adapted))


def test_a_model_without_its_basis_is_refused(adapted: Model, model: Model) -> None:
    config = replace(model.config, transform=replace(model.config.transform, adaptations=3))
    with pytest.raises(InvalidModelError, match=r"decoder\.adapt"):
        _ = Model("lacking", config, {}, model.files).transform


def test_a_training_finds_the_changes_that_pictures_share(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from vqcodec.training.adapt import Sample, fit

    config = replace(load_model(GOLDENS[-1] / "model").config.transform, adaptations=COUNT)
    random = np.random.default_rng(7)
    hidden, _ = drawn(5)
    samples: list[Sample] = []
    for seed in range(60):
        features = drawn(seed, 200)[1] + 1
        known = np.concatenate([features, np.ones((len(features), 1))], 1)
        quality = int(random.integers(10_001))
        change = np.tensordot(scale_of(config, quality / 10_000) * random.normal(size=COUNT) * (5, 4, 3, 2, 1), hidden, 1)
        samples.append(Sample(Moments.of(features, known @ change + 0.02 * random.normal(size=(200, OUTPUTS))), quality))
    basis = fit(samples[:50], config)
    assert basis.shape == (COUNT, FEATURES + 1, OUTPUTS)
    for sample in samples[50:]:
        found = fitted(sample.moments, basis * scale_of(config, sample.quality / 10_000), 1e9)
        change = np.tensordot(found * scale_of(config, sample.quality / 10_000), basis, 1)
        left = sample.moments.error - 2 * np.sum(change * sample.moments.products) + np.sum(change * (sample.moments.squares @ change))
        noise_alone = 0.02**2 * 200 * OUTPUTS
        assert left < noise_alone + 0.1 * (sample.moments.error - noise_alone)
    few = fit(samples[:2], config)
    assert not few[2:].any()
    assert few[0].any()


def test_the_bench_counts_what_adapts_the_decoder(picture: Array) -> None:
    pytest.importorskip("matplotlib")
    from vqcodec.bench.crops import levels
    from vqcodec.bench.peers import open_coder
    from vqcodec.bench.rows import measure

    folder = str(GOLDENS[-1] / "model")
    row = measure(open_coder("vqcodec", folder), 60, picture, "a.png")
    data = codec.compress(picture, 60, folder)
    assert "adapt" in codec.info(data, folder)["sections"]
    assert row.level_bytes is not None
    assert sum(row.level_bytes) + container.HEADER_BYTES < row.bytes == len(data)
    whole = levels(picture, folder, 60)[-1]
    assert whole.bpp == metrics.bpp(len(data), *SIZE)
    assert np.array_equal(whole.crop, codec.decompress(data, folder))
