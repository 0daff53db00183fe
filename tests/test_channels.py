"""Every kind of image comes back as the kind that it was, with alpha to the bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, noise
from vqcodec import channels, codec, container
from vqcodec.container import Container, Extras, Metadata
from vqcodec.errors import DamagedError, ImageError
from vqcodec.model import Model
from vqcodec.targets import compress_to

HELD = container.unpack((GOLDEN / "wide-q100.vq").read_bytes())


def with_alpha(alpha: bytes) -> bytes:
    sections = HELD.sections + Extras(alpha=alpha).sections()
    return container.pack(Container(HELD.model_id, HELD.width, HELD.height, HELD.quality, sections))


def png(picture: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("binary", [False, True])
def test_alpha_is_lossless(count: int, binary: bool, model: Model) -> None:
    image = np.dstack([noise(33, 17), noise(33, 17, seed=1)])[:, :, :count]
    if binary:
        image[:, :, -1] = image[:, :, -1] // 128 * 255
    data = codec.compress(image, 50, model)
    restored = codec.decompress(data, model)
    assert (restored.shape, restored.dtype) == (image.shape, np.uint8)
    assert np.array_equal(restored[:, :, -1], image[:, :, -1])
    assert codec.info(data, model)["channels"] == {2: "gray+alpha", 4: "rgb+alpha"}[count]
    plain = codec.compress(image[:, :, : count - 1], 50, model)
    assert np.array_equal(codec.decompress(plain, model), np.squeeze(restored[:, :, :-1]))


@pytest.mark.parametrize(("count", "kept"), [(2, (8, 9)), (4, (8, 9, 3))])
def test_opaque_alpha_is_dropped(count: int, kept: tuple[int, ...], model: Model) -> None:
    image = np.full((8, 9, count), 255, np.uint8)
    assert codec.decompress(codec.compress(image, 50, model), model).shape == kept


def test_gray_stays_gray(model: Model) -> None:
    gray = noise(40, 24)[:, :, 0]
    data = codec.compress(gray, 50, model)
    assert codec.compress(gray[:, :, None], 50, model) == data
    restored = codec.decompress(data, model)
    assert (restored.shape, restored.dtype) == ((40, 24), np.uint8)
    rgb = codec.decompress(codec.compress(np.dstack([gray] * 3), 50, model), model)
    assert np.array_equal(restored, np.floor(rgb.mean(2) + 0.5))  # the mean, rounded half up
    assert len(data) == len(codec.compress(np.dstack([gray] * 3), 50, model))


def test_a_plain_image_costs_nothing_more() -> None:
    assert HELD.extras == Extras()


@pytest.mark.parametrize("image", [noise(4, 4)[:, :, :0], noise(4, 4)[None], noise(4, 4)[0, 0], noise(4, 4).astype(np.float32)])
def test_other_shapes_and_types_are_refused(image: np.ndarray, model: Model) -> None:
    with pytest.raises(ImageError, match="uint8"):
        codec.compress(image, 50, model)


@pytest.mark.parametrize(
    "image", [Pillow.new("RGB", (4, 4)), "photo.jpg", [[1, 2]], noise(4, 4).tobytes()], ids=["Pillow", "name", "list", "bytes"]
)
def test_what_is_no_array_is_refused(image: object, model: Model) -> None:
    with pytest.raises(ImageError, match=rf"{type(image).__name__}; .*give np\.asarray"):
        codec.compress(image, 50, model)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=rf"{type(image).__name__}; .*give np\.asarray"):
        compress_to(image, "size", 1000, model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "alpha",
    [b"x", png(Pillow.new("L", (3, 3))), png(Pillow.new("RGB", (70, 50))), png(Pillow.new("L", (70, 50)))[:-20]],
    ids=["no png", "another size", "another mode", "cut off"],
)
def test_alpha_that_does_not_fit_is_refused(alpha: bytes, model: Model) -> None:
    with pytest.raises(DamagedError, match="alpha"):
        codec.decompress(with_alpha(alpha), model)


def test_alpha_of_another_size_is_refused_before_it_is_unpacked() -> None:
    bomb = png(Pillow.new("1", (20_000, 20_000)))
    with pytest.raises(DamagedError, match="another size"):
        channels.unpack_alpha(bomb, 50, 70)


def test_a_file_without_its_end_loses_alpha_only_on_request(model: Model) -> None:
    image = np.dstack([noise(16, 16), noise(16, 16, seed=1)[:, :, 0]])
    data = codec.compress(image, 50, model)
    assert codec.decompress(data, model, 2).shape == (16, 16, 4)
    assert codec.decompress(data[:-1], model, 2).shape == (16, 16, 3)


def test_metadata_comes_back(model: Model) -> None:
    metadata = Metadata(b"profile", b"camera", b"<packet/>")
    data = codec.compress(noise(5, 5), 50, model, metadata)
    assert codec.read_metadata(data) == metadata
    assert codec.info(data, model)["sections"]["exif"] == len(metadata.exif) + 5
    assert codec.read_metadata(codec.compress(noise(5, 5), 50, model)) == Metadata()
