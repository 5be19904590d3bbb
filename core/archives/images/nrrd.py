"""NRRD headers, read strictly before SimpleITK sees them: on some damaged ones it crashes.

Field syntax after http://teem.sourceforge.net/nrrd/format.html, as far as images of this project's
kinds use it. A header may name one file as its data, in its own folder or below it
(`core.archives.images.header.beside`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from core.archives.images.header import RATIO, beside, too_large

HEADER_BYTES, LINE_BYTES, NOTE_BYTES = 262_144, 500, 8_000

_NUMBER = r"[-+]?(?:\d{1,25}(?:\.\d{0,25})?|\.\d{1,25})(?:[eE][-+]?\d{1,3})?"
_VECTOR = rf"\(\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\)"
_WORDS = r".{0,200}"
_FIELDS = {
    "type": r"[a-z0-9_ ]{1,40}",
    "dimension": r"\d{1,2}",
    "space": r"[A-Za-z0-9\- ]{1,60}",
    "space dimension": r"\d{1,2}",
    "sizes": r"\d{1,9}(?:\s+\d{1,9})*",
    "spacings": rf"(?:{_NUMBER}|nan|NaN)(?:\s+(?:{_NUMBER}|nan|NaN))*",
    "space directions": rf"(?:{_VECTOR}|none)(?:\s+(?:{_VECTOR}|none))*",
    "space origin": _VECTOR,
    "measurement frame": rf"(?:{_VECTOR}|none)(?:\s+(?:{_VECTOR}|none))*",
    "kinds": r"[\w?\- ]{1,100}",
    "endian": r"little|big",
    "encoding": r"raw|gzip|gz|ascii|text|txt|hex|bzip2|bz2",
    "byte skip": r"-?\d{1,9}",
    "byteskip": r"-?\d{1,9}",
    "line skip": r"\d{1,9}",
    "lineskip": r"\d{1,9}",
}
_BYTES = {"char": 1, "int8": 1, "uint8": 1, "int16": 2, "short": 2, "ushort": 2, "uint16": 2}
_WIDE = {"double": 8, "int64": 8, "uint64": 8, "longlong": 8, "float": 4}
_ELSEWHERE = "data file"
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???", "none"}
_SPACES = {
    "right-anterior-superior", "ras", "left-anterior-superior", "las",
    "left-posterior-superior", "lps",
}  # fmt: skip


def doubt(path: Path) -> str:
    """Says what is wrong with a NRRD file's header; "" where it can be given to SimpleITK.

    Args:
        path: an existing file.
    """
    fields, problem = _fields(path)
    if problem:
        return problem
    data = path
    if name := fields.get(_ELSEWHERE):
        if name.upper().startswith("LIST") or "%" in name:
            return "the header names several files as its data: write one file"
        found, problem = beside(path, name)
        if found is None:
            return problem
        data = found
    return _sizes(fields, data.stat().st_size) or _spacing(fields) or _place(fields)


def data_file(path: Path) -> Path | None:
    """The file that holds the voxels, where it is another one beside the header or below it."""
    name = _fields(path)[0].get(_ELSEWHERE)
    return beside(path, name)[0] if name else None


def _fields(path: Path) -> tuple[dict[str, str], str]:
    """The header's fields, and what is wrong with it."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if not re.match(rb"NRRD000[1-5]\r?\n", head):
        return fields, "no NRRD header"
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and len(head) < HEADER_BYTES and b"data file" in head:
        end = re.search(rb"\Z", head)  # with its data elsewhere a header may end with the file
    if end is None:
        return fields, "the header has no end"
    for raw in head[: end.start()].splitlines()[1:]:
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            return fields, "the header is no text"
        if problem := _line(line, fields):
            return fields, problem
    return fields, ""


def _line(line: str, fields: dict[str, str]) -> str:
    """Checks one line; a field is put into `fields`."""
    if not line.isprintable() and "\t" not in line:
        return "the header is no text"
    if line.startswith("#") or ":=" in line:
        return "a line of the header is too long" if len(line) > NOTE_BYTES else ""
    if len(line) > LINE_BYTES:
        return "a line of the header is too long"
    name, colon, value = line.partition(":")
    name, value = name.strip().lower(), value.strip()
    if not colon or not value:
        return f"header line {line[:40]!r} is no field"
    name = _ELSEWHERE if name == "datafile" else name
    if name in fields:
        return f"field {name[:40]!r} stands twice"
    if not re.fullmatch(_FIELDS.get(name, _WORDS), value):
        return f"field {name[:40]!r} reads {value[:40]!r}"
    fields[name] = value
    return ""


def _sizes(fields: dict[str, str], file_bytes: int) -> str:
    """Checks that the fields fit to each other and to the file's length."""
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            return f"field {name!r} is missing"
    dimension = int(fields["dimension"])
    sizes = [int(n) for n in fields["sizes"].split()]
    if len(sizes) != dimension or not 1 <= dimension <= 8 or min(sizes) < 1:
        return f"sizes {fields['sizes']!r} in {dimension} dimensions"
    directions = re.findall(rf"{_VECTOR}|none", fields.get("space directions", ""))
    if directions and len(directions) != dimension:
        return f"{len(directions)} space directions in {dimension} dimensions"
    lengths = {v.count(",") for v in (*directions, fields.get("space origin", "")) if "(" in v}
    if len(lengths) > 1:
        return "space directions and origin differ in length"
    kind = fields["type"].replace("signed ", "").strip()
    if problem := too_large(sizes, _BYTES.get(kind, _WIDE.get(kind, 4))):
        return f"sizes '{fields['sizes']}': {problem}"
    # The width of wider types does not matter here: it only makes the file longer.
    needed = math.prod(sizes) * _BYTES.get(kind, 1)
    packed = fields["encoding"] in ("gzip", "gz", "bzip2", "bz2")
    if needed > file_bytes * (RATIO if packed else 1):
        return "file ends early: the header tells of more than it can hold"
    return ""


def _place(fields: dict[str, str]) -> str:
    """SimpleITK takes millimetres in the patient for granted, whatever the header says of them."""
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    if strange := sorted(units - _MILLIMETRES):
        return f"space units {', '.join(strange)[:40]!r}: write it in mm"
    space = re.sub(r"[-\s]+", "-", fields.get("space", "").lower())
    if space and space not in _SPACES:
        return f"space {space[:40]!r} does not say where left, front and top of the patient are"
    return ""


def _spacing(fields: dict[str, str]) -> str:
    """SimpleITK takes 1 mm for a spacing that is not told."""
    told = fields.get("space directions", "") + fields.get("spacings", "none").lower()
    if fields["dimension"] == "3" and ("(" not in told and re.search(r"none|nan", told)):
        return "it tells no spacing: how large a voxel is is not known"
    return ""
