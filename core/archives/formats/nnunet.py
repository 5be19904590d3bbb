"""nnU-Net raw data sets: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``dataset.json``.

One label map a case; ``dataset.json`` says what its values mean (version 2: ``{"Parotid_L": 1}``,
also several values for one name; version 1: ``{"1": "Parotid_L"}``), which channel is the CT, and
how the files end (NIfTI, NRRD, MetaImage). Cases of ``imagesTs`` are listed where ``labelsTs`` has
their labels. A value that a case does not have is an organ that is not annotated there.

F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 18, 203-211, 2021; format: documentation/dataset_format.md there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.archives.case_folders import CaseFolder, files_in, is_file, refused, walk
from core.archives.formats.pddca import read_ct
from core.archives.images.volume import read_on_grid
from core.data.geometry import Geometry
from core.errors import CaseError, UserError

__all__ = ["find", "read_ct", "read_mask"]
TABLE = "dataset.json"
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
PARTS = (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
BACKGROUND, IGNORE = "background", "ignore"


def find(root: Path) -> list[CaseFolder]:
    """Lists the cases of every data set below `root`, itself included; opens its tables only.

    Raises:
        UserError: a ``dataset.json`` beside ``imagesTr`` that does not say what is needed.
    """
    found: list[CaseFolder] = []
    for folder, subfolders, files in walk(root):
        if TABLE in files and "imagesTr" in subfolders:
            subfolders.clear()
            try:
                (folder / TABLE).open("rb").close()
            except OSError as error:
                found.append(refused(folder / TABLE, error.strerror or "", folder))
                continue
            found += _cases(folder)
    return found


def read_mask(
    path: Path, image: npt.NDArray[Any], geometry: Geometry, name: str = ""
) -> tuple[npt.NDArray[np.bool_], str]:
    """Reads one structure out of a case's label map.

    Args:
        path: the label map.
        image: the CT (Z, Y, X); not used here.
        geometry: the CT's grid.
        name: of the structure in ``dataset.json``.

    Returns:
        The mask (Z, Y, X), empty where no voxel has the structure's value, and a remark, always "".

    Raises:
        CaseError: ``E_LABEL_UNREADABLE``; ``E_LABEL_GRID``; ``E_LABEL_VALUES`` for values that
            ``dataset.json`` does not name, and for voxels that it says to ignore: what they are is
            not known.
    """
    table = labels_of(_read_table(path.parent.parent / TABLE), path)
    stamp = path.stat() if is_file(path) else None
    labels = _labels(path, geometry, *((stamp.st_mtime_ns, stamp.st_size) if stamp else (0, 0)))
    known = {v for values in table.values() for v in values} | {0}
    found = np.unique(labels)
    strange = [f"{v:g}" for v in found if v not in known]
    if strange:
        remedy = f"name the values in {TABLE}, or correct the label map"
        problem = f"values {', '.join(strange[:6])} that {TABLE} does not name"
        raise CaseError("E_LABEL_VALUES", "structure", path.name, remedy, problem=problem)
    if set(table.get(IGNORE, ())) & set(found.tolist()):
        remedy = "contour the case completely, or leave it out"
        problem = f"voxels marked {IGNORE!r}: whether they are {name} is not known"
        raise CaseError("E_LABEL_VALUES", "structure", path.name, remedy, problem=problem)
    return np.isin(labels, table[name]), ""


def labels_of(table: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Values by structure name, of ``labels`` in a ``dataset.json`` (version 1 or 2).

    Args:
        table: content of the file.
        path: where it stands, for the message.

    Raises:
        UserError: no table of labels.
    """
    try:
        return values_by_name(table["labels"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        remedy = f'give {TABLE} its labels: {{"labels": {{"background": 0, "Parotid_L": 1}}}}'
        problem = f"no table of labels: {type(error).__name__} {error}"
        raise UserError("root", path, remedy, problem=problem) from error


def values_by_name(labels: Any) -> dict[str, tuple[int, ...]]:
    """Values by name, of ``{NAME: n}``, ``{NAME: [n, m]}`` or ``{"n": NAME}``.

    Raises:
        AttributeError, TypeError, ValueError: anything else.
    """
    named: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items():
        if isinstance(value, str):
            named[value] = (int(key),)
        else:
            named[key] = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
    return named


def _cases(folder: Path) -> list[CaseFolder]:
    table_path = folder / TABLE
    table = _read_table(table_path)
    values = labels_of(table, table_path)
    names = tuple(sorted(n for n in values if n.lower() not in (BACKGROUND, IGNORE)))
    ending, channel = _ending(table, table_path), f"_{_channel(table, table_path):04d}"
    found = []
    for images, labels in PARTS:
        cts = _by_case(folder / images, f"{channel}{ending}")
        maps = _by_case(folder / labels, ending)
        for case in sorted(cts.keys() | maps.keys() if images == "imagesTr" else maps.keys()):
            files = (cts[case], table_path) if case in cts else ()
            held = (maps[case],) * len(names) if case in maps else ()
            found.append(CaseFolder(folder, files, held, names if held else (), case))
    return found


def _by_case(folder: Path, ending: str) -> dict[str, Path]:
    paths = [path for path in files_in(folder) if path.name.endswith(ending)]
    return {path.name[: -len(ending)]: path for path in paths}


def _read_table(path: Path) -> Mapping[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        remedy = "correct the file, or write it again with nnU-Net's generate_dataset_json"
        raise UserError("root", path, remedy, problem=f"not JSON: {error}") from error
    if not isinstance(table, Mapping):
        raise UserError("root", path, "give a table of settings", problem="no JSON object")
    return table


def _ending(table: Mapping[str, Any], path: Path) -> str:
    ending = table.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        remedy = f"use one of {', '.join(ENDINGS)}"
        raise UserError("root", path, remedy, problem=f"file_ending {ending!r} is not read")
    return str(ending)


def _channel(table: Mapping[str, Any], path: Path) -> int:
    """Number of the channel that is the CT: the only one, or the one called so."""
    channels = table.get("channel_names", table.get("modality", {"0": "CT"}))
    try:
        named = {int(number): str(name).lower() for number, name in channels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        remedy = 'write {"channel_names": {"0": "CT"}}'
        raise UserError("root", path, remedy, problem="unusable channel_names") from error
    cts = [number for number, name in named.items() if name == "ct"]
    if len(cts) == 1 or (len(named) == 1 and not cts):
        return (cts or list(named))[0]
    remedy = "call the CT's channel CT, and only that one"
    shown = ", ".join(f"{n}: {name}" for n, name in sorted(named.items()))
    raise UserError("root", path, remedy, problem=f"which channel is the CT ({shown})?")


@lru_cache(maxsize=1)
def _labels(path: Path, geometry: Geometry, *stamp: int) -> npt.NDArray[Any]:
    """The label map last read: the organs of a case are asked for one after another."""
    labels: npt.NDArray[Any] = read_on_grid(path, geometry)
    labels.setflags(write=False)
    return labels
