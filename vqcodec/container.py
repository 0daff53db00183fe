"""The `.vq` container: header and sections, with checksums. Knows nothing of codes, priors or pictures.

docs/FORMAT.md specifies it. Little endian; the header has 18 bytes, a section as a rule 6 before its payload: what a small picture is made
of should be codes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import NamedTuple
from zlib import crc32

from vqcodec import limits
from vqcodec.config import QUALITY_STEPS
from vqcodec.errors import BadMagicError, DamagedError, FormatError, LimitError, TruncatedError, UnsupportedVersionError
from vqcodec.graphs import varint

MAGIC = b"\x8fVQC"  # the first byte is not ASCII: a transfer as text is noticed
VERSION = 2
MODEL_ID_BYTES = 6
MAX_SIDE = 65_535  # pixels
LEVEL_SECTIONS = 3
SECTION_TYPES = {1: "top", 2: "middle", 3: "bottom", 4: "alpha", 5: "icc", 6: "exif", 7: "xmp", 8: "adapt"}
GRAY = 1  # bit of the flags; type 4 and later, which are optional, are announced by bit 1 and later

_HEADER = struct.Struct(f"<4sBB{MODEL_ID_BYTES}sHHH")  # magic, version, flags, model id, width, height, quality
HEADER_BYTES = _HEADER.size
LENGTH_BYTES = 5  # at most: seven bits a byte
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class Section:
    """One section: its type (a key of `SECTION_TYPES`) and its payload."""

    kind: int
    payload: bytes

    @property
    def name(self) -> str:
        """The section's name in words."""
        return SECTION_TYPES[self.kind]

    @property
    def size(self) -> int:
        """Bytes in the file, the section's head included."""
        return len(_packed(len(self.payload))) + CHECKSUM_BYTES + len(self.payload)


class Metadata(NamedTuple):
    """What a picture carries beside its pixels, as raw bytes; empty where there is none.

    `icc` is a profile, in whose colours the pixels are then (else in sRGB), `exif` a TIFF stream, `xmp` a packet of XML.
    """

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""


class Extras(NamedTuple):
    """What a file keeps beside the codes: whether the picture is gray, its alpha as a PNG (or empty), its metadata.

    And what the decoder is adapted by (or nothing).
    """

    gray: bool = False
    alpha: bytes = b""
    metadata: Metadata = Metadata()
    adaptation: bytes = b""

    def sections(self) -> tuple[Section, ...]:
        """The optional sections of a file."""
        payloads = (self.alpha, *self.metadata, self.adaptation)
        return tuple(Section(kind, payload) for kind, payload in enumerate(payloads, LEVEL_SECTIONS + 1) if payload)


@dataclass(frozen=True)
class Container:
    """What a `.vq` file holds. `quality` is in hundredths; `model_id` has `MODEL_ID_BYTES` bytes.

    `sections` are the levels, coarse to fine, and then the optional ones in order of their types. `lacking` names the alpha and metadata
    that the header announces and a file that ends early no longer has.
    """

    model_id: bytes
    width: int
    height: int
    quality: int
    sections: tuple[Section, ...]
    gray: bool = False
    lacking: tuple[str, ...] = ()

    @property
    def levels(self) -> list[bytes]:
        """The payloads of the levels that are there, coarse to fine."""
        return [section.payload for section in self.sections if section.kind <= LEVEL_SECTIONS]

    @property
    def extras(self) -> Extras:
        """What there is beside the levels."""
        held = {section.name: section.payload for section in self.sections}
        metadata = Metadata(*(held.get(name, b"") for name in Metadata._fields))
        return Extras(self.gray, held.get("alpha", b""), metadata, held.get("adapt", b""))


def pack(container: Container) -> bytes:
    """Serialises a container; raises `LimitError` for metadata that is too long."""
    flags = GRAY * container.gray | sum(_announcement(section.kind) for section in container.sections)
    head = _HEADER.pack(MAGIC, VERSION, flags, container.model_id, container.width, container.height, container.quality)
    parts = [head]
    for section in container.sections:
        _check_length(section.kind, len(section.payload))
        parts += [_section_head(head, section.kind, section.payload), section.payload]
    return b"".join(parts)


