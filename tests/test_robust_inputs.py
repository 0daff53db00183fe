"""Odd but possible inputs that once ended in a traceback or in a silently wrong picture."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as Pillow

from tests.support import GOLDEN, ROOT, SHARED, noise, run_python, same, vqcodec
from vqcodec import codec, image
from vqcodec.errors import FormatError, ImageError, InvalidModelError, OutputError
from vqcodec.model import CARD, LAYOUTS, Model, load_model

HOSTILE = SHARED / "robust" / "hostile"
needs_suites = pytest.mark.skipif(not HOSTILE.is_dir(), reason="no folder of awkward images lies beside this checkout (shared/robust)")


def saved(picture: Pillow.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_sixteen_bit_gray_is_turned_upright() -> None:
    picture = Pillow.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000)
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 6
    read = image.read(saved(picture, "PNG", exif=exif))
    assert read.shape == (6, 4, 3)
    assert np.array_equal(read[:, :, 0], np.rot90((np.array(picture) / 257).round().astype(np.uint8), -1))


def test_broken_exif_does_not_refuse_good_pixels() -> None:
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = saved(Pillow.fromarray(noise(8, 16)), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    broken = data[: start + 4] + b"\xff\xff\xff\x7f" + data[start + 8 :]  # the offset of the first directory
    assert image.read(data).shape == (16, 8, 3)
    assert image.read(broken).shape == (8, 16, 3)


@pytest.mark.parametrize("values", [np.full((4, 4), -7, np.int32), np.full((4, 4), 1 << 20, np.int32), np.full((4, 4), np.nan, np.float32)])
def test_numbers_of_unknown_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"(convert it|replace them)"):
        image.read(saved(Pillow.fromarray(values), "TIFF"))


def test_small_integers_are_not_scaled_to_black() -> None:
    assert image.read(saved(Pillow.fromarray(np.full((4, 4), 100, np.int32)), "TIFF")).max() == 100


@pytest.mark.parametrize("suffix", [".ico", ".gif", ".pdf", ".vq"])
def test_formats_that_would_change_the_picture_are_refused(suffix: str) -> None:
    with pytest.raises(OutputError, match="suffix"):
        image.write(noise(4, 4), suffix)


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_a_file_may_lie_in_whatever_holds_bytes(kind: Callable[[bytes], Any], model: Model) -> None:
    whole = (GOLDEN / "photo-q60.vq").read_bytes()
    held = kind(whole)
    pixels = codec.decompress(whole, model)
    assert np.array_equal(codec.decompress(held, model), pixels)
    assert np.array_equal(codec.salvage(held, model).image, pixels)
    assert same(codec.decode_codes(held, model), codec.decode_codes(whole, model))
    assert codec.info(held, model) == codec.info(whole, model)
    assert codec.read_metadata(held) == codec.read_metadata(whole)


@pytest.mark.parametrize("taken", [codec.decompress, codec.salvage, codec.decode_codes, codec.info, codec.read_metadata])
@pytest.mark.parametrize("held", ["x.vq", Path("x.vq"), None, 7])
def test_a_name_is_no_file(taken: Callable[[object], object], held: object) -> None:
    with pytest.raises(FormatError, match=rf"{type(held).__name__}, not the bytes of a \.vq file; give .*read_bytes"):
        taken(held)


def test_a_folder_named_like_a_shipped_model_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqcodec.model.models_folder", lambda: GOLDEN)
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("model").id == load_model(GOLDEN / "model").id


def test_a_model_exported_again_is_read_again(tmp_path: Path) -> None:
    for name in (CARD, *LAYOUTS[1]):
        (tmp_path / name).write_bytes((GOLDEN / "model" / name).read_bytes())
    before = load_model(tmp_path).id
    (tmp_path / LAYOUTS[1][0]).write_bytes(b"other")
    assert load_model(tmp_path).id != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("widths", [8, 8, 8]),
        ("encoder_depths", [1, 1, 1]),
        ("decoder_depths", [-9, -9, -9, -9]),
        ("decoder_depths", ["1", "1", "1", "1"]),
        ("anchors", "x"),
        ("lambda_min", float("nan")),
        ("lambda_min", 1e-322),
        ("lambda_max", 0.0),
    ],
)
def test_impossible_configurations_are_refused(key: str, value: object, tmp_path: Path) -> None:
    for name in (CARD, *LAYOUTS[1]):
        (tmp_path / name).write_bytes((GOLDEN / "model" / name).read_bytes())
    card = json.loads((tmp_path / CARD).read_text())
    card["config"]["transform"][key] = value
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(InvalidModelError):
        load_model(tmp_path)


@pytest.mark.parametrize("threads", ["x", "-1", "1.5", "9" * 30])
def test_a_number_of_threads_that_is_none_is_one_error(threads: str, tmp_path: Path) -> None:
    arguments = ("-m", "vqcodec.cli", "compress", ROOT / "tests/images/chelsea.png", "x.vq", "-m", GOLDEN / "model")
    result = run_python(*arguments, cwd=tmp_path, VQCODEC_THREADS=threads)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"VQCODEC_THREADS" in result.stderr
    assert run_python(*arguments, cwd=tmp_path, VQCODEC_THREADS="").returncode == 0


def test_a_model_name_that_no_file_system_takes_is_one_error(tmp_path: Path) -> None:
    result = vqcodec("compress", ROOT / "tests/images/chelsea.png", "x.vq", "-m", "m" * 300, cwd=tmp_path)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "vqcodec.cli", "info", GOLDEN / "photo-q60.vq", "-m", GOLDEN / "model"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("redirection", ["<&-", ">&-"])
def test_closed_standard_streams_are_one_error(redirection: str) -> None:
    source = "-" if redirection == "<&-" else f"'{GOLDEN / 'photo-q60.vq'}'"
    script = f"'{sys.executable}' -m vqcodec.cli decompress {source} - -m '{GOLDEN / 'model'}' {redirection}"
    result = subprocess.run(["sh", "-c", script], capture_output=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)


def test_quality_must_be_a_number(tmp_path: Path) -> None:
    result = vqcodec("compress", ROOT / "tests/images/chelsea.png", "x.vq", "-q", "nan", cwd=tmp_path)
    assert result.returncode == 2
    assert not list(tmp_path.iterdir())


@needs_suites
def test_hostile_files_by_the_command_are_pictures_or_one_line_each(tmp_path: Path) -> None:
    """All in one process, so that none spoils what comes after it; nothing half-written is left."""
    (tmp_path / "in").mkdir()
    found = sorted(path for path in HOSTILE.rglob("*") if path.is_file())
    assert len(found) > 80
    for number, path in enumerate(found):
        shutil.copy(path, tmp_path / "in" / f"{number}-{path.name}")
    result = vqcodec("compress", *sorted((tmp_path / "in").iterdir()), "--out-dir", "out", "--json", "-m", GOLDEN / "model", cwd=tmp_path)
    assert result.returncode == 1
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(outcomes) == len(found)
    done, failed = ([entry for entry in outcomes if entry["status"] == status] for status in ("done", "failed"))
    assert len(done) + len(failed) == len(found)
    assert len(done) > 15
    lines = result.stderr.decode().splitlines()
    assert all(line.startswith("vqcodec: ") for line in lines), lines
    assert len(lines) == len(failed) + 1 + sum(len(entry["notices"]) for entry in outcomes)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {Path(entry["output"]).name for entry in done}
