"""MetaImage headers (``.mha``, ``.mhd``), read strictly before SimpleITK sees them.

Fields as in https://itk.org/Wiki/ITK/MetaIO/Documentation. SimpleITK itself reads any file that
``ElementDataFile`` names, takes "3,2" for 3, and 1 mm for a spacing that is not there.
"""

from __future__ import annotations

import re
from pathlib import Path

from core.archives.images.header import RATIO, beside, too_large

HEADER_BYTES = 65_536
BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 8, "MET_ULONG": 8, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}  # fmt: skip
# Number fields, and how many numbers they hold in n dimensions.
NUMBERS = {
    "ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Origin": 1, "Position": 1,
    "CenterOfRotation": 1, "TransformMatrix": 2, "Rotation": 2, "Orientation": 2,
}  # fmt: skip
LOCAL = "LOCAL"
_NUMBER = r"[-+]?(?:\d{1,25}(?:\.\d{0,25})?|\.\d{1,25})(?:[eE][-+]?\d{1,3})?"


def doubt(path: Path) -> str:
    """Says what is wrong with a MetaImage file's header; "" where it can be given to SimpleITK.

    Args:
        path: an existing file.
    """
    fields, problem = _fields(path)
    return problem or _wrong(path, fields)


def data_file(path: Path) -> Path | None:
    """The file that holds the voxels, where it is another one beside the header or below it."""
    fields, _ = _fields(path)
    name = fields.get("ElementDataFile", LOCAL)
    return None if name.upper() == LOCAL else beside(path, name)[0]


def _fields(path: Path) -> tuple[dict[str, str], str]:
    """The header's fields; ``ElementDataFile`` is the last."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    fields: dict[str, str] = {}
    for raw in head.split(b"\n"):
        try:
            name, sign, value = raw.decode("utf-8").partition("=")
        except UnicodeDecodeError:
            break
        name, value = name.strip(), value.strip()
        if not sign or not name.isprintable() or not value.isprintable():
            break
        if name in fields:
            return fields, f"field '{name[:40]}' stands twice"
        fields[name] = value
        if name == "ElementDataFile":
            return fields, ""
    return fields, "no MetaImage header that ends with ElementDataFile"


def _wrong(path: Path, fields: dict[str, str]) -> str:
    sizes = fields.get("DimSize", "")
    if not re.fullmatch(r"\d{1,9}(\s+\d{1,9})*", sizes) or not re.fullmatch(
        r"\d", fields.get("NDims", "")
    ):
        return f"DimSize '{sizes[:40]}' in '{fields.get('NDims', '')[:9]}' dimensions"
    dimension, size = int(fields["NDims"]), [int(n) for n in sizes.split()]
    if len(size) != dimension or min(size) < 1:
        return f"DimSize '{sizes[:40]}' in {dimension} dimensions"
    for name, power in NUMBERS.items():
        value = fields.get(name)
        if value is not None and (problem := _numbers(name, value, dimension**power)):
            return problem
    if "ElementSpacing" not in fields:
        return "ElementSpacing is missing: how large a voxel is is not known"
    kind, channels = fields.get("ElementType", ""), fields.get("ElementNumberOfChannels", "1")
    if kind not in BYTES or not re.fullmatch(r"\d{1,3}", channels):
        return f"ElementType '{kind[:40]}', {channels[:9]} values a voxel"
    voxel = BYTES[kind] * max(1, int(channels))
    return too_large(size, voxel) or _data(path, fields, size, voxel)


def _numbers(name: str, value: str, count: int) -> str:
    words = value.split()
    if len(words) == count and all(re.fullmatch(_NUMBER, word) for word in words):
        return ""
    comma = ": a decimal comma?" if "," in value else ""
    return f"{name} reads [{value[:60]}], not {count} numbers{comma}"


def _data(path: Path, fields: dict[str, str], size: list[int], voxel: int) -> str:
    """Where the voxels stand, and whether so many can be there."""
    name = fields["ElementDataFile"]
    file = path
    if name.upper() != LOCAL:
        if name.upper().startswith("LIST") or "%" in name:
            return "the header names several files as its data: write one file"
        found, problem = beside(path, name)
        if found is None:
            return problem
        file = found
    packed = fields.get("CompressedData", "False").lower() == "true"
    needed = voxel
    for n in size:
        needed *= n
    if needed > file.stat().st_size * (RATIO if packed else 1):
        return "file ends early: the header tells of more than it can hold"
    return ""
