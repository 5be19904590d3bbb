"""Seeded damage to files: bits, bytes, cuts, numbers, lines. One seed, one damaged file."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable

import numpy as np

NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"2",
    b"7",
    b"255",
    b"65536",
    b"99999",
    b"2147483648",
    b"-9223372036854775809",
    b"1e9",
    b"1e308",
    b"1e-308",
    b"-0.0",
    b"nan",
    b"inf",
    b"",
    b"0x10",
    b"1,5",
    b"3.5",
)
WORDS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b",",
    b"'",
    b'"',
    b"{",
    b"[",
    b"]",
    b":",
    b"- ",
    b"&a ",
    b"*a",
    b"!!python/object/apply:os.system ",
    b"${oc.env:HOME}",
    b"${",
    b"???",
    b"../",
    b"\t",
    b"raw",
    b"gzip",
    b"big",
    b"double",
    b"unsigned char",
    b"null",
    b"true",
    b"%s",
    b"\xc3\x28",
    "\u202e".encode(),
    b"A" * 5000,
    b"[" * 400,
    b"1" * 400,
)

Rng = np.random.Generator
Damage = Callable[[bytes, Rng], bytes]


def mutated(data: bytes, seed: int, *, text: bool) -> bytes:
    """Returns `data` with one to four damages, drawn from the seed.

    Args:
        data: a file; gzip data in a NRRD or NIfTI file may be unpacked and packed again, so that
            damage inside it survives the unpacking.
        seed: another seed, another damage.
        text: whether numbers, words and lines are all there is to damage.
    """
    rng = np.random.default_rng(seed)
    if not text and rng.random() < 0.4:
        data = _inside(data, rng)
    else:
        for _ in range(int(rng.integers(1, 5))):
            data = _one(data, rng, text)
    return data


def _one(data: bytes, rng: Rng, text: bool) -> bytes:
    kinds: tuple[Damage, ...] = (_number, _word, _line, _cut, _flip, _remove, _double)
    if not text:
        kinds = (*kinds, _flip, _flip, _number, _zero)
    return kinds[int(rng.integers(len(kinds)))](data, rng)


def _inside(data: bytes, rng: Rng) -> bytes:
    """Damages what a gzip stream holds, header of the image included, and packs it again."""
    start = data.find(b"\x1f\x8b")
    if start < 0:
        return _one(data, rng, False)
    try:
        packed = zlib.decompressobj(31)
        inner = packed.decompress(data[start:])
    except zlib.error:
        return _one(data, rng, False)
    head, inner = (data[:start], inner) if start else (b"", inner)
    for _ in range(int(rng.integers(1, 4))):
        if start and rng.random() < 0.5:
            head = _number(head, rng)
        elif not start and rng.random() < 0.7:
            inner = _header(inner, rng)
        else:
            inner = _one(inner, rng, False)
    return head + gzip.compress(inner, 1, mtime=0)


def _at(data: bytes, rng: Rng) -> int:
    """A place in the file; the first kilobyte more often than the rest."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 1024)
    return int(rng.integers(max(1, end)))


def _header(data: bytes, rng: Rng) -> bytes:
    """A field of a NIfTI header replaced by random bytes."""
    at, width = int(rng.integers(0, 348)), int(rng.choice([1, 2, 4, 8]))
    return data[:at] + rng.bytes(width) + data[at + width :]


def _number(data: bytes, rng: Rng) -> bytes:
    found = list(re.finditer(rb"[-+]?\d[\d.eE+-]*", data[:20_000]))
    if not found:
        return _flip(data, rng)
    match = found[int(rng.integers(len(found)))]
    return data[: match.start()] + NUMBERS[int(rng.integers(len(NUMBERS)))] + data[match.end() :]


def _word(data: bytes, rng: Rng) -> bytes:
    at = _at(data, rng)
    word = WORDS[int(rng.integers(len(WORDS)))]
    return data[:at] + word + data[at + int(rng.integers(0, 3)) :]


def _line(data: bytes, rng: Rng) -> bytes:
    """A line removed, doubled, emptied or exchanged with the next."""
    lines = data.split(b"\n")
    at = int(rng.integers(min(len(lines), 40)))
    match int(rng.integers(4)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines[at] = b""
        case _:
            lines[at : at + 2] = lines[at : at + 2][::-1]
    return b"\n".join(lines)


def _cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _flip(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[_at(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _zero(data: bytes, rng: Rng) -> bytes:
    at, width = _at(data, rng), int(rng.integers(1, 64))
    fill = bytes([int(rng.choice([0, 255, 127]))]) * width
    return data[:at] + fill + data[at + width :]


def _remove(data: bytes, rng: Rng) -> bytes:
    at = _at(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 200)) :]


def _double(data: bytes, rng: Rng) -> bytes:
    at, width = _at(data, rng), int(rng.integers(1, 200))
    return data[: at + width] + data[at : at + width] + data[at + width :]
