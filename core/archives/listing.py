"""The case folders of an archive, its format, and what is lost of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.archives.case_folders import NO_RIGHT, CaseFolder, refused, unreadable, walk
from core.archives.formats.table import FORMATS, any_layout, reader
from core.errors import Finding, UserError, plain_text

PACKED = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz"})
# What is packed by itself where a layout has it so, and read: .nii.gz, .csv.gz, .raw.gz ...
ONE_FILE, OF_CASES = frozenset({".gz", ".bz2", ".xz"}), ("", ".dcm", ".ima", ".tar", ".nrrd")
SHOWN_REASONS, NO_CASE = 3, "no case below this folder"


def folder_of(root: Path) -> Path:
    """The archive's folder, resolved.

    Raises:
        UserError: there is no such folder; says what stands there instead.
    """
    problem, remedy = "no such folder", "give the folder of an archive"
    try:
        if root.is_dir():
            return root.resolve()
        if root.is_file():
            problem = "a file, no folder"
            if root.suffix.lower() in PACKED:
                problem, remedy = "a packed file, no folder", "unpack it, and give the folder"
    except OSError as error:
        problem, remedy = error.strerror or str(error), NO_RIGHT
    raise UserError("root", root, remedy, problem=problem)


def find(root: Path, format: str, structure_set: str, empty: bool) -> tuple[str, list[CaseFolder]]:
    """The archive's format and its case folders, at least one of them with an image.

    Args:
        root: the archive's folder.
        format: ``auto`` or one of `FORMATS`.
        structure_set: label of the structure set to be taken where a CT has several (DICOM).
        empty: return folders without an image too, where they say why, instead of refusing them.

    Raises:
        UserError: no case, two formats in one folder, a format that is not read.
    """
    tried = tuple(FORMATS) if format == "auto" else (format,)
    listed = {name: _listed(name, root, structure_set) for name in tried}
    found = {name: cases for name, cases in listed.items() if any(c.files for c in cases)}
    if len(found) > 1:
        remedy = "name the one to read with `format`, or give a folder that holds one"
        raise UserError("root", root, remedy, problem=f"holds {' and '.join(found)}")
    barred = unreadable(root)
    if found:
        name, cases = next(iter(found.items()))
        return name, [*_with_barred(name, cases, barred), *_packed(root)]
    name = next((n for n, cases in listed.items() if any(c.remarks for c in cases)), tried[0])
    cases = [*_with_barred(name, listed[name], barred), *_packed(root)]
    reasons = [remark for case in cases for remark in case.remarks]
    if empty and reasons:
        return name, cases
    remedy = any_layout()
    problem = NO_CASE
    for reason in list({r.message: r for r in reasons}.values())[:SHOWN_REASONS]:
        problem += f"; {reason.message}"
        if reason.code != "W_DICOM_UNREADABLE":
            remedy = reason.remedy if len(reasons) == 1 else "see what `hnfed check` says of it"
    raise UserError("root", root, remedy, problem=problem)


def _listed(format: str, root: Path, structure_set: str) -> list[CaseFolder]:
    """The case folders that the format's reader finds."""
    find_cases = reader(format).find
    sets = FORMATS[format].structure_sets
    found: list[CaseFolder] = find_cases(root, structure_set) if sets else find_cases(root)
    return found


def _packed(root: Path) -> list[CaseFolder]:
    """One folder without an image, which tells of packed files: cases may be in them."""
    found = [folder / name for folder, _, files in walk(root) for name in files if _holds(name)]
    if not found:
        return []
    message = f"{len(found)} packed files are not opened ({plain_text(found[0].name)!r} is one)"
    remedy = "unpack those that hold cases, and remove them; else nothing to do"
    remark = Finding("W_PACKED", "warning", "", "", message, remedy)
    return [CaseFolder(found[0], (), (), case=found[0].name, remarks=(remark,))]


def _holds(name: str) -> bool:
    """Whether a file's name says that cases may be packed in it."""
    path = Path(name)
    last = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return last in PACKED and (last not in ONE_FILE or inner in OF_CASES)


def _with_barred(
    format: str, cases: Sequence[CaseFolder], barred: Sequence[tuple[Path, str]]
) -> list[CaseFolder]:
    """The cases, and a lost one for each folder that cannot be listed.

    In a layout whose folders have fixed names the cases lose their image or their structures with
    such a folder: they are the lost ones.
    """
    told = list(cases)
    for place, why in barred:
        of_case = [
            i
            for i, case in enumerate(told)
            if FORMATS[format].fixed_folders
            and case.folder == place.parent
            and not (case.files and case.structures)
        ]
        for i in of_case:
            remarks = (*told[i].remarks, *refused(place, why, place.parent).remarks)
            told[i] = replace(told[i], files=(), structures=(), names=(), remarks=remarks)
        if not of_case:
            told.append(refused(place, why, place))
    return told
