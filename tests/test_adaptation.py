"""The decoder's last layer, adapted to parts of a picture: coordinates in the file, their fit, and the basis that a training finds."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.range_decoder import RangeDecoder
from tests.support import GOLDENS, IMAGES, Array, load_image, noise, random_codes
from vqcodec import codec, container, metrics, targets, transform
from vqcodec.adaptation import LARGEST, Layer, Moments, Rates, Systems, adapted, errors_of, finest_side, packed, scale_of, spread, unpacked
from vqcodec.codes import Codes
from vqcodec.container import Extras
from vqcodec.errors import DamagedError, InvalidModelError
from vqcodec.model import Model, load_model
from vqcodec.tiles import tiles

COUNT, FEATURES, OUTPUTS = 5, 7, 48
SIZE = (70, 90)


@pytest.fixture(scope="module")
def adaptable() -> Model:
    """A tiny seeded model whose last layer can be adapted by three numbers."""
    return load_model(GOLDENS[-1] / "model")


@pytest.fixture(scope="module")
def picture() -> Array:
    return load_image(IMAGES / "astronaut.png")[60 : 60 + SIZE[0], 180 : 180 + SIZE[1]]


def file_with(model: Model, adaptation: bytes) -> bytes:
    codes = random_codes(np.random.default_rng(1), model.config, *SIZE)
    return codec.pack_codes(codes, *SIZE, 50, model, Extras(adaptation=adaptation))


HEAD = [1, 6, 48, 24]  # of one layer in blocks of 64 pixels a side


def layers_of(random: np.random.Generator, sides: list[int], size: tuple[int, int], count: int) -> list[Layer]:
    layers: list[Layer] = []
    for side in sides:
        rates = Rates(*random.integers(0, 256, 2).tolist())
        shape = (*(-(-length >> side) for length in size), count)
        layers.append(Layer(side, rates, random.integers(-LARGEST, LARGEST + 1, shape).astype(np.int8)))
    return layers


@given(st.sets(st.integers(5, 16), max_size=4), st.integers(1, 200), st.integers(1, 200), st.integers(1, 6), st.integers(0, 9))
def test_layers_there_and_back(sides: set[int], height: int, width: int, count: int, seed: int) -> None:
    layers = layers_of(np.random.default_rng(seed), sorted(sides, reverse=True), (height, width), count)
    payload = packed(layers)
    assert bool(payload) == bool(layers)
    expected = np.zeros((count, -(-height // 32), -(-width // 32)))
    for index in np.ndindex(expected.shape):
        expected[index] = sum(layer.coordinates[32 * index[1] >> layer.side, 32 * index[2] >> layer.side, index[0]] for layer in layers)
    assert np.array_equal(unpacked(payload, height, width, count), expected)


def test_zeros_take_few_bits() -> None:
    nothing = np.zeros((8, 12, 32), np.int8)
    assert len(packed([Layer(6, Rates(160, 24), nothing)])) <= 4 + 4 * 3
    assert len(packed([Layer(6, Rates(0, 0), nothing)])) > 8 * 12 * 32 * np.log2(15) / 8


def test_the_range_decoder_of_the_format_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = packed(layers_of(np.random.default_rng(6), [8, 6], (200, 300), 4))
    expected = unpacked(payload, 200, 300, 4)
    monkeypatch.setattr("vqcodec.adaptation.range_decoder", RangeDecoder)
    assert np.array_equal(unpacked(payload, 200, 300, 4), expected)


@pytest.mark.parametrize(
    "payload",
    [
        bytes([0]),
        bytes([1]),
        bytes([1, 6]),
        bytes([2, 6, 48, 24]),
        bytes([2, 6, 48, 24, 6, 48, 24]),
        bytes([2, 6, 48, 24, 7, 48, 24]),
        bytes([1, 4, 48, 24]),
        bytes([1, 17, 48, 24]),
        bytes([*HEAD, 1]),
        bytes([*HEAD, *8 * [255]]),
        bytes([*HEAD, *40 * [1]]),
    ],
)
def test_layers_that_cannot_be(payload: bytes) -> None:
    with pytest.raises(DamagedError, match="adapts the decoder"):
        unpacked(payload, 64, 64, 3)


def test_errors_lie_as_the_decoder_shuffles_pixels() -> None:
    torch = pytest.importorskip("torch")
    image, decoded = noise(8, 12), noise(8, 12, 1)
    missing = torch.from_numpy((image.astype(np.float32) - decoded) / 255).permute(2, 0, 1)
    expected = torch.nn.functional.pixel_unshuffle(missing, 4).permute(1, 2, 0).numpy()
    assert np.allclose(errors_of(image, decoded), expected)


def drawn(seed: int, size: tuple[int, int] = (20, 20)) -> tuple[Array, Array]:
    """A basis, and a map of features with a scale for each."""
    random = np.random.default_rng(seed)
    basis = 0.01 * random.normal(size=(COUNT, FEATURES + 1, OUTPUTS))
    return basis, random.normal(size=(*size, FEATURES)) * random.uniform(0.1, 3, FEATURES)


def changed(features: Array, coordinates: Array, basis: Array, side: int) -> Array:
    """What coordinates (R, C, K) of blocks of `side` positions a side add (h, w, E)."""
    known = np.concatenate([features, np.ones((*features.shape[:2], 1))], 2)
    return np.einsum("hwf,hwk,kfe->hwe", known, spread(coordinates, side, features.shape[:2]), basis)


def total(layers: list[Layer], size: tuple[int, int]) -> Array:
    """The sum of layers, (R, C, K) for blocks of 64 pixels a side."""
    found = unpacked(packed(layers), *size, COUNT)
    return found[:, ::2, ::2].transpose(1, 2, 0)


@settings(deadline=None)
@given(st.integers(0, 9))
def test_the_fit_finds_what_there_is(seed: int) -> None:
    basis, features = drawn(seed, (40, 70))
    coordinates = np.random.default_rng(seed).integers(-3, 4, (3, 5, COUNT))
    errors = changed(features, coordinates, basis, 16)
    assert np.array_equal(total(adapted(Moments.of(features, errors, 16).systems(basis), 6, 1e9), (160, 280)), coordinates)


def test_what_a_picture_has_in_common_is_said_once() -> None:
    basis, features = drawn(1, (40, 70))
    everywhere, somewhere = np.array([3, 0, -2, 0, 1]), np.zeros((3, 5, COUNT), int)
    somewhere[1, 2, 3] = 5
    layers = adapted(Moments.of(features, changed(features, everywhere + somewhere, basis, 16), 16).systems(basis), 6, 1.0)
    assert [layer.side for layer in layers] == [9, 6]
    assert layers[0].coordinates.tolist() == [[everywhere.tolist()]]
    assert np.array_equal(layers[1].coordinates, somewhere)


def test_what_is_not_worth_its_bits_is_left_out() -> None:
    basis, features = drawn(0)
    errors = changed(features, np.array([[[3, 0, -2, 0, 1]]]), basis, 32)
    systems = Moments.of(features, errors, 16).systems(basis)
    layers = [adapted(systems, 6, lagrangian) for lagrangian in (1e-9, 1e-1, 1e9)]
    gains = [sum(np.count_nonzero(layer.coordinates) for layer in each) for each in layers]
    assert gains[0] == 0
    assert gains == sorted(gains)
    assert gains[-1] == 3
    assert not adapted(Moments.of(features, 0 * errors, 16).systems(basis), 6, 1e9)


def test_moments_are_those_of_each_block() -> None:
    basis, features = drawn(2, (37, 50))
    errors = np.random.default_rng(3).normal(size=(37, 50, OUTPUTS))
    moments = Moments.of(features, errors, 16)
    assert moments.errors.shape == (3, 4)
    known = np.concatenate([features, np.ones((37, 50, 1))], 2)
    for row, column in ((0, 1), (2, 3)):
        here, there = (
            part[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1, part.shape[2]) for part in (known, errors)
        )
        assert np.allclose(moments.squares[row, column], here.T @ here, rtol=1e-4, atol=1e-3)
        assert np.allclose(moments.products[row, column], here.T @ there, rtol=1e-4, atol=1e-3)
        assert np.isclose(moments.errors[row, column], np.square(there).sum())
        one = np.einsum("nf,kfe->kne", here, basis).reshape(COUNT, -1)
        systems = moments.systems(basis)
        assert np.allclose(systems.matrices[row, column], one @ one.T, rtol=1e-3, atol=1e-4)
        assert np.allclose(systems.right[row, column], one @ there.ravel(), rtol=1e-3, atol=1e-4)
    larger = Moments.of(features, errors, 32).systems(basis)
    merged = systems.merged(2)
    assert np.allclose(merged.matrices, larger.matrices, rtol=1e-3, atol=1e-3)
    assert np.allclose(merged.right, larger.right, rtol=1e-3, atol=1e-3)


def test_a_file_with_coordinates_is_nearer_to_the_picture(adaptable: Model, picture: Array) -> None:
    quick, usual = (codec.compress(picture, 60, adaptable, effort=effort) for effort in (codec.ADAPTED_EFFORT - 1, codec.ADAPTED_EFFORT))
    assert "adapt" not in codec.info(quick, adaptable)["sections"]
    assert codec.info(usual, adaptable)["sections"]["adapt"] > container.CHECKSUM_BYTES
    plain = adaptable.decode(codec.decode_codes(usual, adaptable), *SIZE, 60)
    assert metrics.mse(picture, codec.decompress(usual, adaptable)) < metrics.mse(picture, plain)


def test_coarse_levels_are_not_adapted(adaptable: Model, picture: Array) -> None:
    data = codec.compress(picture, 60, adaptable)
    codes = codec.decode_codes(data, adaptable)
    assert np.array_equal(codec.decompress(data, adaptable, levels=2), adaptable.decode(codes, *SIZE, 60, 2))


def test_the_last_layer_changes_by_the_basis(adaptable: Model) -> None:
    """What the graph computes with coordinates is what the fit takes it for: the picture plus features times basis, block by block."""
    codes = random_codes(np.random.default_rng(4), adaptable.config, 64, 96)
    coordinates = np.random.default_rng(5).integers(-7, 8, (3, 2, 3)).astype(np.float32)
    steps = 0.5 / 255  # of rounding to pixels, in each of the two pictures
    basis = adaptable.transform.basis
    assert basis is not None
    plain, adapted_one = (adaptable.transform.decode(codes, 64, 96, 8000, coordinates=c) for c in (None, coordinates))
    (_, _, found), *rest = adaptable.transform._decoded(tiles(64, 96, 32, 1 << 20), codes, 8000, features=True)
    assert not rest
    scaled = scale_of(adaptable.config.transform, 0.8) * coordinates.transpose(1, 2, 0)
    expected = changed(found["features"].reshape(16, 24, -1), scaled, basis, 8)
    seen = errors_of(adapted_one, plain)
    shown = errors_of(plain, 0 * plain)
    within = (shown > 0.1) & (shown < 0.9) & (np.abs(expected) < 0.1)
    assert within.mean() > 0.3
    assert np.abs(expected[within]).max() > 10 * steps
    assert np.abs(seen - expected)[within].max() <= 2 * steps + 1e-4


def test_tiles_give_the_systems_and_the_picture_of_the_whole(adaptable: Model, picture: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.tile(picture, (3, 3, 1))[:201, :250]
    codes = adaptable.encode(image, 60)
    whole, one = assembled(adaptable, image, codes)
    assert one == 1
    data = adaptable.adapt(image, codes, 60)
    assert data
    restored = adaptable.decode(codes, 201, 250, 60, adaptation=data)
    monkeypatch.setattr(transform, "MOMENTS_PIXELS", 128 * 128)
    monkeypatch.setattr(transform, "DECODE_PIXELS", 96 * 128)
    monkeypatch.setattr(adaptable.transform, "decode_halo", 32)
    parts, several = assembled(adaptable, image, codes)
    assert several > 1
    for mine, other in zip(parts, whole, strict=True):
        assert np.allclose(mine, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())
    assert np.abs(adaptable.decode(codes, 201, 250, 60, adaptation=data).astype(int) - restored).max() <= 2


def assembled(model: Model, image: Array, codes: Codes) -> tuple[Moments, int]:
    """The moments of all blocks of an image, and of how many tiles they came."""
    side = finest_side(*image.shape[:2])
    found = list(model.transform.moments(image, codes, 6000, side))
    shape = tuple(-(-length >> side) for length in image.shape[:2])
    whole = Moments(*(np.full((*shape, *part.shape[2:]), np.nan) for part in found[0][2]))
    for rows, columns, moments in found:
        for all_of_it, part in zip(whole, moments, strict=True):
            assert np.isnan(all_of_it[rows, columns]).all()
            all_of_it[rows, columns] = part
    assert not any(np.isnan(part).any() for part in whole)
    return whole, len(found)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (4, 4), (33, 5)])
def test_pictures_of_few_positions(size: tuple[int, int], adaptable: Model) -> None:
    image = noise(*size)
    assert codec.decompress(codec.compress(image, 100, adaptable), adaptable).shape == image.shape


def test_targets_count_what_is_adapted(adaptable: Model, picture: Array) -> None:
    data = targets.compress_to(picture, "mse", 8500, adaptable)
    assert codec.info(data, adaptable)["sections"]["adapt"]
    assert metrics.mse(picture, codec.decompress(data, adaptable)) <= 8500


def test_an_adaptation_that_the_model_does_not_have(adaptable: Model, model: Model) -> None:
    for opened, payload in ((adaptable, bytes([1, 4, 48, 24])), (model, bytes(HEAD))):
        data = file_with(opened, payload)
        with pytest.raises(DamagedError, match="adapts the decoder"):
            codec.decompress(data, opened)
        saved = codec.salvage(data, opened)
        assert saved.levels == 3
        assert "adapts the decoder" in saved.lost[0]
        assert np.array_equal(saved.image, codec.decompress(file_with(opened, b""), opened))


def test_a_damaged_section_costs_the_adaptation_alone(adaptable: Model) -> None:
    whole = file_with(adaptable, packed(layers_of(np.random.default_rng(2), [6], SIZE, 3)))
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(DamagedError, match="'adapt'"):
        codec.decompress(damaged, adaptable)
    assert np.array_equal(codec.salvage(damaged, adaptable).image, codec.decompress(file_with(adaptable, b""), adaptable))
    assert not np.array_equal(codec.decompress(whole, adaptable), codec.decompress(file_with(adaptable, b""), adaptable))


def test_a_model_without_its_basis_is_refused(adaptable: Model, model: Model) -> None:
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
    moments: list[Moments] = []
    for seed in range(60):
        features = drawn(seed)[1] + 1
        quality = int(random.integers(10_001))
        coordinates = scale_of(config, quality / 10_000) * random.normal(size=(1, 1, COUNT)) * (5, 4, 3, 2, 1)
        errors = changed(features, coordinates, hidden, 32) + 0.02 * random.normal(size=(20, 20, OUTPUTS))
        moments.append(Moments.of(features, errors, 32))
        samples.append(Sample(*(part[0, 0] for part in moments[-1]), quality))
    basis = fit(samples[:50], config)
    assert basis.shape == (COUNT, FEATURES + 1, OUTPUTS)
    for sample, each in zip(samples[50:], moments[50:], strict=True):
        scaled = basis * scale_of(config, sample.quality / 10_000)
        systems = each.systems(scaled)
        found = np.linalg.solve(systems.matrices[0, 0], systems.right[0, 0])
        left = sample.error - found @ systems.right[0, 0]
        noise_alone = 0.02**2 * 400 * OUTPUTS
        assert left < noise_alone + 0.05 * (sample.error - noise_alone)
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


def test_a_long_and_narrow_picture_takes_no_memory_for_what_lies_beyond_it() -> None:
    """Its blocks are joined as far as they go: a square around 1 x 2,048 of them would hold 128 MiB of these small matrices."""
    rng = np.random.default_rng(0)
    systems = Systems(rng.random((1, 2048, 2, 2), np.float32), rng.random((1, 2048, 2), np.float32))
    tracemalloc.start()
    merged = systems.merged(2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.allclose(merged.matrices[0, 0], systems.matrices.sum((0, 1)))
    assert merged.right.shape == (1, 1, 2)
    assert peak < 1 << 20