def unpack(data: bytes, levels: int = LEVEL_SECTIONS) -> Container:
    """Parses and checks a file; with fewer than all `levels` it may end anywhere after these.

    Raises `BadMagicError`, `UnsupportedVersionError`, `TruncatedError`, `DamagedError` or `LimitError`.
    """
    head, flags = _beginning(data)
    sections = _sections(data, head.sections, flags, levels)
    missing = (SECTION_TYPES[kind] for kind in _kinds(flags)[len(sections) :])
    return replace(head, sections=sections, lacking=tuple(name for name in missing if name in ("alpha", *Metadata._fields)))


def salvage(data: bytes) -> tuple[Container, list[str]]:
    """Parses what is intact of a file, and says of each section that is lost what is wrong with it.

    The levels end before the first one that is lost; sections behind one whose length is lost are lost as well. Raises as `unpack` does
    where the header or the first level is not intact.
    """
    head, flags = _beginning(data)
    found = [*head.sections]
    lost: list[str] = []
    offset = HEADER_BYTES + found[0].size
    for kind in _kinds(flags)[1:]:
        try:
            found.append(_section(data, offset, kind))
        except (FormatError, LimitError) as error:
            lost.append(str(error).split(";")[0])
        offset = _end(data, offset, kind)
    if offset < len(data):
        lost.append(_trailing(len(data) - offset))
    whole = len(list(takewhile(lambda pair: pair[0] == pair[1].kind, enumerate(found, 1))))
    levels = min(whole, LEVEL_SECTIONS)
    lost += [builds_on_lost(s.name) for s in found[levels:] if s.kind <= LEVEL_SECTIONS]
    kept = [s for s in found if s.kind <= levels or s.kind > LEVEL_SECTIONS]
    return replace(head, sections=tuple(kept)), lost


def builds_on_lost(name: str) -> str:
    """What `salvage` says of an intact level below one that is lost."""
    return f"the section '{name}' needs a level that is lost"


def _beginning(data: bytes) -> tuple[Container, int]:
    """The header and the first section, whose checksum is that of both, as a container; and the flags."""
    if not data:
        raise TruncatedError("the file is empty; compress or copy it again")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise BadMagicError("this is no .vq file (wrong magic); give a file that vqcodec compress has written")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise UnsupportedVersionError(_unsupported(data[len(MAGIC)]))
    if len(data) < HEADER_BYTES:
        raise TruncatedError(f"the file ends inside its header ({len(data)} of {HEADER_BYTES} bytes); copy it again")
    top = _section(data, HEADER_BYTES, 1)
    _, _, flags, model_id, width, height, quality = _HEADER.unpack_from(data)
    if flags >> (len(SECTION_TYPES) - LEVEL_SECTIONS + 1):
        raise UnsupportedVersionError(f"the file uses something that is not known here (flags {flags:#x}); install a newer vqcodec")
    if not (width and height and quality <= QUALITY_STEPS):
        raise DamagedError("the header holds impossible values; the program that wrote it is at fault")
    return Container(model_id, width, height, quality, (top,), bool(flags & GRAY)), flags


def _unsupported(version: int) -> str:
    """What to do with a file of another version."""
    if version < VERSION:
        return f"format version {version} is older than what is read here (only {VERSION}); use the vqcodec that wrote it, or the original"
    return f"format version {version} is not known here (only {VERSION}); install a newer vqcodec"


def _kinds(flags: int) -> list[int]:
    """The types of the sections that there are, in order: the levels and exactly those that the flags announce."""
    return [kind for kind in SECTION_TYPES if kind <= LEVEL_SECTIONS or flags & _announcement(kind)]


def _end(data: bytes, offset: int, kind: int) -> int:
    """Where the section at `offset` ends, by its own account; it may be wrong."""
    try:
        length, start = _length(data, offset, kind)
    except FormatError:
        return len(data)
    return start + CHECKSUM_BYTES + length


