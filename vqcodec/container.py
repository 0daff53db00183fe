"""The `.vq` container: header and sections, with checksums. Knows nothing of codes, priors or pictures.

docs/FORMAT.md specifies it. Little endian; the header has 26 bytes, each section 9 bytes before its payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from zlib import crc32

from vqcodec.config import QUALITY_STEPS
from vqcodec.errors import BadMagicError, DamagedError, TruncatedError, UnsupportedVersionError

MAGIC = b"\x8fVQC"  # the first byte is not ASCII: a transfer as text is noticed
VERSION = 1
MODEL_ID_BYTES = 6
MAX_SIDE = 65_535  # pixels
SECTION_TYPES = {1: "top", 2: "middle", 3: "bottom"}

_HEADER = struct.Struct(f"<4sBB{MODEL_ID_BYTES}sIIH")  # magic, version, flags, model id, width, height, quality
_CHECKSUM = struct.Struct("<I")
_SECTION = struct.Struct("<BII")  # type, payload length, CRC-32 of type, length and payload
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
SECTION_OVERHEAD = _SECTION.size


@dataclass(frozen=True)
class Section:
    """One section: its type (a key of `SECTION_TYPES`) and its payload."""

    kind: int
    payload: bytes

    @property
    def name(self) -> str:
        """The section's name in words."""
        return SECTION_TYPES[self.kind]


@dataclass(frozen=True)
class Container:
    """What a `.vq` file holds. `quality` is in hundredths; `model_id` has `MODEL_ID_BYTES` bytes."""

    model_id: bytes
    width: int
    height: int
    quality: int
    sections: tuple[Section, ...]


def pack(container: Container) -> bytes:
    """Serialises a container."""
    head = _HEADER.pack(MAGIC, VERSION, 0, container.model_id, container.width, container.height, container.quality)
    parts = [head, _CHECKSUM.pack(crc32(head))]
    for section in container.sections:
        checksum = _section_checksum(section.kind, section.payload)
        parts += [_SECTION.pack(section.kind, len(section.payload), checksum), section.payload]
    return b"".join(parts)


def unpack(data: bytes) -> Container:
    """Parses and checks a whole file.

    Raises `BadMagicError`, `UnsupportedVersionError`, `TruncatedError` or `DamagedError`.
    """
    if not data:
        raise TruncatedError("the file is empty; compress or copy it again")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise BadMagicError("this is no .vq file (wrong magic); give a file that vqcodec compress has written")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise UnsupportedVersionError(f"format version {data[len(MAGIC)]} is not known here (only {VERSION}); install a newer vqcodec")
    if len(data) < HEADER_BYTES:
        raise TruncatedError(f"the file ends inside its header ({len(data)} of {HEADER_BYTES} bytes); copy it again")
    _, _, flags, model_id, width, height, quality = _HEADER.unpack_from(data)
    if crc32(data[: _HEADER.size]) != _CHECKSUM.unpack_from(data, _HEADER.size)[0]:
        raise DamagedError("the header is damaged (its checksum does not hold); copy the file again")
    if flags or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and quality <= QUALITY_STEPS):
        raise DamagedError("the header holds impossible values; the program that wrote it is at fault")
    return Container(model_id, width, height, quality, tuple(_sections(data)))


def _sections(data: bytes) -> list[Section]:
    """Reads the sections after the header: exactly top, middle, bottom, and nothing after them."""
    found: list[Section] = []
    offset = HEADER_BYTES
    for kind, name in SECTION_TYPES.items():
        start = offset + _SECTION.size
        if start > len(data):
            raise TruncatedError(f"the file ends before its section '{name}'; copy it again")
        given, length, checksum = _SECTION.unpack_from(data, offset)
        if start + length > len(data):
            # a damaged length looks like a missing end, unless the type shows the damage
            if given != kind:
                raise DamagedError(f"the head of the section '{name}' is damaged; copy the file again")
            raise TruncatedError(f"the section '{name}' should have {length} bytes and {len(data) - start} are left; copy the file again")
        payload = data[start : start + length]
        if given != kind or _section_checksum(kind, payload) != checksum:
            raise DamagedError(f"the section '{name}' is damaged (its checksum does not hold); copy the file again")
        found.append(Section(kind, payload))
        offset = start + length
    if offset != len(data):
        raise DamagedError(f"{len(data) - offset} bytes follow the last section; the file was changed after it was written")
    return found


def _section_checksum(kind: int, payload: bytes) -> int:
    return crc32(payload, crc32(struct.pack("<BI", kind, len(payload))))
