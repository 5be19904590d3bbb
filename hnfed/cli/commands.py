"""What `hnfed predict`, `evaluate` and `advise` do; `hnfed.cli.results` defines their options."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import numpy as np

from core.archives.archive import open_archive
from core.archives.duplicates import image_digest
from core.archives.images.volume import Volume
from core.errors import UserError
from core.files import replace_csv
from core.metrics.advice import advise as advise_sites
from core.metrics.scores import outline, outlines
from core.text import shown_text
from hnfed.evaluate.evaluation import (
    Evaluation,
    Method,
    Outlines,
    as_json,
    as_rows,
    case_rows,
    choose_cases,
    table,
    vocabulary_of,
)
from hnfed.evaluate.evaluation import evaluate as score_archive
from hnfed.evaluate.predictions import find_predictions, read_prediction
from hnfed.predict.segmenter import Choice, chosen_organs, load_segmenter, organ_list
from hnfed.report.advice import table as advice_table
from hnfed.report.run import read_run
from hnfed.report.view import records
from hnfed.screen import Progress, make_folder, print_findings, shortened


def evaluate(args: argparse.Namespace, choice: Choice) -> int:
    """Scores a model or existing contours against DATA; a table, ``--json`` and ``--csv``."""
    if args.csv is not None:
        make_folder(args.csv.parent, "--csv")
    result = _of_model(args, choice) if args.model else _of_contours(args)
    if args.json is not None:
        args.json.write(as_json(result, per_case=args.per_case))
    if args.csv is not None:
        header, *rows = as_rows(result)
        replace_csv(args.csv, header, rows)
        if args.per_case:
            header, *rows = case_rows(result)
            replace_csv(args.csv.with_name(f"{args.csv.stem}.cases.csv"), header, rows)
    print_findings(result.findings)
    print(shown_text(table(result, per_case=args.per_case)))
    return 0


def _of_model(args: argparse.Namespace, choice: Choice) -> Evaluation:
    segmenter = load_segmenter(choice)
    organs, crop = segmenter.organs, segmenter.settings
    diagonal_mm = math.hypot(*np.multiply(crop.crop, crop.spacing_mm))
    archive = open_archive(args.data, format=args.format, vocab=vocabulary_of(organs))
    refs = choose_cases(archive, args.split, args.site)

    seen: list[str] = []

    def drawn(volume: Volume) -> tuple[Outlines, float]:
        if image_digest(volume.image, volume.geometry) in segmenter.trained_on:
            seen.append(volume.case)
        labels, _ = segmenter(volume.image, volume.geometry)
        assert labels.shape == volume.image.shape, labels.shape
        return outlines(labels, organs), diagonal_mm

    method = Method(organs, drawn, "the diagonal of the network's crop")
    result = score_archive(archive, refs, method, Progress())
    told = ""
    if seen:
        told = (
            f"contaminated: the CTs of {len(seen)} of {result.cases} cases are among those that "
            f"the model was trained on ({shortened(seen)}); this is no estimate for new patients."
        )
    elif args.split != "test" and segmenter.trained_on:
        told = (
            f"split {args.split}: the model was trained on none of these CTs, but may have been "
            "chosen on them, which cannot be told from here."
        )
    elif args.split != "test":
        told = (
            f"split {args.split}: the model may have been trained or chosen on these cases; "
            "whether it was cannot be told from here, so this is no estimate for new patients."
        )
    return replace(result, notes=(*result.notes, told)) if told else result


def _of_contours(args: argparse.Namespace) -> Evaluation:
    asked = organ_list(args.organs)
    vocab = vocabulary_of(asked or ())
    archive = open_archive(args.data, format=args.format, vocab=vocab)
    refs = choose_cases(archive, args.split, args.site)
    found = find_predictions(args.pred, [ref.case for ref in refs], vocab, asked)
    annotated = sorted({organ for ref in refs for organ in ref.structures})
    known = found.organs if asked is None else tuple(dict.fromkeys([*found.organs, *annotated]))
    organs = chosen_organs(args.organs, known)

    def drawn(volume: Volume) -> tuple[Outlines, float]:
        masks = read_prediction(found, volume.case, volume.image, volume.geometry)
        assert all(mask.shape == volume.image.shape for mask in masks.values()), volume.case
        outlined = {organ: outline(mask) for organ, mask in masks.items()}
        return outlined, volume.geometry.diagonal_mm()

    notes = []
    if found.absent:
        notes.append(
            f"no prediction for {len(found.absent)} of {len(refs)} cases "
            f"({shortened(found.absent)}): all their organs count as missed."
        )
    if found.unknown:
        notes.append(f"predicted structures of unknown name, left out: {shortened(found.unknown)}.")
    only_here = [organ for organ in annotated if organ not in known]
    if only_here:
        notes.append(f"annotated, but nowhere predicted, left out: {shortened(only_here)}.")
    return score_archive(
        archive, refs, Method(organs, drawn, "the CT's diagonal", notes), Progress()
    )


def advise(args: argparse.Namespace) -> int:
    """Prints what each site of a run should use; writes ``--json``."""
    if not args.run.is_dir():
        raise UserError("RUN", args.run, "name a run folder such as runs/demo")
    folder = read_run(args.run)
    planned, measured = (records(s.get("phases")) for s in (folder.config, folder.metrics))
    found = advise_sites(planned, measured, folder.events)
    if not found:
        raise UserError(
            "RUN",
            args.run,
            "add a phase with candidates: [local, fine-tuned, frozen] (docs/advisor.md)",
            problem="no site has two models of the same organs to choose from",
        )
    print(shown_text(advice_table(found, str(args.run))))
    if args.json is not None:
        args.json.write({"schema": 1, "run": folder.metrics.get("run"), "advice": found})
    return 0
