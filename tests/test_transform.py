"""Tiles: they cover an image exactly once, and what comes out of them is what the whole image would have given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import GOLDENS, IMAGES, Array, load_image, random_codes
from vqcodec import codec, metrics, tiles, transform
from vqcodec.codes import Codes, map_sizes
from vqcodec.config import ALIGNMENT, LEVEL_STRIDES
from vqcodec.container import Extras
from vqcodec.model import Model, load_model
from vqcodec.tiles import aligned, grid, pad, spans
from vqcodec.transform import halos

TILE = 64
SIZE = (300, 900)  # aligned: 320 x 928, so that some tiles have their whole halo inside


def smooth(height: int, width: int) -> Array:
    """Waves of several lengths: neighbouring codes differ, and none sits on the edge between two."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + 3 * channel) + columns / (9 - 2 * channel)) + np.cos(columns / 31) for channel in range(3)]
    return (128 + 50 * np.stack(waves, axis=2)).astype(np.uint8)


@pytest.fixture(params=GOLDENS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> Model:
    """The golden models of all layouts."""
    return load_model(request.param / "model")


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any image go through in small tiles from here on."""
    monkeypatch.setattr(tiles, "grid", lambda height, width, halo, limit: (-(-height // TILE), -(-width // TILE)))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 12))
def test_spans_cover_a_side_exactly_once(length: int, count: int, reach: int) -> None:
    length, reach = length * ALIGNMENT, reach * ALIGNMENT
    parts = spans(length, count, reach)
    assert len(parts) <= count
    tile = parts[0].inner_stop
    covered = [pixel for part in parts for pixel in range(part.inner_start, part.inner_stop)]
    assert covered == list(range(length))
    for part in parts:
        assert all(edge % ALIGNMENT == 0 for edge in part)
        assert 0 <= part.start <= part.inner_start < part.inner_stop <= part.stop <= length
        assert part.start == max(0, part.inner_start - reach)
        assert part.stop == min(length, part.inner_start + tile + reach)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 4))
def test_tiles_keep_the_limit_and_are_few(height: int, width: int, reach: int) -> None:
    height, width, halo = height * ALIGNMENT, width * ALIGNMENT, reach * ALIGNMENT
    limit = transform.ENCODE_PIXELS
    sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns, _ in tiles.tiles(height, width, halo, limit)]
    assert max(sizes) <= limit
    assert len(sizes) == 1 or height * width > limit
    assert sum(sizes) <= 1.8 * height * width


def test_tiles_never_get_smaller_than_the_alignment() -> None:
    assert grid(3 * ALIGNMENT, 5 * ALIGNMENT, ALIGNMENT, ALIGNMENT**2) == (3, 5)


def test_halos_are_aligned_and_grow_with_depth(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model.config.transform
    assert max(halos(config)) <= transform.MAX_HALO
    monkeypatch.setattr(transform, "MAX_HALO", 10_000)
    encode, decode = halos(config)
    assert encode % ALIGNMENT == decode % ALIGNMENT == 0
    deeper = type(config)(**{**vars(config), "decoder_depths": (1, 1, 1, 9)})
    assert all(new >= old + 8 * 32 for new, old in zip(halos(deeper), (encode, decode), strict=True))
    finer = type(config)(**{**vars(config), "decoder_depths": (65, 1, 1, 1)})  # the finest state is behind all codes
    assert halos(finer)[0] == encode
    assert halos(finer)[1] >= decode + 8 * 32


@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (33, 64), (17, 95)])
def test_pad_repeats_the_edge(height: int, width: int) -> None:
    image = smooth(height, width)
    padded = pad(image)
    assert padded.shape == (-(-height // ALIGNMENT) * ALIGNMENT, -(-width // ALIGNMENT) * ALIGNMENT, 3)
    assert np.array_equal(padded[:height, :width], image)
    assert (padded[height:, :width] == image[-1]).all()
    assert (padded[:, width:] == padded[:, width - 1 : width]).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (33, 64), (17, 95)])
def test_shapes_of_codes_and_image(height: int, width: int, model: Model) -> None:
    codes = model.encode(smooth(height, width), 50)
    for code_map, level, stride, size in zip(codes, model.config.transform.levels, LEVEL_STRIDES, map_sizes(height, width), strict=True):
        aligned = tuple(-(-side // ALIGNMENT) * ALIGNMENT // stride for side in (height, width))
        assert code_map.shape == (level.stages, *aligned) == (level.stages, *size)
        assert code_map.dtype == np.int32
    image = model.decode(codes, height, width, 50)
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)


@pytest.mark.parametrize("quality", [0, 100])
def test_tiles_give_the_codes_of_the_whole(quality: int, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum in another order can tip a choice between two codes that fit equally well; that must stay rare."""
    image = smooth(*SIZE)
    whole = model.encode(image, quality)
    cut(monkeypatch)
    assert differing(whole, model.encode(image, quality)) <= 0.001


@pytest.mark.parametrize("quality", [0, 100])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_tiles_give_the_picture_of_the_whole(quality: int, levels: int, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(np.random.default_rng(3), model.config, *SIZE)
    whole = model.decode(codes, *SIZE, quality, levels).astype(int)
    cut(monkeypatch)
    assert np.abs(model.decode(codes, *SIZE, quality, levels) - whole).max() <= 1


def test_tiles_of_a_photograph_give_the_codes_of_the_whole(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than one code in 10,000 may differ, and pixels of equal codes by a step."""
    image = load_image(IMAGES / "coffee.png")
    assert sum(code_map.size for code_map in model.encode(image, 50)) > 10_000
    whole = model.encode(image, 50)
    picture = model.decode(whole, *image.shape[:2], 50).astype(int)
    cut(monkeypatch)
    assert differing(whole, model.encode(image, 50)) < 1e-4
    assert np.abs(model.decode(whole, *image.shape[:2], 50) - picture).max() <= 1


@pytest.mark.slow
@pytest.mark.weights
def test_tiles_of_the_shipped_model(default_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same at real sizes, with halos that do not hold all of the receptive field."""
    photograph = load_image(IMAGES / "coffee.png")
    image = np.tile(np.concatenate([photograph, photograph[::-1]]), (2, 3, 1))[:1300, :1500]
    whole = default_model.encode(image, 50)
    picture = default_model.decode(whole, *image.shape[:2], 50).astype(int)
    monkeypatch.setattr(transform, "ENCODE_PIXELS", 1 << 19)
    monkeypatch.setattr(transform, "DECODE_PIXELS", 1 << 19)
    assert differing(whole, default_model.encode(image, 50)) < 1e-4
    assert np.abs(default_model.decode(whole, *image.shape[:2], 50) - picture).max() <= 1
    part = image[:700, :800]
    tried = default_model.encode(part, 50, effort=9)
    monkeypatch.setattr("vqcodec.model.TRIALS", (((), ()),) * len(transform.TRIALS))
    improved = default_model.encode(part, 50, effort=9)
    monkeypatch.setattr(transform, "ENCODE_PIXELS", 1 << 21)
    assert differing(improved, default_model.encode(part, 50, effort=9)) < 1e-2
    monkeypatch.undo()
    costs = [cost(part, codes, default_model) for codes in (tried, default_model.encode(part, 50, effort=9), improved)]
    assert abs(costs[0] - costs[1]) < 0.1 * (costs[2] - costs[1])  # other codes of nearly equal cost: little of what trials gain


def cost(image: Array, codes: Codes, model: Model) -> float:
    """Lambda times the error plus the bits, of a whole file at quality 50."""
    height, width = image.shape[:2]
    data = codec.pack_codes(codes, height, width, 50, model, Extras(adaptation=model.adapt(image, codes, 50)))
    error = metrics.mse(image, codec.decompress(data, model)) / 255**2
    return model.config.transform.lagrangian(0.5) * error + metrics.bpp(len(data), height, width)


def test_tiles_improve_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each improvement reaches farther than the one before; and they are there. Trials take other codes, of nearly equal cost."""
    model = load_model(GOLDENS[-1] / "model")
    image = smooth(*SIZE)
    tried = model.encode(image, 50, effort=7)
    with monkeypatch.context() as patched:
        cut(patched)
        in_tiles = model.encode(image, 50, effort=7)
    monkeypatch.setattr("vqcodec.model.TRIALS", (((), ()),) * len(transform.TRIALS))
    costs = [cost(image, codes, model) for codes in (tried, in_tiles, model.encode(image, 50, effort=7))]
    assert abs(costs[0] - costs[1]) < 0.1 * (costs[2] - costs[0])
    improved = model.encode(image, 50, effort=9)
    assert differing(improved, model.encode(image, 50, effort=5)) > 0.01
    cut(monkeypatch)
    assert differing(improved, model.encode(image, 50, effort=9)) <= 0.001


@pytest.mark.parametrize("height", range(1, 71, 9))
def test_sizes(height: int, model: Model) -> None:
    for width in range(1, 71, 9):
        there_and_back(height, width, model)


@pytest.mark.slow
@pytest.mark.parametrize("height", range(1, 71))
def test_every_size(height: int, model: Model) -> None:
    for width in range(1, 71):
        there_and_back(height, width, model)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(1, 65_535), (65_535, 1)])
def test_the_longest_sides(height: int, width: int, model: Model) -> None:
    there_and_back(height, width, model)


def there_and_back(height: int, width: int, model: Model) -> None:
    """Through a whole file: the codes come back, and a picture of the same size."""
    image = smooth(height, width)
    data = codec.compress(image, 50, model)
    restored = codec.decompress(data, model)
    assert (restored.shape, restored.dtype) == (image.shape, np.uint8)
    assert all(np.array_equal(a, b) for a, b in zip(codec.decode_codes(data, model), model.encode(image, 50), strict=True))


def test_memory_is_given_back_after_tiles(model: Model) -> None:
    """The last of several tiles, and no other one, asks the session for that."""
    for size, count in (((64, 64), 1), ((3000, 2000), 8)):
        lasts = [last for _, _, last in tiles.tiles(*map(aligned, size), 64, 1 << 20)]
        assert lasts == [False] * (count - 1) + [count > 1]


def test_tiles_without_a_halo_would_differ(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the tests above can fail."""
    image, codes = smooth(*SIZE), random_codes(np.random.default_rng(3), model.config, *SIZE)
    encoded, decoded = model.encode(image, 100), model.decode(codes, *SIZE, 100).astype(int)
    cut(monkeypatch)
    monkeypatch.setattr(model.transform, "encode_halo", 0)
    monkeypatch.setattr(model.transform, "decode_halo", 0)
    assert differing(encoded, model.encode(image, 100)) > 0.001
    assert np.abs(model.decode(codes, *SIZE, 100) - decoded).max() > 1


def differing(first: Codes, second: Codes) -> float:
    """The fraction of codes that differ."""
    return sum(int((a != b).sum()) for a, b in zip(first, second, strict=True)) / sum(code_map.size for code_map in first)


def test_fewer_levels_give_another_picture(model: Model) -> None:
    codes = random_codes(np.random.default_rng(4), model.config, 64, 64)
    pictures = [model.decode(codes, 64, 64, 50, levels) for levels in (1, 2, 3)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    codes.bottom[:] = 0  # what is left out must not matter
    assert np.array_equal(model.decode(codes, 64, 64, 50, 2), pictures[1])
