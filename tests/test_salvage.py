"""What is left of a damaged file is shown, and what is lost is said; without --salvage there is an error and no output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import GOLDEN, noise, swapped, vqcodec
from vqcodec import codec, container, image, limits
from vqcodec.container import HEADER_BYTES, Metadata
from vqcodec.errors import DamagedError, FormatError, TruncatedError
from vqcodec.model import Model

MODEL = GOLDEN / "model"
METADATA = Metadata(swapped(), b"", b"<xmp/>")
NAMES = ("top", "middle", "bottom", "alpha", "icc", "xmp")


@pytest.fixture(scope="module")
def whole() -> bytes:
    return codec.compress(np.dstack([noise(70, 90), noise(70, 90, 1)[:, :, 0]]), 50, codec.load_model(MODEL), METADATA)


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each section begins and ends."""
    found, at = {}, HEADER_BYTES
    for section in container.unpack(data).sections:
        found[section.name] = at, at + section.size
        at += section.size
    return found


def flipped(data: bytes, position: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 0x10
    return bytes(damaged)


def check(data: bytes, intact: bytes, levels: int, model: Model, lost: set[str]) -> None:
    """The picture is that of the levels that are left, with the alpha and metadata that are left."""
    found = codec.salvage(data, model)
    expected = codec.decompress(intact, model, levels)
    assert found.levels == levels
    assert np.array_equal(found.image[:, :, :3], expected[:, :, :3])
    assert found.image.shape[2] == (3 if "alpha" in lost else 4)
    if "alpha" not in lost:
        assert np.array_equal(found.image[:, :, 3], expected[:, :, 3])
    assert found.metadata == Metadata(*(b"" if name in lost else value for name, value in METADATA._asdict().items()))
    said = " ".join(found.lost)
    for name in NAMES:
        assert (f"'{name}'" in said) is (name in lost), said


def test_an_intact_file_loses_nothing(whole: bytes, model: Model) -> None:
    assert tuple(places(whole)) == NAMES
    check(whole, whole, 3, model, set())


@pytest.mark.parametrize("name", NAMES)
def test_damage_in_a_payload(name: str, whole: bytes, model: Model) -> None:
    data = flipped(whole, places(whole)[name][1] - 2)
    with pytest.raises(DamagedError):
        codec.decompress(data, model)
    if name == "top":
        with pytest.raises(DamagedError, match="'top'"):
            codec.salvage(data, model)
    else:
        levels = {"middle": 1, "bottom": 2}.get(name, 3)
        check(data, whole, levels, model, {name, "bottom"} if name == "middle" else {name})


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_truncated_file(name: str, whole: bytes, model: Model) -> None:
    start, stop = places(whole)[name]
    for length in (start, start + 1, start + 3, start + 5, stop - 1):
        with pytest.raises(TruncatedError):
            codec.decompress(whole[:length], model)
        check(whole[:length], whole, {"middle": 1, "bottom": 2}.get(name, 3), model, set(NAMES[NAMES.index(name) :]))


def test_damage_anywhere(whole: bytes, model: Model) -> None:
    """Whatever byte is hit, of the payloads every fourth: the picture of some levels, or a named error."""
    pictures = [codec.decompress(whole, model, levels)[:, :, :3] for levels in (1, 2, 3)]
    first = places(whole)["top"]
    end = places(whole)["icc"][0] + 20
    around = {at + offset for edges in places(whole).values() for at in edges for offset in range(-8, 16)}
    for position in sorted({*range(0, end, 4), *range(HEADER_BYTES), *around} & set(range(end))):
        data = flipped(whole, position)
        try:
            found = codec.salvage(data, model)
        except FormatError:
            assert position < first[1]
        else:
            assert position >= first[1]
            assert found.lost
            assert np.array_equal(found.image[:, :, :3], pictures[found.levels - 1])


def test_codes_that_fail_their_checksum(whole: bytes, model: Model) -> None:
    """An intact section with another payload: the level is lost, and those that build on it."""
    held = container.unpack(whole)
    sections = list(held.sections)
    sections[1] = container.Section(2, flipped(sections[1].payload, 0))
    found = codec.salvage(container.pack(container.Container(held.model_id, held.width, held.height, held.quality, tuple(sections))), model)
    assert found.levels == 1
    assert np.array_equal(found.image[:, :, :3], codec.decompress(whole, model, 1)[:, :, :3])
    assert "'middle'" in found.lost[0]
    assert "checksum" in found.lost[0]
    assert found.lost[1] == "the section 'bottom' needs a level that is lost"


def test_metadata_of_an_impossible_length(whole: bytes, model: Model) -> None:
    """The length of the ICC profile says more than there may be, and there are as many bytes."""
    start = places(whole)["icc"][0]
    check(whole[:start] + b"\x81\x80\x80\x08" + bytes(limits.MAX_METADATA + 9), whole, 3, model, {"icc", "xmp"})


def test_bytes_after_the_end_are_said(whole: bytes, model: Model) -> None:
    found = codec.salvage(whole + b"more", model)
    assert np.array_equal(found.image, codec.decompress(whole, model))
    assert "4 bytes follow" in found.lost[0]


def test_the_command(whole: bytes, tmp_path: Path, model: Model) -> None:
    (tmp_path / "a.vq").write_bytes(whole[: places(whole)["bottom"][1] - 3])
    (tmp_path / "b.vq").write_bytes(whole)
    (tmp_path / "c.vq").write_bytes(whole[:20])
    refused = vqcodec("decompress", "a.vq", "-m", MODEL, cwd=tmp_path)
    assert refused.returncode == 1
    assert b"--salvage" in refused.stderr
    assert not (tmp_path / "a.png").exists()
    saved = vqcodec("decompress", "a.vq", "--salvage", "--quiet", "-m", MODEL, cwd=tmp_path)
    assert saved.returncode == 3
    assert [line.split(b"'")[1] for line in saved.stderr.splitlines()] == [b"bottom", b"alpha", b"icc", b"xmp"]
    picture = image.read((tmp_path / "a.png").read_bytes())
    assert np.abs(picture.astype(int) - codec.decompress(whole, model, 2)[:, :, :3]).max() <= 1
    intact = vqcodec("decompress", "b.vq", "--salvage", "-m", MODEL, cwd=tmp_path)
    assert (intact.returncode, intact.stderr) == (0, b"")
    nothing = vqcodec("decompress", "c.vq", "--salvage", "-m", MODEL, cwd=tmp_path)
    assert (nothing.returncode, nothing.stderr.count(b"\n")) == (1, 1)
    assert not (tmp_path / "c.png").exists()
    assert vqcodec("decompress", "b.vq", "d.png", "--salvage", "--levels", "top", cwd=tmp_path).returncode == 2


def test_a_beginning_without_its_alpha_and_metadata_says_so(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes(whole[: places(whole)["icc"][1]])
    (tmp_path / "b.vq").write_bytes(whole[: places(whole)["middle"][1]])
    (tmp_path / "c.vq").write_bytes(whole)
    for name, said in (("a", b"vqcodec: a.vq ends before its xmp"), ("b", b"vqcodec: b.vq ends before its alpha, icc, xmp"), ("c", b"")):
        result = vqcodec("decompress", f"{name}.vq", "--levels", "top", "-m", MODEL, cwd=tmp_path)
        assert result.returncode == 0
        assert result.stderr.split(b";")[0].strip() == said


def test_many_files(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes(whole[:-1])
    (tmp_path / "b.vq").write_bytes(whole)
    result = vqcodec("decompress", "a.vq", "b.vq", "--out-dir", "out", "--salvage", "--json", "-m", MODEL, cwd=tmp_path)
    assert result.returncode == 3
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["status"], second["status"]) == ("salvaged", "done")
    assert "'xmp'" in first["lost"][0]
    assert second["lost"] == []
    (tmp_path / "c.vq").write_bytes(b"none")
    both = vqcodec("decompress", "a.vq", "c.vq", "--out-dir", "more", "--salvage", "-m", MODEL, cwd=tmp_path)
    assert both.returncode == 1
