"""The subcommands that need no federation: predict, evaluate, report, export, compare ..."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.archives.formats.table import FORMATS
from core.errors import UserError
from core.text import shown, shown_text
from hnfed.cli.json_output import add_json
from hnfed.predict.formats import CONTOUR_FORMATS

SPLITS = ("test", "val", "train", "all")

Handler = Callable[[argparse.Namespace], int]


def register(subparsers: Any) -> None:
    """Adds predict, evaluate, report, export, compare ... to the subparsers of a command line."""
    _add_predict(subparsers)
    _add_evaluate(subparsers)
    report = subcommand(
        subparsers,
        "report",
        "(re)make the report of a run; at a site's kit the site's own, with its cases, which stays",
        _report,
        "hnfed report runs/demo",
        "hnfed report hn --site nyu.yaml",
    )
    report.add_argument("target", metavar="RUN|KIT", type=Path, help="run folder, or a site's kit")
    text = "of a site's kit: id of the run (default: the one that came last)"
    report.add_argument("--run", metavar="ID", default="", help=text)
    text = "of a site's kit: its site file (default: KIT/site.yaml)"
    report.add_argument("--site", metavar="SITE.yaml", type=Path, help=text)
    _add_compare(subparsers)
    folds = subcommand(
        subparsers,
        "folds",
        "the folds of a cross-validated study together: per site and organ, in pairs",
        _folds,
        "hnfed folds runs/crossval --reference federated",
    )
    folds.add_argument("study", metavar="STUDY_FOLDER", type=Path, help="of `hnfed grid`")
    folds.add_argument("--reference", metavar="VARIANT", default="federated", help="(federated)")
    bundle = subcommand(
        subparsers,
        "export",
        "a model as a MONAI bundle: labels, preprocessing, model card, checksums",
        _export,
        "hnfed export runs/demo --phase pretrain -o bundle",
    )
    bundle.add_argument("run", metavar="RUN", type=Path, help="run folder")
    bundle.add_argument("--phase", metavar="P", help="default: the last phase with weights")
    bundle.add_argument("--site", metavar="SITE", help="that site's own weights")
    bundle.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="new folder"
    )
    advise = subcommand(
        subparsers,
        "advise",
        "what each site of a run should use: global, local, fine-tuned or frozen weights",
        _advise,
        "hnfed advise runs/smoke",
    )
    advise.add_argument("run", metavar="RUN", type=Path, help="run folder")
    add_json(advise, "the advice")


def subcommand(
    subparsers: Any, name: str, text: str, handler: Handler, *examples: str
) -> argparse.ArgumentParser:
    """Adds a subcommand with its help, examples of its use, ``--debug`` and its handler."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def _add_predict(subparsers: Any) -> None:
    parser = subcommand(
        subparsers,
        "predict",
        "contour CTs, in each CT's own geometry",
        _predict,
        "hnfed predict -i ct.nrrd -o contours --model runs/demo --format nrrd,nifti",
        "hnfed predict -i ct.nrrd -o contours --model runs/demo --preview",
    )
    add = parser.add_argument
    add(
        "-i",
        "--input",
        metavar="INPUT",
        type=Path,
        required=True,
        help="a CT (NRRD, NIfTI, folder of DICOM), a folder of CTs, or an archive",
    )
    add(
        "-o",
        "--output",
        metavar="OUTPUT",
        type=Path,
        required=True,
        help="folder for CASE/NAME.nrrd, CASE.nii.gz, CASE/RS.dcm ...",
    )
    add(
        "--model",
        metavar="MODEL",
        action="append",
        required=True,
        help="run folder, checkpoint, or name of a model that ships (hnfed models); several "
        "times: probabilities are averaged",
    )
    add(
        "--format",
        metavar="F[,F]",
        type=_formats,
        default=("nrrd",),
        help="nrrd (a mask an organ; default), nifti (a label map), segnrrd (3D Slicer), rtstruct, "
        "dicomseg",
    )
    text = "contour also what looks wrong (turned, of another size, no head), with the doubt inside"
    add("--force", action="store_true", help=text)
    text = "also CASE.preview.html: the contours to look at in a browser, without a network"
    add("--preview", action="store_true", help=text)
    text = "with --preview: keep the face in it; the site file must say preview_faces: true"
    add("--with-face", metavar="SITE.yaml", type=Path, help=text)
    _add_model_choice(parser)


