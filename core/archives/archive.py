"""Archives: which cases there are, what their structures mean, and reading one of them.

`open_archive` lists and opens no image; `read_case` reads one case. Whatever cannot be used is
returned as a `Finding`, or raised as a `CaseError` where a whole case is lost.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from core.archives.case_folders import NO_RIGHT, CaseFolder
from core.archives.caselist import Row, read_rows
from core.archives.formats.table import FORMATS
from core.archives.formats.table import reader as reader_of
from core.archives.hounsfield import refuse
from core.archives.images.image_file import data_file
from core.archives.images.volume import Volume
from core.archives.listing import find, folder_of
from core.archives.name_matching import NONE, Match, assign, matcher
from core.data.geometry import Geometry
from core.errors import CaseError, Finding, UserError, plain_text, suggestion
from core.organs.vocabulary import Organ, vocabulary

__all__ = [
    "FORMATS",
    "Archive",
    "CaseRef",
    "content_hash",
    "open_archive",
    "read_case",
    "read_image_of",
]


@dataclass(frozen=True)
class CaseRef:
    """One case of an archive, not read yet.

    Attributes:
        case: its id: from ``cases.csv``, else the name of its folder.
        files: what the image is read from, the image itself first.
        structures: file by TG-263 name of the organs that its names mean.
        unmapped: number of structure files that mean no organ.
        site: from ``cases.csv``, else None.
        split: train, val or test from ``cases.csv``, else None.
        names: the structure's name by TG-263 name, where one file holds many.
        patient: from ``cases.csv``, else a digest of DICOM's patient id, else None; cases of one
            patient belong into one split.
    """

    case: str
    files: tuple[Path, ...]
    structures: Mapping[str, Path]
    unmapped: int
    site: str | None
    split: str | None
    names: Mapping[str, str] = field(default_factory=dict)
    patient: str | None = None


@dataclass(frozen=True)
class Archive:
    """The cases of an archive, sorted by id, and what was noticed while listing them.

    Attributes:
        names: every structure name in it, with the number of cases; stays at the site.
    """

    format: str
    root: Path
    cases: tuple[CaseRef, ...]
    findings: tuple[Finding, ...]
    names: Mapping[str, int] = field(default_factory=dict)


def open_archive(
    root: Path | str,
    *,
    format: str = "auto",
    vocab: Mapping[str, Organ] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    structure_set: str = "",
    empty: bool = False,
) -> Archive:
    """Lists the cases of an archive; reads ``cases.csv`` at its root where there is one.

    Args:
        root: the archive's folder.
        format: ``auto`` or one of `FORMATS`.
        vocab: organs from `core.organs.vocabulary.vocabulary`; the built-in ones if None.
        aliases: the site's own spellings by TG-263 name; under ``none``, names that are no organ.
        structure_set: label of the structure set to be taken where a CT has several (DICOM).
        empty: return an archive without a case, where findings say why, instead of refusing it.

    Raises:
        UserError: no such folder, no case in it, two formats in one folder, a format that is not
            read, an unusable ``cases.csv``.
    """
    root = folder_of(Path(root))
    vocab = vocabulary() if vocab is None else vocab
    doubtful_aliases = _check_aliases(vocab, aliases or {})
    name, folders = find(root, format, structure_set, empty)
    rows = read_rows(root / "cases.csv")
    named, findings = _name(root, folders, rows)
    findings += doubtful_aliases
    lookup = matcher(vocab, aliases)
    unmapped: Counter[str] = Counter()
    names: Counter[str] = Counter()
    cases: list[CaseRef] = []
    for case, (folder, row) in sorted(named.items()):
        findings += [replace(remark, case=case) for remark in folder.remarks]
        if not folder.files:
            if folder.remarks and not folder.structures:
                continue
            remedy = "put the image back, or remove the folder"
            message = f"{folder.own_name}: structures without an image"
            findings.append(Finding("E_IMAGE_MISSING", "error", case, "", message, remedy))
            continue
        names.update(set(folder.structure_names))
        held, unknown, doubtful = _structures(case, folder, lookup)
        structures = {organ: folder.structures[i] for organ, i in held.items()}
        inside = {organ: folder.names[i] for organ, i in held.items() if folder.names}
        unmapped.update(set(unknown))
        findings += doubtful
        site, split = (row.site, row.split) if row else (None, None)
        ref = CaseRef(case, folder.files, structures, len(unknown), site, split, names=inside)
        patient = (row.patient if row else None) or folder.patient or None
        cases.append(replace(ref, patient=patient))
    findings += [_unmapped(raw, count, lookup(raw)) for raw, count in sorted(unmapped.items())]
    return Archive(name, root, tuple(cases), tuple(findings), dict(sorted(names.items())))


def _name(
    root: Path, folders: Sequence[CaseFolder], rows: Sequence[Row] | None
) -> tuple[dict[str, tuple[CaseFolder, Row | None]], list[Finding]]:
    """Gives each case folder its id and its row of ``cases.csv``."""
    names = Counter(f.own_name for f in folders)
    short = {f.own_name: f for f in folders if names[f.own_name] == 1}
    by_path: dict[str, CaseFolder] = {}
    for one in folders:
        place = one.place(root)
        while place in by_path:
            place += "_"
        by_path[place] = one
    cases: dict[str, tuple[CaseFolder, Row | None]] = {}
    findings: list[Finding] = []
    for row in rows or ():
        folder = by_path.get(row.path) if row.path else short.get(row.case)
        if folder is None:
            doubt = "several folders of that name" if names[row.case] > 1 else "no such folder"
            message = f"cases.csv lists {row.case!r}: {doubt}"
            remedy = "correct the row, add the case's path to it, or take it out"
            findings.append(Finding("E_CASE_ABSENT", "error", row.case, "", message, remedy))
        else:
            cases[row.case] = (folder, row)
    listed = {id(folder) for folder, _ in cases.values()}
    for path, folder in by_path.items():
        if id(folder) in listed:
            continue
        own = folder.own_name
        case = own if names[own] == 1 or path == "." else path.replace("/", "__")
        while case in cases:
            case += "_"
        cases[case] = (folder, None)
        if names[own] > 1:
            message = f"several folders are called {own!r}: this one is case {case!r}"
            remedy = "name the cases in cases.csv (columns case, split, path)"
            findings.append(Finding("W_CASE_RENAMED", "warning", case, "", message, remedy))
        if rows is not None:
            message = "not listed in cases.csv"
            remedy = "add a row; where cases.csv gives splits, a case without one is not used"
            findings.append(Finding("W_CASE_UNLISTED", "warning", case, "", message, remedy))
    return cases, findings


def _check_aliases(
    vocab: Mapping[str, Organ], aliases: Mapping[str, Sequence[str]]
) -> list[Finding]:
    for organ, names in aliases.items():
        if isinstance(names, str):
            raise UserError(f"aliases.{organ}", names, f"give a list: [{names!r}]")
    return [
        Finding(
            "W_ALIAS_UNKNOWN",
            "warning",
            "",
            "",
            f"aliases name {organ!r}, which is no organ of this vocabulary",
            f"{suggestion(organ, vocab)}correct it (TG-263), or define the organ in the plan",
        )
        for organ in aliases
        if organ not in vocab and organ != NONE
    ]


def _structures(
    case: str, folder: CaseFolder, lookup: Callable[[str], Match]
) -> tuple[Mapping[str, int], tuple[str, ...], list[Finding]]:
    """Position by organ, the names that mean none, and a finding for each organ meant twice."""
    names = folder.structure_names
    found = assign(names, lookup)
    shown = names if folder.names else [path.name for path in folder.structures]
    findings = [
        Finding(
            "E_LABEL_AMBIGUOUS",
            "error",
            case,
            organ,
            f"{' and '.join(shown[i] for i in places)} are the same organ by name",
            "keep one of them, or tell them apart with the site's `aliases`",
        )
        for organ, places in found.doubled.items()
    ]
    for organ, name in found.passed_over:
        message = f"structure {name!r} was passed over for {shown[found.organs[organ]]!r}"
        remedy = "nothing to do, or name the right one in the site's `aliases`"
        findings.append(Finding("W_LABEL_SECOND", "warning", case, organ, message, remedy))
    return found.organs, found.unknown, findings


def _unmapped(raw: str, count: int, match: Match) -> Finding:
    if match.ask:
        message = (
            f"structure {raw!r} ({count} cases) may be {' or '.join(match.candidates)}: {match.why}"
        )
        remedy = f"answer in the site's `aliases`: under its organ, or under `{NONE}`"
        return Finding("W_STRUCTURE_ASKED", "warning", "", "", message, remedy)
    message = f"structure {raw!r} ({count} cases) means no organ of the vocabulary: {match.why}"
    remedy = "if it is one, add the name to the site's `aliases`; else nothing to do"
    return Finding("W_STRUCTURE_UNKNOWN", "warning", "", "", message, remedy)


def read_image_of(archive: Archive, ref: CaseRef) -> tuple[npt.NDArray[Any], Geometry]:
    """Reads the CT of one case and requires plausible HU.

    Returns:
        HU (Z, Y, X) as int16 or float32, and the grid.

    Raises:
        CaseError: the image cannot be read, or its values are no HU
            (`core.archives.hounsfield.refuse`).
    """
    image, geometry = reader_of(archive.format).read_ct(ref.files)
    refuse(image, ref.files[0])
    return image, geometry


def read_case(
    archive: Archive, ref: CaseRef, organs: Sequence[str]
) -> tuple[Volume, tuple[Finding, ...]]:
    """Reads the CT of one case and those of `organs` that it has structures for.

    An organ whose structure is unreadable, off the CT's grid, empty or no mask is left out, as not
    annotated, with a finding.

    Args:
        archive: the archive that `ref` belongs to.
        ref: the case.
        organs: TG-263 names.

    Raises:
        CaseError: the image cannot be used.
    """
    image, geometry = read_image_of(archive, ref)
    reader = reader_of(archive.format)
    masks, findings = {}, []
    for organ in organs:
        path = ref.structures.get(organ)
        if path is None:
            continue
        try:
            mask, remark = reader.read_mask(path, image, geometry, ref.names.get(organ, ""))
            if not mask.any() and organ in ref.names:
                message = f"{ref.names[organ]!r} is named in {path.name}, but has no voxel"
                remedy = "nothing to do: it counts as not annotated"
                if remark:
                    message += f": {remark}"
                    remedy = "export it again, drawn in the slices of this CT, or it is not used"
                absent = Finding("W_LABEL_ABSENT", "warning", ref.case, organ, message, remedy)
                findings.append(absent)
                continue
            if not mask.any():
                remedy = "remove the structure, or contour it"
                raise CaseError("E_LABEL_EMPTY", "structure", path.name, remedy, problem="empty")
        except CaseError as error:
            message = f"{path.name}: {error.problem}"
            findings.append(Finding(error.code, "error", ref.case, organ, message, error.remedy))
            continue
        masks[organ] = mask
        if remark:
            message, remedy = f"{path.name}: {remark}", "nothing to do, or draw it again"
            findings.append(Finding("W_LABEL_CUT", "warning", ref.case, organ, message, remedy))
    return Volume(ref.case, image, geometry, masks), tuple(findings)


def content_hash(ref: CaseRef, organs: Sequence[str]) -> str:
    """SHA-256 over the bytes of the files that `read_case` would read; no path enters it.

    Args:
        ref: the case.
        organs: TG-263 names, in any order; those without a structure do not count.

    Raises:
        CaseError: ``E_IMAGE_MISSING``, ``E_IMAGE_UNREADABLE``: a file of the image.
    """
    parts = [(f"image {i}", path) for i, path in enumerate(ref.files)]
    wanted = [o for o in sorted(set(organs)) if o in ref.structures]
    drawn = [(f"{o} {ref.names[o]}" if o in ref.names else o, ref.structures[o]) for o in wanted]
    images, total, digests = len(parts), hashlib.sha256(), dict[Path, str]()
    for i, (name, path) in enumerate([*parts, *drawn]):
        try:
            if path not in digests:
                digests[path] = _digest(path)
        except OSError as error:
            if i >= images:  # a structure that cannot be read costs its organ, not the case
                digests[path] = "unreadable"
            elif isinstance(error, FileNotFoundError):
                remedy, problem = "put the file back, or remove the case", str(error.strerror)
                raise CaseError("E_IMAGE_MISSING", "file", path, remedy, problem=problem) from error
            else:
                problem = f"it cannot be read: {error.strerror}"
                code = "E_IMAGE_UNREADABLE"
                raise CaseError(code, "file", path, NO_RIGHT, problem=problem) from error
        total.update(plain_text(f"{name}\n{path.suffix}\n{digests[path]}\n").encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file, and of the one beside it that holds its voxels, where it names one."""
    digest = ""
    for part in (path, data_file(path)):
        if part is not None:
            with part.open("rb") as file:
                digest += hashlib.file_digest(file, "sha256").hexdigest()
    return digest
