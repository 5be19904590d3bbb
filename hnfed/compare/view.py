"""What the page of a comparison says, computed from its tables; the looks are the template's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hnfed.compare.runs import ALONE, POOLED
from hnfed.compare.tables import MEAN, Gain, PhaseTable
from hnfed.compare.variants import ALL, Variant, settings_that_differ
from hnfed.report import charts
from hnfed.report.view import COLOURS

KINDS = {ALONE: "each site alone", POOLED: "all cases in one place", "": "federated"}


def comparison_view(
    variants: Sequence[Variant], tables: Sequence[PhaseTable], level: float
) -> dict[str, Any]:
    """Everything the template needs, by name."""
    styles = {v.label: f"c{i % COLOURS + 1}" for i, v in enumerate(variants)}
    return {
        "variants": [_about(v) for v in variants],
        "styles": styles,
        "reference": tables[0].reference,
        "settings": settings_that_differ(variants),
        "phases": [_phase(table, styles) for table in tables],
        "level": level,
    }


def _about(variant: Variant) -> dict[str, Any]:
    seeds = [m.config["seed"] for m in variant.runs if m.config.get("seed") is not None]
    kind = KINDS.get(variant.baseline, variant.baseline) if variant.config else "a site's own run"
    starts = {str(p.get("init")) for m in variant.runs for p in m.config.get("phases") or []}
    notes = [n for m in (*variant.runs, *variant.extras) for n in m.notes]
    if len(variant.runs) > 1 and len([s for s in starts if "." in s or ":" in s]) > 1:
        notes.append("its runs start from different checkpoints")
    return {
        "label": variant.label,
        "kind": kind if variant.runs else "scores of hnfed evaluate",
        "runs": [m.path.name for m in (*variant.runs, *variant.extras)],
        "seeds": seeds,
        "notes": list(dict.fromkeys(notes)),
    }


def _phase(table: PhaseTable, styles: dict[str, str]) -> dict[str, Any]:
    names = list(table.patients)
    others = [name for name in names if name != table.reference]
    organs = [*table.organs, MEAN]
    compared = [n for n in others if any(table.row(n, ALL, o).p is not None for o in organs)]
    return {
        "table": table,
        "name": table.phase,
        "variants": names,
        "organs": [(o, o if o != MEAN else "Mean") for o in organs],
        "compared": compared,
        "forest": _forest(table, organs, compared, styles),
        "gains": _gains(table),
        "curves": _curves(table, styles),
        "row": table.row,
    }


def _forest(
    table: PhaseTable, organs: Sequence[str], compared: Sequence[str], styles: dict[str, str]
) -> Markup:
    rows = []
    for organ in organs:
        found = [table.row(name, ALL, organ) for name in compared]
        lanes = [
            (r.variant, r.difference, r.diff_low, r.diff_high)
            for r in found
            if r.difference is not None
        ]
        if lanes:
            rows.append(("Mean" if organ == MEAN else organ, lanes))
    title = f"Dice minus {table.reference}'s"
    return charts.interval_chart(rows, styles, title=title, x_label=title)


def _curves(table: PhaseTable, styles: dict[str, str]) -> Markup:
    lines = [charts.Series(name, list(c), styles[name]) for name, c in table.curves.items()]
    return charts.line_chart(
        lines, "mean validation Dice by epoch", charts.Axes(x_label="local epochs", size=(760, 300))
    )


def _gains(table: PhaseTable) -> list[dict[str, Any]]:
    """One block a variant and site: the mean in words, then the organs."""
    blocks: list[dict[str, Any]] = []
    for gain in table.gains:
        if gain.organ == MEAN:
            blocks.append({"mean": gain, "words": in_words(gain), "organs": []})
        else:
            blocks[-1]["organs"].append((gain, in_words(gain)))
    return blocks


def in_words(gain: Gain) -> str:
    """``joining (fed) gained site_a +0.021 Dice on Parotid_L (0.004 to 0.036)``."""
    told = gain.difference
    value = told.value or 0.0
    verb = "gained" if value >= 0 else "cost"
    what = "the mean over organs" if gain.organ == MEAN else gain.organ
    span = ""
    if told.low is not None and told.high is not None:
        low, high = (told.low, told.high) if value >= 0 else (-told.high, -told.low)
        span = f" ({_short(low)} to {_short(high)})"
    how = "pooling" if gain.pooled else "joining"
    sign = "+" if value >= 0 else ""
    return f"{how} ({gain.variant}) {verb} {gain.site} {sign}{abs(value):.3f} Dice on {what}{span}"


def _short(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    """``+0.021``, ``-0.004``; "" where there is no value."""
    if value is None:
        return ""
    return f"{0.0 if abs(value) < 5e-4 else value:+.3f}"
