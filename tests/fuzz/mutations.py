"""How an input is spoilt: edits that a seeded generator or hypothesis chooses, and the checksums that make them look intact."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple
from zlib import crc32

from vqcodec import container

EDITS = ("flip", "set", "number", "insert", "delete", "repeat", "cut", "zero", "splice")
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 4095, 4096, 32_767, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LONGEST = 64  # bytes that an edit inserts, deletes or repeats


class Edit(NamedTuple):
    """One edit: its kind, where (in 65536ths of the length), and a number that it uses as it likes."""

    kind: str
    where: int
    value: int


def random_edits(rng: Random, kinds: Sequence[str] = EDITS) -> list[Edit]:
    """A few edits, most often one."""
    count = 1 + min(int(rng.expovariate(0.8)), 7)
    return [Edit(rng.choice(kinds), rng.randrange(65_536), rng.getrandbits(32)) for _ in range(count)]


def apply(data: bytes, edits: Sequence[Edit], other: bytes = b"") -> bytes:
    """Spoils data; `other` is what splices are taken from."""
    spoilt = bytearray(data)
    for kind, where, value in edits:
        at, length = where * (len(spoilt) + 1) >> 16, 1 + value % LONGEST
        if kind == "flip" and at < len(spoilt):
            spoilt[at] ^= 1 << value % 8
        elif kind == "set" and at < len(spoilt):
            spoilt[at] = value % 256
        elif kind == "number":
            size = (1, 2, 4)[(value >> 9) % 3]
            number = NUMBERS[value % len(NUMBERS)] % 256**size
            spoilt[at : at + size] = number.to_bytes(size, "big" if value >> 8 & 1 else "little")
        elif kind == "insert":
            spoilt[at:at] = value.to_bytes(4, "little") * (1 + length // 4)
        elif kind == "delete":
            del spoilt[at : at + length]
        elif kind == "repeat":
            spoilt[at:at] = spoilt[at : at + length]
        elif kind == "cut":
            del spoilt[at:]
        elif kind == "zero":
            spoilt[at : at + length] = bytes(len(spoilt[at : at + length]))
        elif kind == "splice" and other:
            start = value % len(other)
            spoilt[at : at + length] = other[start : start + length]
    return bytes(spoilt)


def spoil_sealed(seed: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """A spoilt `.vq` file whose checksums hold: its lengths, types, sizes and flags may be anything."""
    return reseal(apply(seed, edits, other), seed)


def spoil_payloads(seed: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """A `.vq` file that is well formed, with damage in the payloads of one or two sections, and at times another size or quality."""
    held = container.unpack(seed)
    sections, others = list(held.sections), container.unpack(other).sections
    for edit in edits[:2]:
        index = edit.value % len(sections)
        payload = apply(sections[index].payload, edits, others[edit.value % len(others)].payload)
        whole = payload[: max(0, (len(payload) - 2) // 4 * 4 + 2)].ljust(2, b"\0") if index < container.LEVEL_SECTIONS else payload or b"\0"
        sections[index] = replace(sections[index], payload=whole)
    sizes = (held.width, held.height, held.quality)
    if edits[0].where % 8 == 0:
        sizes = edits[0].value % 999 + 1, edits[0].where % 999 + 1, edits[0].value % 10_001
    width, height, quality = sizes
    return container.pack(replace(held, width=width, height=height, quality=quality, sections=tuple(sections)))


def spoil_picture(seed: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """A spoilt picture; the checksums of a PNG hold."""
    spoilt = apply(seed, edits, other)
    return reseal_png(spoilt) if seed.startswith(b"\x89PNG") else spoilt


def spoil_tensors(seed: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """A spoilt safetensors file; most often the damage is among the numbers alone."""
    if edits[0].where % 4 == 0:
        return apply(seed, edits, other)
    start = 8 + int.from_bytes(seed[:8], "little")
    return seed[:start] + apply(seed[start:], edits, seed[start:])[: len(seed) - start].ljust(len(seed) - start, b"\0")


def spoil_json(seed: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """A spoilt JSON file; most often it is still JSON, with other numbers."""
    if edits[0].where % 4 == 0:
        return apply(seed, edits, other)
    parts = re.split(rb"(?<=[\s\[:])(-?[0-9.]+)(?=[\s,\]}])", seed)
    for _, where, value in edits:
        odd = (str(NUMBERS[where % len(NUMBERS)]), "-1", "1e999", "NaN", "2.5", '"8"', "null", "[]", str(value), "9" * 400)[value % 10]
        parts[1 + where % (len(parts) // 2) * 2] = odd.encode()
    return b"".join(parts)


def reseal(data: bytes, seed: bytes) -> bytes:
    """Makes the checksums of a spoilt `.vq` file hold, and gives it the magic, version and model of the seed."""
    if len(data) < container.HEADER_BYTES:
        return data
    head = seed[:5] + data[5:6] + seed[6:12] + data[12 : container.HEADER_BYTES]
    parts, offset = [head], container.HEADER_BYTES
    announced = [kind for kind in container.SECTION_TYPES if kind <= container.LEVEL_SECTIONS or head[5] >> (kind - 3) & 1]
    for kind in announced:
        found = re.compile(rb"[\x80-\xff]{0,4}[\x00-\x7f]").match(data, offset)
        if found is None:
            break
        start = found.end() + container.CHECKSUM_BYTES
        stop = start + sum((byte & 127) << 7 * index for index, byte in enumerate(found[0]))
        payload = data[start:stop]
        parts += [found[0], struct.pack("<I", crc32(head + bytes([kind]) + found[0] + payload)), payload]
        offset = min(stop, len(data))
    return b"".join([*parts, data[offset:]])


def reseal_png(data: bytes) -> bytes:
    """Makes the checksums of a spoilt PNG hold."""
    sealed, offset = bytearray(data), 8
    while offset + 12 <= len(sealed):
        length = int.from_bytes(sealed[offset : offset + 4], "big")
        end = offset + 8 + length
        if end + 4 > len(sealed):
            break
        sealed[end : end + 4] = crc32(sealed[offset + 4 : end]).to_bytes(4, "big")
        offset = end + 4
    return bytes(sealed)
