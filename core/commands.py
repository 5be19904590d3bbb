"""What `hnfed predict`, `evaluate` and `advise` do; `core.cli` defines their options."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core import advice
from core.contours import DICOM_FORMATS, Contours, find_cts, write_contours, write_label_table
from core.data.archive import Archive, CaseRef, open_archive, read_image_of
from core.data.dicom_source import read_headers
from core.data.volume import Volume
from core.errors import CaseError, Finding, UserError
from core.evaluation import (
    Evaluation,
    as_json,
    as_rows,
    case_rows,
    choose_cases,
    table,
    vocabulary_of,
)
from core.evaluation import evaluate as score_archive
from core.files import replace_csv, replace_file
from core.os_refusals import in_words
from core.predicted import find_predictions, read_prediction
from core.prediction import Doubt
from core.report import read_run
from core.report_view import records
from core.segmenter import Segmenter, chosen_organs, load_segmenter, organ_list
from core.suitable import doubts_by_organ, implausible, require_suitable
from core.text import shown, shown_text

SHOWN_FINDINGS = 12


def predict(args: argparse.Namespace) -> int:
    """Contours every CT of INPUT; exit code 1 where one could not be."""
    archive = find_cts(args.input)
    for name in args.format:
        if name in DICOM_FORMATS and archive.format != "dicom":
            remedy = "give the folder of its DICOM files, or use nrrd, nifti or segnrrd"
            problem = f"refers to DICOM files, and INPUT is {archive.format}"
            raise UserError("--format", name, remedy, problem=problem)
    _make_folder(args.output, "--output")
    segmenter = load_segmenter(args)
    if "nifti" in args.format:
        write_label_table(args.output, segmenter.organs)
    failed: list[Finding] = []
    progress = _Progress()
    for done, ref in enumerate(archive.cases):
        progress(done, len(archive.cases), ref.case)
        try:
            _contour(archive, ref, segmenter, args)
        except CaseError as error:
            failed.append(_left_out(error, ref.case))
    _print_findings([*(f for f in archive.findings if not _of_structures(f)), *failed])
    lost = [f for f in archive.findings if f.severity == "error" and not _of_structures(f)]
    written = len(archive.cases) - len(failed)
    print(f"{written} of {len(archive.cases) + len(lost)} CTs contoured in {args.output}")
    return 1 if failed or lost else 0


def _contour(archive: Archive, ref: CaseRef, segmenter: Segmenter, args: Any) -> None:
    """Contours one CT and writes what was asked for."""
    image, geometry = read_image_of(archive, ref)
    wrong = require_suitable(image, geometry, segmenter.settings, force=args.force)
    headers: Sequence[Any] = ()
    if set(args.format) & set(DICOM_FORMATS):
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
    write_contours(args.output, drawn, args.format, remarks)
    if doubts:
        count = Counter(d.organ for d in doubts)
        told = ", ".join(f"{organ} {n}" for organ, n in count.items())
        print(f"{shown(ref.case)}: uncertain slices: {told}", file=sys.stderr)
    absent = [organ for organ in organs if organ not in masks]
    if absent:
        print(f"{shown(ref.case)}: not found: {', '.join(absent)}", file=sys.stderr)


def _note(doubts: Sequence[Doubt], organ: str, wrong: str) -> str:
    levels = [f"{d.z_mm:.1f}" for d in doubts if d.organ == organ]
    uncertain = f"uncertain at z = {', '.join(levels)} mm" if levels else ""
    return "; ".join(text for text in (wrong and f"doubtful: {wrong}", uncertain) if text)


def _of_structures(finding: Finding) -> bool:
    """Findings about contours that are there already: of no interest to who draws new ones."""
    return finding.code.startswith(("W_STRUCTURE", "W_LABEL", "E_LABEL"))


def evaluate(args: argparse.Namespace) -> int:
    """Scores a model or existing contours against DATA; a table, ``--json`` and ``--csv``."""
    for option, file in (("--json", args.json), ("--csv", args.csv)):
        if file is not None:
            _make_folder(file.parent, option)
    result = _of_model(args) if args.model else _of_contours(args)
    if args.json is not None:
        text = json.dumps(as_json(result, per_case=args.per_case), indent=2, allow_nan=False)
        replace_file(args.json, text + "\n")
    if args.csv is not None:
        header, *rows = as_rows(result)
        replace_csv(args.csv, header, rows)
        if args.per_case:
            header, *rows = case_rows(result)
            replace_csv(args.csv.with_name(f"{args.csv.stem}.cases.csv"), header, rows)
    _print_findings(result.findings)
    print(shown_text(table(result, per_case=args.per_case)))
    return 0


def _of_model(args: argparse.Namespace) -> Evaluation:
    segmenter = load_segmenter(args)
    organs, crop = segmenter.organs, segmenter.settings
    diagonal_mm = math.hypot(*np.multiply(crop.crop, crop.spacing_mm))
    archive = open_archive(args.data, format=args.format, vocab=vocabulary_of(organs))
    refs = choose_cases(archive, args.split, args.site)

    def masks(volume: Volume) -> tuple[dict[str, npt.NDArray[np.bool_]], float]:
        labels, _ = segmenter(volume.image, volume.geometry)
        return {organ: labels == i for i, organ in enumerate(organs, start=1)}, diagonal_mm

    notes = []
    if args.split != "test":
        notes.append(
            f"split {args.split}: the model may have been trained or chosen on these cases; "
            "whether it was cannot be told from here, so this is no estimate for new patients."
        )
    return score_archive(
        archive,
        refs,
        organs,
        masks,
        penalty="the diagonal of the network's crop",
        notes=notes,
        findings=archive.findings,
        progress=_Progress(),
    )


def _of_contours(args: argparse.Namespace) -> Evaluation:
    asked = organ_list(args.organs)
    vocab = vocabulary_of(asked or ())
    archive = open_archive(args.data, format=args.format, vocab=vocab)
    refs = choose_cases(archive, args.split, args.site)
    found = find_predictions(args.pred, [ref.case for ref in refs], vocab, asked)
    annotated = sorted({organ for ref in refs for organ in ref.structures})
    known = found.organs if asked is None else tuple(dict.fromkeys([*found.organs, *annotated]))
    organs = chosen_organs(args.organs, known)

    def masks(volume: Volume) -> tuple[dict[str, npt.NDArray[np.bool_]], float]:
        predicted = read_prediction(found, volume.case, volume.image, volume.geometry)
        return predicted, volume.geometry.diagonal_mm()

    notes = []
    if found.absent:
        notes.append(
            f"no prediction for {len(found.absent)} of {len(refs)} cases "
            f"({_shortened(found.absent)}): all their organs count as missed."
        )
    if found.unknown:
        notes.append(
            f"predicted structures of unknown name, left out: {_shortened(found.unknown)}."
        )
    only_here = [organ for organ in annotated if organ not in known]
    if only_here:
        notes.append(f"annotated, but nowhere predicted, left out: {_shortened(only_here)}.")
    return score_archive(
        archive,
        refs,
        organs,
        masks,
        penalty="the CT's diagonal",
        notes=notes,
        findings=archive.findings,
        progress=_Progress(),
    )


def advise(args: argparse.Namespace) -> int:
    """Prints what each site of a run should use; writes ``--json``."""
    if not args.run.is_dir():
        raise UserError("RUN", args.run, "name a run folder such as runs/demo")
    folder = read_run(args.run)
    planned, measured = (records(s.get("phases")) for s in (folder.config, folder.metrics))
    found = advice.advise(planned, measured, folder.events)
    if not found:
        raise UserError(
            "RUN",
            args.run,
            "add a phase with candidates: [local, fine-tuned, frozen] (docs/advisor.md)",
            problem="no site has two models of the same organs to choose from",
        )
    print(shown_text(advice.table(found, str(args.run))))
    if args.json is not None:
        _make_folder(args.json.parent, "--json")
        content = {"schema": 1, "run": folder.metrics.get("run"), "advice": found}
        replace_file(args.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 0


def _make_folder(folder: Path, field: str) -> None:
    """Makes a folder for results before the work begins; `UserError` where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = in_words(error)
        problem, remedy = (told.problem, told.remedy) if told else (str(error), "")
        remedy = remedy or "choose another place"
        raise UserError(field, folder, remedy, problem=problem) from error
    if not os.access(folder, os.W_OK):
        raise UserError(field, folder, "choose another place", problem="no permission to write")


