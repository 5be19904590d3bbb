"""The archive formats: one row here and one module of the same name beside it make a format.

A module has ``find(root) -> list[CaseFolder]``, ``read_ct(files) -> (HU, Geometry)`` and
``read_mask(path, image, geometry, name) -> (mask, remark)``; `pddca` is the plainest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from core.errors import UserError


@dataclass(frozen=True)
class Format:
    """What of a format its module does not say.

    Attributes:
        layout: how its archives look, in words; stands in the error where none is found.
        fixed_folders: the folders of a case have fixed names, so that one that cannot be listed is
            its image or its structures.
        structure_sets: `find` takes as second argument the label of the structure set to be taken
            where a CT has several.
    """

    layout: str
    fixed_folders: bool = False
    structure_sets: bool = False


FORMATS_IN = "core.archives.formats"  # the package of their modules
# In this order they are tried.
FORMATS = {
    "pddca": Format("CASE/img.nrrd with CASE/structures/NAME.nrrd", fixed_folders=True),
    "dicom": Format("CT series and RTSTRUCTs", structure_sets=True),
    "nnunet": Format("dataset.json with imagesTr and labelsTr", fixed_folders=True),
    "openkbp": Format("pt_N/ct.csv"),
}


def reader(format: str) -> ModuleType:
    """The module that reads a format.

    Raises:
        UserError: no format of that name.
    """
    if format not in FORMATS:
        names = list(FORMATS)
        remedy = f"use auto, {', '.join(names[:-1])} or {names[-1]}"
        raise UserError("format", format, remedy, problem="no archive format that is read")
    return import_module(f"{FORMATS_IN}.{format}")


def any_layout() -> str:
    """What to give where no format fits."""
    layouts = [f"{row.layout} ({name})" for name, row in FORMATS.items()]
    return f"give a folder that holds {', '.join(layouts[:-1])}, or {layouts[-1]}"
