"""No input makes the codec take more memory than its limits allow, whatever its header says."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, GOLDENS, ROOT, hollow_png, noise, run_python, vqcodec
from vqcodec import bitstream, channels, codec, config, container, files, image, limits
from vqcodec.compare import compare
from vqcodec.container import Container, Extras, Metadata, Section
from vqcodec.errors import DamagedError, ImageError, LimitError
from vqcodec.model import Model, load_model
from vqcodec.sample import sample, sample_from
from vqcodec.targets import compress_to

FILE = (GOLDEN / "wide-q100.vq").read_bytes()
HELD = container.unpack(FILE)
HUGE = (65_535, 65_535)


def small(model: Model, width: int, height: int, alpha: bytes = b"") -> bytes:
    """The smallest file with this size: every checksum holds, and there is hardly a payload."""
    levels = tuple(Section(kind, bytes(2)) for kind in (1, 2, 3))
    return container.pack(Container(model.id, width, height, 5000, levels + Extras(alpha=alpha).sections()))


def peak(action: Callable[[], object]) -> int:
    """The most bytes that Python and numpy hold at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("decode", [codec.decompress, codec.decode_codes])
def test_a_header_with_too_many_pixels_is_refused(decode: Callable[..., object], model: Model) -> None:
    def refused() -> None:
        with pytest.raises(LimitError, match="--max-pixels 4294836225"):
            decode(small(model, *HUGE), model)

    assert len(small(model, *HUGE)) == 39
    assert peak(refused) < 1 << 18


@pytest.mark.parametrize("size", [(14_000, 14_000), (65_535, 3_000), (3_000, 65_535)])
@pytest.mark.parametrize("golden", [GOLDENS[0], GOLDENS[-1]], ids=lambda golden: golden.name)
def test_a_short_file_takes_little_memory_even_below_the_limit(size: tuple[int, int], golden: Path) -> None:
    """Middle and bottom cost memory only when the top was intact, and the top ends when its payload does."""
    model = load_model(golden / "model")

    def refused() -> None:
        with pytest.raises(DamagedError, match="ends too early"):
            codec.decompress(small(model, *size), model)

    model.prior  # noqa: B018 - opens it
    assert peak(refused) < 4 << 20


@pytest.mark.weights
def test_a_short_file_takes_little_memory_with_the_shipped_model(default_model: Model) -> None:
    def refused() -> None:
        with pytest.raises(DamagedError, match="ends too early"):
            codec.decompress(small(default_model, 14_000, 14_000), default_model)

    default_model.prior  # noqa: B018 - opens it
    assert peak(refused) < 5_000_000


def test_payloads_that_end_too_early_are_refused(model: Model) -> None:
    """Missing words count as zero, so that codes can be made up for them, with a checksum that holds."""
    held = container.unpack(codec.compress(noise(512, 512), 50, model))
    for level in range(3):
        sections = list(held.sections)
        sections[level] = Section(level + 1, sections[level].payload[:6])
        with pytest.raises(DamagedError, match="too early"):
            codec.decode_codes(container.pack(Container(model.id, 512, 512, held.quality, tuple(sections))), model)


def test_every_way_in_has_the_limit(model: Model) -> None:
    picture = noise(10, 20)
    data = codec.compress(picture, 50, model)
    as_png = image.write(picture)
    for refused in (
        lambda: codec.compress(picture, 50, model, max_pixels=199),
        lambda: compress_to(picture, "size", 10_000, model, max_pixels=199),
        lambda: codec.decompress(data, model, max_pixels=199),
        lambda: codec.decode_codes(data, model, max_pixels=199),
        lambda: codec.salvage(data, model, max_pixels=199),
        lambda: image.read_picture(as_png, max_pixels=199),
        lambda: compare(as_png, data, ("a", "b"), model, max_pixels=199),
    ):
        with pytest.raises(LimitError, match="199"):
            refused()
    assert codec.decompress(data, model, max_pixels=200).shape == (10, 20, 3)
    assert codec.compress(picture, 50, model, max_pixels=200) == data
    assert image.read_picture(as_png, max_pixels=200).pixels.shape == (10, 20, 3)


def test_sampling_has_the_limit(model: Model) -> None:
    with pytest.raises(LimitError, match="200000000"):
        sample(*HUGE, model=model)
    with pytest.raises(LimitError, match="200000000"):
        sample_from(small(model, *HUGE), 1, model=model)


def test_pillows_own_limit_gives_way_and_comes_back() -> None:
    """Pillow refuses 179 million pixels; a picture of 190 million is told from its head here, and fails for its pixels only."""
    before = Pillow.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="damaged"):
        image.read_picture(hollow_png(14_000, 13_500))
    with pytest.raises(LimitError, match="--max-pixels"):
        image.read_picture(hollow_png(15_000, 15_000))
    with pytest.raises(LimitError, match="--max-pixels"):
        image.read_picture(hollow_png(14_000, 13_500), max_pixels=1000)
    assert before == Pillow.MAX_IMAGE_PIXELS
    assert before is not None