def _add_evaluate(subparsers: Any) -> None:
    parser = subcommand(
        subparsers,
        "evaluate",
        "Dice, surface distances and volumes per organ, of a model or of contours that exist",
        _evaluate,
        "hnfed evaluate --model runs/demo --data archive --split test --json scores.json",
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model",
        metavar="MODEL",
        action="append",
        help="run folder, checkpoint, or name of a model that ships (hnfed models); several "
        "times: probabilities are averaged",
    )
    what.add_argument(
        "--pred",
        metavar="DIR",
        type=Path,
        help="contours: CASE/NAME.nrrd, CASE/structures/NAME.nrrd, CASE.nii.gz",
    )
    add(
        "--data",
        metavar="DATA",
        type=Path,
        required=True,
        help="archive with the reference contours",
    )
    formats = ("auto", *FORMATS)
    add("--format", choices=formats, default="auto", help="format of DATA (default: auto)")
    add(
        "--split",
        choices=SPLITS,
        default="test",
        help="cases to score, by DATA's cases.csv (default: test)",
    )
    add_json(parser, "the scores")
    add(
        "--csv",
        metavar="FILE",
        type=Path,
        help="write the scores as CSV; with --per-case those of each case in FILE's .cases.csv",
    )
    add("--per-case", action="store_true", help="also the scores of each case (they stay here)")
    _add_model_choice(parser)


def _add_compare(subparsers: Any) -> None:
    parser = subcommand(
        subparsers,
        "compare",
        "lay runs side by side: tables with intervals, differences, speed of learning",
        _compare,
        "hnfed compare alone=runs/alone joined=runs/demo --out compare",
    )
    add = parser.add_argument
    add(
        "runs",
        metavar="[NAME=]RUN",
        nargs="+",
        help="run folder, or FILE.json of `hnfed evaluate --json --per-case`; "
        "runs of one name, or of one plan but for the seed, are seeds of one variant",
    )
    add("--out", metavar="DIR", type=Path, default=Path("compare"), help="default: compare")
    add("--phase", metavar="P", help="only this phase (default: all that the runs share)")
    add("--reference", metavar="NAME", help="what the others are compared with (default: first)")
    add(
        "--dice",
        metavar="D",
        type=float,
        default=0.7,
        help="count epochs and seconds until validation reaches this Dice (default: 0.7)",
    )
    add_json(parser, "the rows of compare.csv")


def _add_model_choice(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--organs", metavar="NAME", nargs="+", help="only these organs (default: all of the model)")
    add("--site", help="site: whose personal weights, and which cases of DATA")
    add("--phase", help="phase of a run folder (default: the last one)")
    add("--device", default="auto", help="auto, cpu or cuda:0 (default: auto)")


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in CONTOUR_FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r}: use {', '.join(CONTOUR_FORMATS)}, several with commas"
            )
    return names


def _export(args: argparse.Namespace) -> int:
    from hnfed.predict.monai_bundle import export

    files = export(args.run, args.output, args.phase, args.site)
    card = args.output / "docs" / "README.md"
    print(shown(f"{len(files)} files in {args.output}; model card: {card}"))
    return 0


def _choice(args: argparse.Namespace) -> Any:
    from hnfed.predict.segmenter import Choice

    return Choice(args.model or (), args.phase, args.site, args.organs, args.device)


def _predict(args: argparse.Namespace) -> int:
    from hnfed.predict.prediction import predict

    look = "masked" if args.preview else ""
    if args.with_face is not None:
        from hnfed.deploy.site_file import require_faces_allowed

        if not args.preview:
            raise UserError("--with-face", args.with_face, "give it with --preview")
        require_faces_allowed(args.with_face)
        look = "with face"
    formats, force = args.format, args.force
    return predict(args.input, args.output, _choice(args), formats=formats, force=force, look=look)


def _evaluate(args: argparse.Namespace) -> int:
    from hnfed.cli.commands import evaluate

    return evaluate(args, _choice(args))


def _report(args: argparse.Namespace) -> int:
    from core.files import keep_from_others
    from hnfed.deploy.site_report import write_site_report
    from hnfed.guard.kit import FILE
    from hnfed.report.page import write_report

    if (args.target / FILE).is_file():
        keep_from_others()
        print(shown(write_site_report(args.target, args.site, args.run)))
        return 0
    for option, value in (("--run", args.run), ("--site", args.site)):
        if value:
            problem = f"{args.target} is no kit"
            raise UserError(option, value, "leave it out, or name a site's kit", problem=problem)
    if not args.target.is_dir():
        raise UserError("RUN", args.target, "name a run folder such as runs/demo, or a site's kit")
    print(shown(write_report(args.target)))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from hnfed.compare.comparison import compare, summary

    tables = compare(args.runs, args.out, args.phase, args.reference, args.dice)
    for table in tables:
        print(f"{shown_text(summary(table))}\n")
    print(shown(f"written: {args.out / 'compare.html'}, compare.csv, compare.tex"))
    if args.json is not None:
        args.json.write({"schema": 1, "rows": [asdict(row) for t in tables for row in t.rows]})
    return 0


def _folds(args: argparse.Namespace) -> int:
    from hnfed.compare.fold_tables import folds_text

    print(shown_text(folds_text(args.study, args.reference)))
    return 0


def _advise(args: argparse.Namespace) -> int:
    from hnfed.cli.commands import advise

    return advise(args)
