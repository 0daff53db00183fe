"""The container: what goes in comes out, and whatever is wrong in a file is a named error, never a wrong picture."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import GOLDEN, same
from vqcodec import codec, container
from vqcodec.container import HEADER_BYTES, Container, Extras, Metadata, Section
from vqcodec.errors import (
    BadMagicError,
    DamagedError,
    FormatError,
    TruncatedError,
    UnsupportedVersionError,
    WrongModelError,
)
from vqcodec.model import Model

FILE = (GOLDEN / "wide-q100.vq").read_bytes()
HELD = container.unpack(FILE)
THREE = ("dot-q50", "odd-q0", "wide-q100")  # one pixel, odd sides, and a wide picture

containers = st.builds(
    Container,
    model_id=st.binary(min_size=6, max_size=6),
    width=st.integers(1, 65_535),
    height=st.integers(1, 65_535),
    quality=st.integers(0, 10_000),
    sections=st.sets(st.integers(4, 7)).flatmap(
        lambda extra: st.tuples(
            *[
                st.builds(Section, st.just(kind), st.integers(kind > 3, 20_000).map(bytes) | st.binary(min_size=kind > 3, max_size=50))
                for kind in (1, 2, 3, *sorted(extra))
            ]
        )
    ),
    gray=st.booleans(),
)


def with_header(version: int = 2, flags: int = 0, **values: Any) -> bytes:
    """The golden file with other values in its header, and checksums that hold."""
    head = head_of(replace(HELD, **values), flags, version)
    return head + b"".join(sealed(head, section.kind, section.payload) for section in HELD.sections)


def sealed(head: bytes, kind: int, payload: bytes, length: bytes = b"") -> bytes:
    """A section as docs/FORMAT.md has it, of fewer than 2^14 bytes unless its `length` is given."""
    count = len(payload)
    length = length or (bytes([count]) if count < 128 else bytes([128 + count % 128, count // 128]))
    return length + struct.pack("<I", crc32(head + bytes([kind]) + length + payload)) + payload


def head_of(held: Container, flags: int = 0, version: int = 2) -> bytes:
    """The header as docs/FORMAT.md has it."""
    return struct.pack("<4sBB6sHHH", container.MAGIC, version, flags, held.model_id, held.width, held.height, held.quality)


def with_payload(index: int, payload: bytes) -> bytes:
    """The golden file with another payload under a checksum that holds."""
    sections = list(HELD.sections)
    sections[index] = Section(sections[index].kind, payload)
    return container.pack(Container(HELD.model_id, HELD.width, HELD.height, HELD.quality, tuple(sections)))


@given(containers)
def test_pack_then_unpack_is_the_identity(held: Container) -> None:
    data = container.pack(held)
    assert container.unpack(data) == held
    assert len(data) == HEADER_BYTES + sum(section.size for section in held.sections)
    assert all(5 <= section.size - len(section.payload) <= 7 for section in held.sections)


def test_what_is_no_payload_is_small() -> None:
    assert len(FILE) - sum(len(section.payload) for section in HELD.sections) <= 40
    assert with_header() == FILE  # the layout above is the format's


@pytest.mark.parametrize("name", THREE)
def test_every_truncation_is_refused(name: str, model: Model) -> None:
    whole = (GOLDEN / f"{name}.vq").read_bytes()
    for length in range(len(whole)):
        with pytest.raises(TruncatedError):
            codec.decode_codes(whole[:length], model)


@pytest.mark.parametrize("name", THREE)
def test_every_other_value_of_every_byte_is_refused(name: str, model: Model) -> None:
    """All 255 of each byte, the single bits among them; the place says which error it is."""
    whole = (GOLDEN / f"{name}.vq").read_bytes()
    codec.decode_codes(whole, model)
    for position in range(len(whole)):
        kinds = BadMagicError if position < 4 else UnsupportedVersionError if position == 4 else (DamagedError, TruncatedError)
        for mask in range(1, 256):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            with pytest.raises(kinds):
                codec.decode_codes(bytes(damaged), model)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    for attempt in (data, container.MAGIC + data, container.MAGIC + b"\x02" + data):
        with pytest.raises(FormatError):
            container.unpack(attempt)


@given(st.integers(0, 2), st.data())
def test_damage_under_a_valid_checksum_never_gives_other_codes(index: int, data: st.DataObject) -> None:
    """The codes' own checksums stand behind the sections': a payload may be changed, its codes may not."""
    model = codec.load_model(GOLDEN / "model")
    payload = bytearray(HELD.sections[index].payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)))]
    try:
        codes = codec.decode_codes(with_payload(index, bytes(payload)), model)
    except DamagedError:
        return
    assert same(codes, codec.decode_codes(FILE, model))


def test_empty_file() -> None:
    with pytest.raises(TruncatedError, match="empty"):
        container.unpack(b"")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"x", b"VQC" + FILE, FILE.replace(b"\x8f", b"?", 1)])
def test_wrong_magic(data: bytes) -> None:
    with pytest.raises(BadMagicError):
        container.unpack(data)


@pytest.mark.parametrize(
    ("version", "advice"), [(0, "the vqcodec that wrote it"), (1, "the vqcodec that wrote it"), (3, "newer"), (255, "newer")]
)
def test_unknown_version(version: int, advice: str) -> None:
    with pytest.raises(UnsupportedVersionError, match=f"version {version} .*{advice}"):
        container.unpack(with_header(version=version))


@pytest.mark.parametrize("trailing", [b"\0", b"more", FILE])
def test_trailing_bytes(trailing: bytes) -> None:
    count = "1 byte follows" if len(trailing) == 1 else f"{len(trailing)} bytes follow"
    with pytest.raises(DamagedError, match=f"^{count} the last section; copy the file again, or .* vqcodec decompress --salvage$"):
        container.unpack(FILE + trailing)


@pytest.mark.parametrize("values", [{"width": 0}, {"height": 0}, {"quality": 10_001}, {"quality": 65_535}])
def test_impossible_header_values(values: dict[str, int]) -> None:
    with pytest.raises(DamagedError, match="impossible"):
        container.unpack(with_header(**values))


@pytest.mark.parametrize("flags", [0x40, 0x80, 0xFF])
def test_unknown_flags(flags: int) -> None:
    with pytest.raises(UnsupportedVersionError, match="flags"):
        container.unpack(with_header(flags=flags))


def test_every_truncation_of_optional_sections_is_refused() -> None:
    """The header announces them, so that a file cut off between two sections is not taken for a whole one."""
    extras = Extras(True, b"alpha", Metadata(b"profile", b"", b"packet"), b"adapted")
    whole = container.pack(Container(HELD.model_id, 9, 9, 0, HELD.sections + extras.sections(), True))
    assert container.unpack(whole).extras == extras
    for length in range(len(FILE), len(whole)):
        with pytest.raises(TruncatedError):
            container.unpack(whole[:length])
    for position in range(len(FILE), len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        with pytest.raises((DamagedError, TruncatedError)):
            container.unpack(bytes(damaged))
    with pytest.raises(DamagedError, match="1 byte follows"):
        container.unpack(whole + b"\4")


@pytest.mark.parametrize("kind", [4, 5, 6, 7, 8])
def test_an_announced_section_is_not_empty(kind: int) -> None:
    whole = container.pack(replace(HELD, sections=(*HELD.sections, Section(kind, b""))))
    with pytest.raises(DamagedError, match="is empty"):
        container.unpack(whole)


def test_sections_that_the_flags_do_not_announce() -> None:
    whole = container.pack(Container(HELD.model_id, HELD.width, HELD.height, HELD.quality, (*HELD.sections, Section(5, b"profile"))))
    with pytest.raises(DamagedError, match="follow"):
        container.unpack(with_header() + whole[len(FILE) :])
    with pytest.raises(DamagedError, match="'alpha'"):
        container.unpack(with_header(flags=2) + sealed(head_of(HELD, 2), 5, b"profile"))


def test_a_section_belongs_to_one_header() -> None:
    wider = replace(HELD, width=HELD.width + 1)
    parts = [
        sealed(head_of(held), section.kind, section.payload) for held, section in zip((wider, wider, HELD), HELD.sections, strict=True)
    ]
    with pytest.raises(DamagedError, match="'bottom'"):
        container.unpack(head_of(wider) + b"".join(parts))


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("length", [b"\x82\x00", b"\x82\x80\x00", b"\x82\x80\x80\x80\x00", b"\x82\x80\x80\x80\x80", b"\xff" * 5])
def test_a_length_has_as_few_bytes_as_can_be(length: bytes, index: int) -> None:
    head = head_of(HELD)
    for sealed_over in (length, b"\x02"):
        parts = [sealed(head, kind, b"xy") for kind in (1, 2, 3)]
        assert container.unpack(head + b"".join(parts)).levels == [b"xy"] * 3
        parts[index] = length + sealed(head, index + 1, b"xy", sealed_over)[len(sealed_over) :]
        with pytest.raises(DamagedError, match="length"):
            container.unpack(head + b"".join(parts))


@pytest.mark.parametrize(("count", "length"), [(127, b"\x7f"), (128, b"\x80\x01"), (16_383, b"\xff\x7f"), (70_000, b"\xf0\xa2\x04")])
def test_lengths(count: int, length: bytes) -> None:
    sections = (Section(1, bytes(count)), *HELD.sections[1:])
    data = container.pack(replace(HELD, sections=sections))
    assert data.startswith(head_of(HELD) + sealed(head_of(HELD), 1, bytes(count), length))
    assert container.unpack(data).sections == sections


@pytest.mark.parametrize("levels", [1, 2])
def test_a_prefix_gives_its_levels(levels: int, model: Model) -> None:
    ends = [HEADER_BYTES]
    for section in HELD.sections:
        ends.append(ends[-1] + section.size)
    whole = codec.decompress(FILE, model, levels)
    for length in (ends[levels], ends[levels] + 5, ends[levels + 1] - 1, len(FILE)):
        assert np.array_equal(codec.decompress(FILE[:length], model, levels), whole)
    with pytest.raises(TruncatedError):
        codec.decompress(FILE[: ends[levels] - 1], model, levels)
    with pytest.raises(DamagedError):
        codec.decompress(FILE + b"x", model, levels)
    codes = codec.decode_codes(FILE, model)
    assert np.array_equal(whole, model.decode(codes, HELD.height, HELD.width, HELD.quality / 100, levels))
    assert not np.array_equal(whole, codec.decompress(FILE, model))


@pytest.mark.parametrize("levels", [-1, 0, 4])
def test_impossible_number_of_levels(levels: int, model: Model) -> None:
    with pytest.raises(ValueError, match="levels"):
        codec.decompress(FILE, model, levels)


def test_a_file_that_is_not_whole_says_what_it_still_gives() -> None:
    """Whatever reads it, and only what there is a way to."""
    whole = container.pack(replace(HELD, sections=(*HELD.sections, Section(4, b"alpha"))))
    ways = {"top": "", "middle": "--levels top or --salvage", "bottom": "--levels middle or --salvage", "alpha": "--salvage"}
    end = HEADER_BYTES
    for section in container.unpack(whole).sections:
        start, end = end, end + section.size
        for length in (start, end - 1):
            says(whole[:length], ways[section.name])
        says(whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:], ways[section.name] and "--salvage")
    says(with_payload(0, b"top")[: -HELD.sections[2].size] + b"\x80\x00" + bytes(9), "--salvage")


def says(data: bytes, way: str) -> None:
    """Checks what the refusal of a file offers beside copying it again."""
    with pytest.raises(FormatError) as refusal:
        container.unpack(data)
    advice = str(refusal.value).split("; ")[1]
    intact = f", or take what is intact with vqcodec decompress {way}" if way else ""
    assert re.fullmatch(f"copy (it|the file) again{intact}", advice)


def test_other_quality_or_size_is_noticed(model: Model) -> None:
    """Header values decide how payloads are read, so a wrong one must show in the codes' checksums."""
    for values in ({"width": 500}, {"height": 500}, {"quality": 0}):
        with pytest.raises(DamagedError):
            codec.decode_codes(with_header(**values), model)