def _shortened(names: Sequence[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _left_out(error: CaseError, case: str) -> Finding:
    return Finding(error.code, "error", case, "", str(error).splitlines()[0], error.remedy)


def _print_findings(findings: Sequence[Finding]) -> None:
    """What was left out, each; warnings as counts by code."""
    errors = [f for f in findings if f.severity == "error"]
    for f in errors[:SHOWN_FINDINGS]:
        what = "/".join(part for part in (f.case, f.organ) if part)
        told = f"left out: {shown(what)}: {f.code} {shown(f.message)}"
        print(f"{told}\n  remedy: {shown_text(f.remedy)}", file=sys.stderr)
    if len(errors) > SHOWN_FINDINGS:
        print(f"left out: {len(errors) - SHOWN_FINDINGS} more; see `hnfed check`", file=sys.stderr)
    warnings = Counter(f.code for f in findings if f.severity != "error")
    if warnings:
        counts = ", ".join(f"{code} {n}" for code, n in sorted(warnings.items()))
        print(f"warnings: {counts}; see `hnfed check`", file=sys.stderr)


class _Progress:
    """One line a case on stderr, with the time left."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, done: int, count: int, case: str) -> None:
        left = ""
        if done:
            seconds = (time.monotonic() - self.start) / done * (count - done)
            minutes = seconds / 60
            about = f"{minutes:.0f} min" if minutes > 2 else f"{seconds:.0f} s"
            left = f", about {about} left"
        print(f"[{done + 1}/{count}] {shown(case)}{left}", file=sys.stderr, flush=True)