@pytest.mark.parametrize(
    "alpha",
    [
        hollow_png(65_535, 65_535),
        hollow_png(70, 51),
        hollow_png(50, 70),
        hollow_png(70, 50, 16),
        hollow_png(70, 50, 8, 2),
        hollow_png(70, 50, 8, 3),
        b"no PNG",
        hollow_png(70, 50)[:20],
    ],
)
def test_alpha_is_checked_before_anything_is_decoded(alpha: bytes, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqcodec.bitstream.read_levels", None)
    with pytest.raises(DamagedError, match="alpha"):
        codec.decompress(container.pack(Container(model.id, 70, 50, 0, (*HELD.sections, Section(4, alpha)))), model)
    with pytest.raises(DamagedError):
        channels.unpack_alpha(alpha, 50, 70)


@pytest.mark.parametrize("kind", [5, 6, 7])
def test_metadata_is_bounded(kind: int, model: Model) -> None:
    name = container.SECTION_TYPES[kind]
    fits, over = bytes(limits.MAX_METADATA), bytes(limits.MAX_METADATA + 1)
    assert codec.read_metadata(codec.compress(noise(8, 8), 50, model, Metadata(**{name: fits})))._asdict()[name] == fits
    with pytest.raises(LimitError, match=name):
        codec.compress(noise(8, 8), 50, model, Metadata(**{name: over}))
    with mock.patch.object(limits, "MAX_METADATA", len(over)):
        data = container.pack(replace(HELD, sections=(*HELD.sections, Section(kind, over))))
    with pytest.raises(LimitError, match=name):
        container.unpack(data)


def test_pictures_that_other_programs_would_have_to_draw_are_refused() -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(noise(8, 8)).save(buffer, "EPS")
    with pytest.raises(ImageError, match="EPS"):
        image.read_picture(buffer.getvalue())


def test_input_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    assert files.read(str(path), 1000) == bytes(1000)
    with pytest.raises(LimitError, match="999"):
        files.read(str(path), 999)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_endless_input_ends() -> None:
    with pytest.raises(LimitError, match="limit of 3000000 bytes"):
        files.read("/dev/zero", 3_000_000)


def test_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image.write(noise(40, 50)))
    model = ("-m", GOLDEN / "model")
    assert vqcodec("compress", "a.png", *model, cwd=tmp_path).returncode == 0
    for arguments in (("compress", "a.png", "b.vq"), ("decompress", "a.vq", "b.png"), ("compare", "a.png", "a.vq")):
        result = vqcodec(*arguments, *model, "--max-pixels", "1.9k", cwd=tmp_path)
        assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
        assert b"--max-pixels 2000" in result.stderr
        assert vqcodec(*arguments, *model, "--max-pixels", "2k", cwd=tmp_path).returncode == 0
    for count in ("many", "9" * 400):
        assert vqcodec("compress", "a.png", "--max-pixels", count, cwd=tmp_path).returncode == 2


def test_info_tells_the_size_of_any_file(tmp_path: Path, model: Model) -> None:
    (tmp_path / "a.vq").write_bytes(small(model, *HUGE))
    result = vqcodec("info", "a.vq", "-m", GOLDEN / "model", cwd=tmp_path)
    assert result.returncode == 0
    assert b"65535 x 65535" in result.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_whole_process_stays_small(tmp_path: Path, model: Model) -> None:
    """All memory, that of compiled libraries too, against a run that fails at the magic."""
    (tmp_path / "huge.vq").write_bytes(small(model, 14_000, 14_000))
    (tmp_path / "none.vq").write_bytes(b"none")
    script = f"""
import resource, sys
from vqcodec import codec
model = codec.load_model({str(GOLDEN / "model")!r})
model.prior
try:
    codec.decompress(open(sys.argv[1], "rb").read(), model)
except codec.container.DamagedError if "huge" in sys.argv[1] else codec.container.BadMagicError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    huge, none = [int(run_python("-c", script, tmp_path / name).stdout) for name in ("huge.vq", "none.vq")]
    assert huge - none < 8 << 10  # kB


def test_the_picture_itself_may_be_as_large_as_asked(model: Model) -> None:
    """The limit is one of pixels, not of their compressed size: a plain picture of 4 million pixels has 1 kB as a PNG."""
    picture = np.zeros((2000, 2000), np.uint8)
    assert image.read_picture(image.write(picture), max_pixels=4_000_000).pixels.shape == (2000, 2000)


def test_the_documented_limits_are_those_of_the_code() -> None:
    """docs/SECURITY.md has them all."""
    text = (ROOT / "docs" / "SECURITY.md").read_text()
    for value in (
        *(limits.MAX_PIXELS, limits.MAX_METADATA, limits.MAX_CARD, limits.MAX_GRAPH, limits.MAX_WEIGHTS, limits.INPUT_BYTES),
        container.MAX_SIDE,
    ):
        assert f"{value:,}" in text
    assert f"and {limits.INPUT_PIXEL_BYTES} for each pixel" in text
    assert f"{bitstream.SPARE_BITS} bits more" in text
    assert f"{config.MAX_STAGES}, {config.MAX_CODEBOOK_SIZE} |" in text
