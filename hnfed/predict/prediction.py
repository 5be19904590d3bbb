"""Contours every CT of a folder, and says of each what is doubtful."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.archives.archive import Archive, CaseRef, read_image_of
from core.archives.images.volume import Volume
from core.errors import CaseError, Finding, UserError
from core.text import shown
from hnfed.predict.contours import (
    Contours,
    find_cts,
    write_contours,
    write_label_table,
)
from hnfed.predict.dicom_references import read_headers
from hnfed.predict.formats import DICOM_FORMATS
from hnfed.predict.inference import Doubt
from hnfed.predict.input_checks import doubts_by_organ, implausible, require_suitable
from hnfed.predict.preview import ENDING, preview
from hnfed.predict.segmenter import Choice, Segmenter, load_segmenter
from hnfed.screen import Progress, make_folder, print_findings


def predict(
    source: Path,
    output: Path,
    choice: Choice,
    *,
    formats: Sequence[str] = ("nrrd",),
    force: bool = False,
    look: str = "",
) -> int:
    """Contours every CT of a folder.

    Args:
        source: a CT, a folder of CTs, or an archive.
        output: folder for the contours.
        choice: of models and organs.
        formats: names of `hnfed.predict.formats.CONTOUR_FORMATS`.
        force: contour also what looks wrong; the doubt is written beside it.
        look: ``masked`` or ``with face``: writes ``CASE.preview.html`` too; "" for none.

    Returns:
        Exit code: 1 where a CT could not be contoured.

    Raises:
        UserError: a format that the CTs have nothing for, a model that cannot be used, or a folder
            that cannot be written.
    """
    archive = find_cts(source)
    for name in formats:
        if name in DICOM_FORMATS and archive.format != "dicom":
            remedy = "give the folder of its DICOM files, or use nrrd, nifti or segnrrd"
            problem = f"refers to DICOM files, and INPUT is {archive.format}"
            raise UserError("--format", name, remedy, problem=problem)
    make_folder(output, "--output")
    segmenter = load_segmenter(choice)
    if "nifti" in formats:
        write_label_table(output, segmenter.organs)
    failed: list[Finding] = []
    progress = Progress()
    for done, ref in enumerate(archive.cases):
        progress(done, len(archive.cases), ref.case)
        try:
            drawn, remarks = _drawn(
                archive, ref, segmenter, formats=formats, force=force, look=look
            )
            write_contours(output, drawn, formats, remarks)
        except CaseError as error:
            failed.append(error.finding(ref.case))
    print_findings([*(f for f in archive.findings if not _of_structures(f)), *failed])
    lost = [f for f in archive.findings if f.severity == "error" and not _of_structures(f)]
    written = len(archive.cases) - len(failed)
    print(f"{written} of {len(archive.cases) + len(lost)} CTs contoured in {shown(output)}")
    return 1 if failed or lost else 0


def _drawn(
    archive: Archive,
    ref: CaseRef,
    segmenter: Segmenter,
    *,
    formats: Sequence[str],
    force: bool,
    look: str,
) -> tuple[Contours, dict[str, str]]:
    """The contours of one CT, and remarks by the ending of their file's name."""
    image, geometry = read_image_of(archive, ref)
    wrong = require_suitable(image, geometry, segmenter.settings, force=force)
    headers: Sequence[Any] = ()
    if set(formats) & set(DICOM_FORMATS):
        headers = read_headers(ref.files, geometry)
    labels, doubts = segmenter(image, geometry)
    organs = segmenter.organs
    masks = {organ: labels == i for i, organ in enumerate(organs, start=1)}
    masks = {organ: mask for organ, mask in masks.items() if mask.any()}
    by_organ = doubts_by_organ(Volume(ref.case, image, geometry, masks))
    if all_of_them := implausible(by_organ, list(masks)):
        wrong.append(all_of_them)
    for text in [*wrong, *(f"{organ}: {text}" for organ, text in by_organ.items())]:
        print(f"{shown(ref.case)}: doubtful: {text}", file=sys.stderr)
    notes = {organ: _note(doubts, organ, by_organ.get(organ, "")) for organ in organs}
    drawn = Contours(
        ref.case, labels, organs, geometry, segmenter.model, notes, headers, "; ".join(wrong)
    )
    remarks = {}
    if doubts:
        rows = [f"{d.organ},{d.z_mm:.2f},{d.probability:.3f}\n" for d in doubts]
        remarks[".uncertain.csv"] = "organ,z_mm,probability\n" + "".join(rows)
    if wrong:
        remarks[".doubtful.txt"] = "\n".join(wrong) + "\n"
    if look:
        slice_mm, face = segmenter.settings.spacing_mm[0], look == "with face"
        remarks[ENDING] = preview(image, drawn, doubts, doubt_mm=slice_mm, with_face=face)
    if doubts:
        count = Counter(d.organ for d in doubts)
        told = ", ".join(f"{organ} {n}" for organ, n in count.items())
        apart = f"{segmenter.settings.spacing_mm[0]:g} mm apart"
        print(f"{shown(ref.case)}: uncertain slices, {apart}: {told}", file=sys.stderr)
    absent = [organ for organ in organs if organ not in masks]
    if absent:
        print(f"{shown(ref.case)}: not found: {', '.join(absent)}", file=sys.stderr)
    return drawn, remarks


def _note(doubts: Sequence[Doubt], organ: str, wrong: str) -> str:
    levels = [f"{d.z_mm:.1f}" for d in doubts if d.organ == organ]
    uncertain = f"uncertain at z = {', '.join(levels)} mm" if levels else ""
    return "; ".join(text for text in (wrong and f"doubtful: {wrong}", uncertain) if text)


def _of_structures(finding: Finding) -> bool:
    """Findings about contours that are there already: of no interest to who draws new ones."""
    return finding.code.startswith(("W_STRUCTURE", "W_LABEL", "E_LABEL"))
