"""The shipped model on photographs: codes survive, the payload is what the prior promises, and quality means quality."""

from __future__ import annotations

import pytest

from tests.support import GOLDEN, IMAGES, load_image, noise, same
from vqcodec import bitstream, codec, container, metrics
from vqcodec.codes import Codes
from vqcodec.config import ModelConfig
from vqcodec.errors import WrongModelError
from vqcodec.model import Model

pytestmark = pytest.mark.weights

NAMES = ["astronaut", "chelsea", "coffee"]
QUALITIES = [0, 50, 100]


def raw_bits(codes: Codes, config: ModelConfig) -> int:
    """What the codes take without a prior: ceil(log2 K) bits each."""
    return sum(
        code_map.size * (level.codebook_size - 1).bit_length() for code_map, level in zip(codes, config.transform.levels, strict=True)
    )


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("name", NAMES)
def test_codes_survive_and_cost_what_the_prior_says(name: str, quality: int, default_model: Model) -> None:
    image = load_image(IMAGES / f"{name}.png")
    codes = default_model.encode(image, quality)
    data = codec.compress(image, quality, default_model)
    assert same(codec.decode_codes(data, default_model), codes)
    payloads = container.unpack(data).levels
    ideal = bitstream.ideal_bits(default_model.prior, codes, quality * 100)
    for payload, stages in zip(payloads, ideal, strict=True):
        assert len(payload) <= 1.01 * sum(stages) / 8 + 16
        assert len(payload) >= sum(stages) / 8 - 4  # shorter than the entropy would mean that the estimate is wrong
    assert 8 * sum(map(len, payloads)) <= 0.8 * raw_bits(codes, default_model.config)


@pytest.mark.parametrize("name", NAMES)
def test_higher_quality_costs_more_and_is_better(name: str, default_model: Model) -> None:
    image = load_image(IMAGES / f"{name}.png")
    files = [codec.compress(image, quality, default_model) for quality in QUALITIES]
    errors = [metrics.mse(image, codec.decompress(data, default_model)) for data in files]
    assert len(files[0]) < len(files[1]) < len(files[2])
    assert errors[0] > errors[1] > errors[2]
    assert metrics.psnr(errors[1]) > 24  # a picture, not noise


@pytest.mark.parametrize("quality", [50, 100])
@pytest.mark.parametrize("name", NAMES)
def test_improved_latents_find_better_codes(name: str, quality: int, default_model: Model) -> None:
    """By lambda times the error plus the bits, as the training weighs them; real files, a tenth at least of a per cent each time.

    Of whole pictures: in a small piece a word of the range coder, 4 bytes, is a tenth of a per cent by itself.
    """
    image = load_image(IMAGES / f"{name}.png")
    config = default_model.config.transform
    weight = config.lambda_min * (config.lambda_max / config.lambda_min) ** (quality / 100)
    costs: list[float] = []
    for effort in (5, 6, 8):
        data = codec.compress(image, quality, default_model, effort=effort)
        error = metrics.mse(image, codec.decompress(data, default_model)) / 255**2
        costs.append(weight * error + metrics.bpp(len(data), *image.shape[:2]))
    assert costs[1] < 0.999 * costs[0]
    assert costs[2] < 0.999 * costs[1]


@pytest.mark.parametrize("quality", [0, 33.33, 100])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (17, 33), (511, 769)])
def test_odd_sizes(height: int, width: int, quality: float, default_model: Model) -> None:
    image = noise(height, width)  # the hardest content there is: rare codes
    data = codec.compress(image, quality, default_model)
    assert same(codec.decode_codes(data, default_model), default_model.encode(image, quality))
    assert codec.decompress(data, default_model).shape == image.shape


def test_default_model_is_found_by_name_and_by_the_file_s_id(default_model: Model) -> None:
    data = codec.compress(noise(20, 20), 50)
    assert codec.info(data)["model_id"] == default_model.id.hex()
    assert codec.decompress(data).shape == (20, 20, 3)
    with pytest.raises(WrongModelError, match="leave out --model"):
        codec.decompress(data, GOLDEN / "model")


def test_a_prefix_of_the_levels_is_already_a_picture(default_model: Model) -> None:
    image = load_image(IMAGES / "chelsea.png")
    codes = default_model.encode(image, 50)
    errors = [metrics.mse(image, default_model.decode(codes, *image.shape[:2], 50, levels)) for levels in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
