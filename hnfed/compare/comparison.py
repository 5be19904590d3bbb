"""`hnfed compare`: runs side by side, as a page, a CSV, a LaTeX table and a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from core.errors import UserError
from core.files import replace_csv, replace_file
from core.text import aligned, figure
from core.tracking.foreign_run import of_run
from hnfed.compare.runs import Member, read_member
from hnfed.compare.tables import COLUMNS, MEAN, PhaseTable, Row, phase_table
from hnfed.compare.variants import ALL, Variant, common_phases, variants_of
from hnfed.compare.view import comparison_view, signed
from hnfed.report.page import page

LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def compare(
    arguments: Sequence[str], out: Path, phase: str | None, reference: str | None, level: float
) -> list[PhaseTable]:
    """Reads the runs, compares them and writes `compare.html`, `compare.csv` and `compare.tex`.

    Args:
        arguments: ``[NAME=]RUN``, run folders or files of `hnfed evaluate --json --per-case`.
        out: folder, made where missing.
        phase: the only phase to compare; None for all that the runs have in common.
        reference: label of the variant that the others are compared with; None for the first.
        level: validation Dice that the epochs and seconds are counted to.

    Raises:
        UserError: something that cannot be read or compared.
    """
    if not 0 < level < 1:
        raise UserError("--dice", level, "give a Dice between 0 and 1, such as 0.7")
    members = [read_member(argument) for argument in arguments]
    with of_run(members[0].path):
        return _compared(members, out, phase, reference, level)


def _compared(
    members: Sequence[Member], out: Path, phase: str | None, reference: str | None, level: float
) -> list[PhaseTable]:
    variants = variants_of(members)
    chosen = _reference(variants, reference)
    phases = common_phases(variants, phase)
    tables = [phase_table(variants, name, chosen, level) for name in phases]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", out, "choose another folder", problem=str(error)) from error
    rows = [row for table in tables for row in table.rows]
    replace_csv(out / "compare.csv", COLUMNS, (map(_plain, astuple(row)) for row in rows))
    replace_file(out / "compare.tex", latex(tables, variants))
    content = comparison_view(variants, tables, level)
    replace_file(out / "compare.html", page(Path(__file__).with_name("compare.html.j2"), content))
    return tables


def _reference(variants: Sequence[Variant], wanted: str | None) -> str:
    labels = [variant.label for variant in variants]
    if wanted is not None and wanted not in labels:
        raise UserError("--reference", wanted, f"use one of {', '.join(labels)}")
    return labels[0] if wanted is None else wanted


def _plain(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def summary(table: PhaseTable) -> str:
    """The phase as a short text: the means over organs, and the differences."""
    head = ["variant", "patients", "mean Dice", "95 %", "HD95 mm", "missed"]
    more = ["difference", "95 %", "p Holm", ""] if len(table.patients) > 1 else []
    lines = [[*head, *more]]
    for variant in table.patients:
        row = table.row(variant, ALL, MEAN)
        cells = [variant, str(table.patients[variant] or "-"), figure(row.dice, 3)]
        cells += [_span(row.low, row.high), figure(row.hd95_mm, 1), _missed(row)]
        if len(table.patients) > 1:
            told = "reference" if variant == table.reference else row.verdict
            low_high = _span(row.diff_low, row.diff_high, sign=True)
            cells += [signed(row.difference) or "-", low_high, figure(row.p_holm, 3), told]
        lines.append(cells)
    notes = "".join(f"\nnote: {note}" for note in table.notes)
    return f"{table.phase}: {len(table.organs)} organs\n{aligned(lines)}{notes}"


def _span(low: float | None, high: float | None, *, sign: bool = False) -> str:
    if low is None or high is None:
        return "-"
    return f"{signed(low)} to {signed(high)}" if sign else f"{low:.3f} to {high:.3f}"


def _missed(row: Row) -> str:
    return "-" if row.missed is None or row.n is None else f"{row.missed:g} of {row.n}"


def latex(tables: Sequence[PhaseTable], variants: Sequence[Variant]) -> str:
    """One booktabs table a phase: mean Dice by organ and variant, with intervals."""
    parts = ["% needs \\usepackage{booktabs}; made by hnfed compare\n"]
    for table in tables:
        shown = [v.label for v in variants if v.label in table.patients]
        lines = [
            rf"\begin{{tabular}}{{l{'c' * len(shown)}}}",
            r"\toprule",
            " & ".join(["Organ", *map(_tex, shown)]) + r" \\",
            r"\midrule",
            *(_tex_row(table, organ, organ, shown) for organ in table.organs),
            r"\midrule",
            _tex_row(table, MEAN, "Mean", shown),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        seeds = ", ".join(f"{v.label} {len(v.runs)}" for v in variants if v.runs)
        caption = (
            f"% phase {table.phase}: Dice on test patients, mean and 95 % bootstrap interval over "
            f"patients; mean: organs weigh equally.\n% seeds: {seeds or 'none'}.\n"
        )
        parts.append(caption + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _tex_row(table: PhaseTable, organ: str, title: str, variants: Sequence[str]) -> str:
    cells = [_tex(title)]
    for variant in variants:
        row = table.row(variant, ALL, organ)
        value = "--" if row.dice is None else f"{row.dice:.3f}"
        if row.low is not None and row.high is not None:
            value += f" [{row.low:.3f}, {row.high:.3f}]"
        cells.append(value)
    return " & ".join(cells) + r" \\"


def _tex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