def test_sections_in_another_order() -> None:
    sections = (HELD.sections[1], HELD.sections[0], HELD.sections[2])
    with pytest.raises(DamagedError):
        container.unpack(container.pack(Container(HELD.model_id, HELD.width, HELD.height, HELD.quality, sections)))


def test_swapped_payloads_are_noticed(model: Model) -> None:
    payloads = [section.payload for section in HELD.sections]
    with pytest.raises(DamagedError):
        codec.decode_codes(with_payload(1, payloads[2]), model)


def test_other_model_is_named(model: Model) -> None:
    data = container.pack(Container(b"\x01\x02\x03\x04\x05\x06", HELD.width, HELD.height, HELD.quality, HELD.sections))
    with pytest.raises(WrongModelError, match="010203040506"):
        codec.decode_codes(data, model)


def test_info_needs_no_model(model: Model) -> None:
    known, unknown = codec.info(FILE, model), codec.info(with_header(model_id=b"nobody"), model)
    assert known["codes"] == {name: list(code_map.shape) for name, code_map in codec.decode_codes(FILE, model)._asdict().items()}
    assert (unknown["model"], unknown["codes"], unknown["model_id"]) == (None, None, b"nobody".hex())
    assert sum(known["sections"].values()) + HEADER_BYTES == len(FILE) == known["bytes"]
    assert np.isclose(known["bpp"], 8 * len(FILE) / (50 * 70))
