"""The peers: real files at the stated settings, and (slow) agreement with an independent measurement on Kodak."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest

pytest.importorskip("imagecodecs", reason="needs the extra bench")

from tests.support import GOLDEN, IMAGES, ROOT, SHARED, load_image
from vqcodec import metrics
from vqcodec.bench.crops import SIDE, detailed_window, levels, setting_for, side_by_side
from vqcodec.bench.peers import open_coder
from vqcodec.errors import BenchError, MissingLibraryError
from vqcodec.model import load_model
from vqcodec.msssim import ms_ssim

MODEL = str(GOLDEN / "model")
PEERS = ["jpeg", "webp", "avif", "jpeg2000", "jxl", "heic"]
KODAK = SHARED / "kodak"
MAGIC = {  # what a file of each codec has near its beginning
    "vqcodec": b"\x8fVQC",
    "jpeg": b"\xff\xd8\xff",
    "webp": b"WEBPVP8 ",
    "avif": b"ftypavif",
    "jpeg2000": b"ftypjp2 ",
    "jxl": b"\xff\x0a",
    "heic": b"ftypheic",
}


def picture(side: int = 96) -> np.ndarray:
    """An eye of Chelsea, the cat."""
    return load_image(IMAGES / "chelsea.png")[90 : 90 + side, 100 : 100 + side]


@pytest.mark.parametrize("name", ["vqcodec", *PEERS])
def test_files_are_real_and_grow_with_the_setting(name: str) -> None:
    coder, pixels = open_coder(name, MODEL), picture()
    files = [coder.compress(pixels, setting) for setting in (coder.settings[0], coder.settings[-1])]
    assert all(MAGIC[name] in data[:40] for data in files)
    restored = [coder.decompress(data) for data in files]
    assert all((image.shape, image.dtype) == (pixels.shape, np.uint8) for image in restored)
    assert len(files[0]) < len(files[1])
    if name != "vqcodec":  # the tests' model is untrained
        errors = [metrics.mse(pixels, image) for image in restored]
        assert errors[1] < errors[0] < 2000
    assert list(coder.settings) == sorted(coder.settings, reverse=coder.ends[0] > coder.ends[1])


def test_the_stated_settings_are_in_the_files() -> None:
    pixels = picture()
    files = {name: open_coder(name, MODEL).compress(pixels, setting) for name, setting in (("jpeg", 25), ("avif", 30), ("jpeg2000", 20))}
    frame = files["jpeg"].index(b"\xff\xc2")  # SOF2: progressive
    assert files["jpeg"][frame + 11] == 0x22  # the luma's sampling factors: 4:2:0
    assert files["avif"][files["avif"].index(b"av1C") + 6] & 0b1100 == 0  # neither chroma axis is subsampled: 4:4:4
    style = files["jpeg2000"].index(b"\xff\x52")  # COD
    assert files["jpeg2000"][style + 8] == 1  # the colour transform is on
    assert files["jpeg2000"][style + 13] == 0  # the wavelet is 9/7


def test_unknown_codecs_and_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="no codec 'gif'; choose from vqcodec,jpeg"):
        open_coder("gif", MODEL)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingLibraryError, match=r"jxl needs imagecodecs.*vqcodec\[bench\]"):
        open_coder("jxl", MODEL)


@pytest.mark.parametrize("name", ["jpeg", "jpeg2000", "webp"])
def test_the_search_finds_the_setting_of_a_size(name: str) -> None:
    coder, pixels = open_coder(name, MODEL), picture()
    for setting in (coder.settings[2], coder.settings[4]):
        target = len(coder.compress(pixels, setting))
        assert abs(len(coder.compress(pixels, setting_for(coder, pixels, target))) / target - 1) < 0.03


def test_side_by_side_says_when_a_codec_comes_no_nearer() -> None:
    pixels = picture()
    shown = side_by_side(pixels, [open_coder(name, MODEL) for name in ("vqcodec", "jpeg2000", "jpeg")], 50)
    assert [part.label.split()[0] for part in shown] == ["original", "vqcodec", "jpeg2000", "jpeg"]
    assert np.array_equal(shown[0].crop, pixels)
    assert [part.equal for part in shown] == [True, True, *(abs(part.bpp / shown[1].bpp - 1) <= 0.1 for part in shown[2:])]
    assert 0.05 < shown[1].bpp < 2


def test_levels_add_up_to_the_file() -> None:
    pixels = picture()
    shown = levels(pixels, MODEL, 50)
    model = load_model(MODEL)
    data = open_coder("vqcodec", MODEL).compress(pixels, 50)
    assert [part.label for part in shown] == ["top", "top + middle", "top + middle + bottom"]
    assert shown[0].bpp < shown[1].bpp < shown[2].bpp == metrics.bpp(len(data), *pixels.shape[:2])
    codes = model.encode(pixels, 50)
    for count, part in enumerate(shown, 1):
        assert np.array_equal(part.crop, model.decode(codes, *pixels.shape[:2], 50, levels=count))


def test_the_window_lies_where_the_detail_is() -> None:
    pixels = np.full((500, 1000, 3), 128, np.uint8)
    pixels[250:400, 700:900] = np.random.default_rng(0).integers(0, 256, (150, 200, 3))
    rows, columns = detailed_window(pixels)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (SIDE, SIDE)
    assert rows.start <= 250 < 400 <= rows.stop
    assert columns.start <= 700 < 900 <= columns.stop
    assert detailed_window(pixels[:100, :50]) == (slice(0, 100), slice(0, 50))


@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak photographs do not lie beside this checkout (shared/kodak)")
@pytest.mark.parametrize("name", PEERS)
def test_peers_agree_with_an_independent_measurement(name: str) -> None:
    with (ROOT / "bench" / "reference" / "peers_kodak.csv").open(encoding="utf-8") as file:
        expected = next(row for row in csv.DictReader(file) if row["codec"] == name)
    coder, setting = open_coder(name, MODEL), float(expected["setting"])
    if name == "jxl" and not coder.library.startswith("libjxl 0.11."):
        pytest.skip(f"measured with libjxl 0.11, here is {coder.library}, whose distances mean other rates")
    rates, errors, similarities = [], [], []
    for path in sorted(KODAK.glob("kodim*.png")):
        pixels = load_image(path)
        data = coder.compress(pixels, setting)
        restored = coder.decompress(data)
        rates.append(metrics.bpp(len(data), *pixels.shape[:2]))
        errors.append(metrics.mse(pixels, restored))
        similarities.append(ms_ssim(pixels, restored))
    assert len(rates) == 24
    assert np.mean(rates) == pytest.approx(float(expected["bpp"]), rel=0.01)
    assert np.mean([metrics.psnr(error) for error in errors]) == pytest.approx(float(expected["psnr_mean"]), abs=0.05)
    assert metrics.psnr(float(np.mean(errors))) == pytest.approx(float(expected["psnr_of_mean_mse"]), abs=0.05)
    assert np.mean(similarities) == pytest.approx(float(expected["ms_ssim"]), abs=0.001)
