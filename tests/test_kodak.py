"""All 24 Kodak photographs at three qualities through the shipped model: no code may be lost anywhere."""

from __future__ import annotations

import pytest

from tests.support import SHARED, load_image, same
from tests.test_default_model import raw_bits
from vqcodec import codec, container
from vqcodec.model import Model

KODAK = SHARED / "kodak"


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak photographs do not lie beside this checkout (shared/kodak)")
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_codes_of_all_photographs_survive(quality: int, default_model: Model) -> None:
    paths = sorted(KODAK.glob("kodim*.png"))
    assert len(paths) == 24
    spent = raw = 0
    for path in paths:
        image = load_image(path)
        codes = default_model.encode(image, quality)
        data = codec.pack_codes(codes, *image.shape[:2], quality, default_model)
        assert same(codec.decode_codes(data, default_model), codes), path.name
        spent += 8 * sum(len(section.payload) for section in container.unpack(data).sections)
        raw += raw_bits(codes, default_model.config)
    assert spent <= 0.8 * raw
