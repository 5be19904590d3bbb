"""CTs to be contoured, found in whatever the user names, and the contours written as files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.data.archive import Archive, CaseRef, open_archive
from core.data.volume import Geometry, write_labelmap, write_mask
from core.errors import UserError
from core.predicted import is_image, stem_of

FORMATS = ("nrrd", "nifti")
_REMEDY = "give a CT as NRRD or NIfTI, a folder of such files, or an archive (pddca, openkbp)"


def find_cts(path: Path) -> Archive:
    """Lists the CTs that INPUT means, as an archive whose cases need no structures.

    Args:
        path: one image file, a folder of image files, or an archive.

    Returns:
        Cases named by their files (``_0000`` of nnU-Net is dropped; ``CASE/img.nrrd`` is ``CASE``).

    Raises:
        UserError: nothing that can be read, or two CTs of one name.
    """
    if path.is_file():
        if path.name == "ct.csv":
            return open_archive(path.parent, format="openkbp")
        if not is_image(path):
            raise UserError("--input", path, _REMEDY, problem="not NRRD, NIfTI or MetaImage")
        return _loose([path])
    if not path.is_dir():
        raise UserError("--input", path, _REMEDY, problem="no such file or folder")
    files = [p for p in sorted(path.iterdir()) if is_image(p)]
    if files:
        return _loose(files)
    try:
        return open_archive(path)
    except UserError as error:
        if next(path.rglob("*.dcm"), None) is not None:
            raise UserError(
                "--input", path, "convert the series to NRRD or NIfTI first", problem="DICOM"
            ) from error
        raise UserError("--input", path, _REMEDY, problem=error.problem) from error


def _loose(files: Sequence[Path]) -> Archive:
    names = [_name(path) for path in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            "--input", files[0].parent, "rename one", problem=f"two CTs are called {twice[0]}"
        )
    cases = (
        CaseRef(name, (path,), {}, 0, None, None) for name, path in zip(names, files, strict=True)
    )
    # "pddca" reads the first file of a case whatever its image format is.
    return Archive("pddca", files[0].parent, tuple(cases), ())


def _name(path: Path) -> str:
    stem = stem_of(path)
    return path.resolve().parent.name if stem == "img" else stem.removesuffix("_0000")


def write_contours(
    folder: Path,
    case: str,
    labels: npt.NDArray[np.uint8],
    organs: Sequence[str],
    geometry: Geometry,
    formats: Sequence[str],
) -> list[Path]:
    """Writes ``CASE/NAME.nrrd`` for each organ (``nrrd``), one ``CASE.nii.gz`` (``nifti``).

    Args:
        folder: OUTPUT.
        case: case id, one path component.
        labels: (Z, Y, X) on the CT's grid; organ i has the value i + 1.
        organs: organs in that order; one that was not found is written as an empty mask.
        geometry: the CT's grid.
        formats: of `FORMATS`.

    Returns:
        The files written.
    """
    assert case == Path(case).name, case
    written: list[Path] = []
    if "nrrd" in formats:
        for i, organ in enumerate(organs, start=1):
            written.append(folder / case / f"{organ}.nrrd")
            write_mask(written[-1], labels == i, geometry)
    if "nifti" in formats:
        written.append(folder / f"{case}.nii.gz")
        write_labelmap(written[-1], labels, geometry)
    return written


def write_label_table(folder: Path, organs: Sequence[str]) -> None:
    """Writes ``labels.json``: what the numbers of the label maps in this folder mean.

    Raises:
        UserError: another model's table stands there already.
    """
    path = folder / "labels.json"
    text = json.dumps({organ: i for i, organ in enumerate(organs, start=1)}, indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            "--output",
            folder,
            "choose an empty folder",
            problem="labels.json of other organs is in it",
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
