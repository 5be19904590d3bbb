"""Single test cases in the report of a simulation: intervals, medians, a box and dots by organ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from core.run_records import mapping, number
from hnfed.evaluate.statistics import estimate
from hnfed.report.charts import Frame, dot, grid_line, label, svg, text_at, ticks

Rows = Mapping[str, Mapping[str, Sequence[float]]]
LANE, GAP = 14, 10


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval over the cases, median and quartiles; None where unknown."""
    if not values:
        return {"n": 0, "mean": None, "low": None, "high": None, "median": None, "quartiles": None}
    told = estimate(np.array(values)[:, None])
    quartiles = [float(q) for q in np.percentile(values, (25, 75))] if len(values) > 2 else None
    return {
        "n": len(values),
        "mean": told.value,
        "low": told.low,
        "high": told.high,
        "median": statistics.median(values),
        "quartiles": quartiles,
    }


def organ_rows(
    organs: Sequence[str], pooled: Mapping[str, Any], dice: Rows, surface: Rows
) -> list[dict[str, Any]]:
    """By organ over all sites: what is published, and of single cases where the run holds them.

    Args:
        organs: of the phase.
        pooled: organ -> score cell over all sites, as published.
        dice: organ -> site -> Dice of each test case; empty in a server's report.
        surface: the same of surface Dice at 2 mm.
    """
    rows = []
    for organ in organs:
        cell = mapping(pooled.get(organ))
        cases = [v for values in dice.get(organ, {}).values() for v in values]
        near = [v for values in surface.get(organ, {}).values() for v in values]
        known = spread(cases)
        mean = number(cell.get("dice"))
        rows.append(
            {
                "organ": organ,
                "n": cell.get("n"),
                "missed": cell.get("missed"),
                "withheld": bool(cell.get("suppressed")),
                "dice": known["mean"] if mean is None and not cell.get("suppressed") else mean,
                "hd95_mm": number(cell.get("hd95_mm")),
                "low": known["low"],
                "high": known["high"],
                "median": known["median"],
                "worst": min(cases, default=None),
                "surface": sum(near) / len(near) if near else None,
            }
        )
    return rows


def dot_chart(rows: Rows, styles: Mapping[str, str], *, title: str, size_x: int = 760) -> Markup:
    """One dot a test case, Dice from 0 to 1 by organ (rows) and site (colour, one lane each).

    A stroke marks the median of a lane; from three cases on a box holds the middle half.

    Args:
        rows: organ -> site -> Dice of its cases.
        styles: site -> CSS class.
        title: what it shows, for screen readers.
        size_x: width in pixels.
    """
    if not any(values for lanes in rows.values() for values in lanes.values()):
        return Markup("")
    room = 14 + 7.2 * max(len(organ) for organ in rows)
    height = round(34 + sum(LANE * len(lanes) + GAP for lanes in rows.values()))
    frame = Frame(size_x, height, room, 6.0, 14.0, 28.0, (0.0, 1.0), (0.0, 1.0))
    parts = []
    for step in ticks(0.0, 1.0, 5):
        x, _ = frame.at(step, 0)
        parts += [grid_line(x, height - 28), text_at(x, height - 14, label(step), "middle")]
    top = 6.0 + GAP / 2
    for organ, lanes in rows.items():
        parts.append(text_at(room - 10, top + LANE * len(lanes) / 2 + 4, organ, "end", "ink"))
        for site, values in lanes.items():
            parts.append(_lane(frame, top + LANE / 2, site, values, styles[site]))
            top += LANE
        top += GAP
        parts.append(
            Markup('<line class="rule" x1="0" x2="{0}" y1="{1:.1f}" y2="{1:.1f}"/>')
            .format(size_x, top - GAP / 2)
        )  # fmt: skip
    return svg((size_x, height), title, parts)


def _lane(frame: Frame, y: float, site: str, values: Sequence[float], style: str) -> Markup:
    """Box, dots and median of a site's cases."""
    if not values:
        return Markup("")

    def x(value: float) -> float:
        return frame.at(min(max(value, 0.0), 1.0), 0)[0]

    known = spread(values)
    parts = []
    if known["quartiles"]:
        low, high = (x(q) for q in known["quartiles"])
        parts.append(
            Markup('<rect class="box {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="11"/>')
            .format(style, low, y - 5.5, max(high - low, 1.0))
        )  # fmt: skip
    parts += [dot(style, x(value), y, 4.0, f"{site}: {value:.3f}") for value in values]
    parts.append(
        Markup('<line class="median" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}">'
               "<title>{3}: median {4:.3f}</title></line>")
        .format(x(known["median"]), y - 7, y + 7, site, known["median"])
    )  # fmt: skip
    return Markup("").join(parts)