def _announcement(kind: int) -> int:
    """The flag that announces an optional section; 0 for the levels, which are always there."""
    return 0 if kind <= LEVEL_SECTIONS else 1 << (kind - LEVEL_SECTIONS)


def _sections(data: bytes, first: tuple[Section, ...], flags: int, levels: int) -> tuple[Section, ...]:
    """Reads the sections after the `first` ones: those that there must be, nothing after them. Returns all."""
    found = [*first]
    offset = HEADER_BYTES + sum(section.size for section in first)
    for kind in _kinds(flags)[len(first) :]:
        try:
            found.append(_section(data, offset, kind))
        except TruncatedError:
            if levels < LEVEL_SECTIONS and len(found) >= levels:
                return tuple(found)
            raise
        offset += found[-1].size
    if offset != len(data):
        raise DamagedError(f"{_trailing(len(data) - offset)}; copy the file again, or leave them out with vqcodec decompress --salvage")
    return tuple(found)


def _section(data: bytes, offset: int, kind: int) -> Section:
    name = SECTION_TYPES[kind]
    length, after = _length(data, offset, kind)
    start = after + CHECKSUM_BYTES
    if start + length > len(data):  # a damaged length looks like a missing end
        left = max(0, len(data) - start)
        raise TruncatedError(f"the section '{name}' should have {length} bytes and {left} are left; copy the file again{_hint(kind)}")
    _check_length(kind, length)
    if kind > LEVEL_SECTIONS and not length:
        raise DamagedError(f"the section '{name}' is empty; the program that wrote the file is at fault")
    payload = data[start : start + length]
    if _section_head(data[:HEADER_BYTES], kind, payload) != data[offset:start]:
        what = f"the header or the section '{name}'" if kind == 1 else f"the section '{name}'"
        raise DamagedError(f"{what} is damaged (its checksum does not hold); copy the file again{_hint(kind, damaged=True)}")
    return Section(kind, payload)


def _packed(length: int) -> bytes:
    """A payload's length, seven bits a byte, the lowest first; all bytes but the last have their highest bit set (LEB128)."""
    found = bytearray()
    while length > 127:
        found.append(128 | length & 127)
        length >>= 7
    return bytes([*found, length])


def _length(data: bytes, offset: int, kind: int) -> tuple[int, int]:
    """The length that the section at `offset` begins with, and where that ends."""
    field, name = data[offset : offset + LENGTH_BYTES], SECTION_TYPES[kind]
    damaged = f"the length of the section '{name}' is damaged; copy the file again{_hint(kind, damaged=True)}"
    try:
        length, used = varint(memoryview(field), 0)
    except IndexError:
        if len(field) < LENGTH_BYTES:
            raise TruncatedError(f"the file ends before its section '{name}'; copy it again{_hint(kind)}") from None
        raise DamagedError(damaged) from None
    if _packed(length) != field[:used]:
        raise DamagedError(damaged)
    return length, offset + used


def _check_length(kind: int, length: int) -> None:
    if SECTION_TYPES[kind] in Metadata._fields:
        limits.check_metadata(SECTION_TYPES[kind], length)


def _hint(kind: int, damaged: bool = False) -> str:
    """What a file still gives that is cut off in or before this section, or damaged in it."""
    if kind == 1:
        return ""
    levels = f"--levels {SECTION_TYPES[kind - 1]} or " if kind <= LEVEL_SECTIONS and not damaged else ""
    return f", or take what is intact with vqcodec decompress {levels}--salvage"


def _trailing(count: int) -> str:
    return f"{count} byte{' follows' if count == 1 else 's follow'} the last section"


def _section_head(header: bytes, kind: int, payload: bytes) -> bytes:
    """The length, and the CRC-32 of the header, the type, the length and the payload: so a section belongs to one header and one place."""
    length = _packed(len(payload))
    return length + crc32(payload, crc32(header + bytes([kind]) + length)).to_bytes(CHECKSUM_BYTES, "little")
