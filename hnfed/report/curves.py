"""A phase by rounds: its losses, weights and validation Dice, as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from core.plan.schema import LOSS_TERMS
from core.run_records import mapping, number
from hnfed.report import charts

LOSS_NAMES = {"total": "total", **LOSS_TERMS}
Event = Mapping[str, Any]


def loss_terms(rounds: Sequence[Event]) -> list[tuple[str, str]]:
    """Loss terms that occur, with their style; constant zero means switched off."""
    used = []
    for i, term in enumerate(LOSS_NAMES):
        values = [number(mapping(e.get("loss")).get(term)) for e in rounds]
        if any(values):
            used.append((term, "c0" if term == "total" else f"c{i}"))
    return used


def loss_chart(rounds: Sequence[Event]) -> Markup:
    """The mean training loss by round, in all and by term."""
    lines = [
        charts.Series(
            LOSS_NAMES[term],
            [(float(e["round"]), number(mapping(e.get("loss")).get(term))) for e in rounds],
            style,
        )
        for term, style in reversed(loss_terms(rounds))
    ]
    return charts.line_chart(lines, "training loss by round", charts.Axes(x_label="round"))


def weight_charts(
    rounds: Sequence[Event], kind: str, names: Mapping[str, str]
) -> list[tuple[str, Markup]]:
    """One small chart a loss term or organ: its weight in the loss by round; none if none moves."""
    told = [(float(e["round"]), mapping(mapping(e.get("weights")).get(kind))) for e in rounds]
    lines = {
        key: [(r, number(weights.get(key))) for r, weights in told]
        for key in dict.fromkeys(k for _, weights in told for k in weights)
    }
    if not any(len({w for _, w in line if w is not None}) > 1 for line in lines.values()):
        return []
    top = max((w for line in lines.values() for _, w in line if w is not None), default=1.0)
    return [
        (
            names.get(key, key),
            charts.line_chart(
                [charts.Series(key, line, "c1")],
                f"weight of {names.get(key, key)} by round",
                charts.Axes(y_range=(0.0, top or 1.0), size=(260, 130)),
            ),
        )
        for key, line in lines.items()
    ]


def validation_dice(
    rounds: Sequence[Event], best: int | None, block: Event
) -> dict[float, float | None]:
    """Round of the weights -> mean validation Dice; the best ones' also where only tests follow."""
    points: dict[float, float | None] = {}
    for event in rounds:
        points[_scored(event)] = number(mapping(event.get("mean")).get("dice"))
    if best is not None and points.get(best) is None:
        points[best] = number(mapping(block.get("mean_val")).get("dice"))
    return points


def mean_chart(rounds: Sequence[Event], best: int | None, block: Event) -> Markup:
    """Mean validation Dice; the score belongs to the weights of the round it is drawn at."""
    points = validation_dice(rounds, best, block)
    line = charts.Series("mean Dice", sorted(points.items()), "c0")
    return charts.line_chart(
        [line],
        "mean validation Dice by round",
        charts.Axes(x_label="weights of round", y_range=(0.0, 1.0)),
        None if best is None else charts.Mark(float(best), f"best: round {best}"),
    )


def organ_charts(
    rounds: Sequence[Event],
    organs: Sequence[str],
    sites: Sequence[str],
    styles: Mapping[str, str],
    best: int | None,
) -> list[tuple[str, Markup]]:
    """One small chart an organ: validation Dice by round, a line a site."""
    result = []
    for organ in organs:
        lines = []
        for site in sites:
            points = []
            for event in rounds:
                cells = mapping(mapping(mapping(event.get("sites")).get(site)).get("val"))
                dice = number(mapping(cells.get(organ)).get("dice"))
                points.append((_scored(event), dice))
            lines.append(charts.Series(site, sorted(points), styles.get(site, "c1")))
        chart = charts.line_chart(
            lines,
            f"validation Dice of {organ} by round",
            charts.Axes(y_range=(0.0, 1.0), size=(270, 130)),
            None if best is None else charts.Mark(float(best)),
        )
        if chart:
            result.append((organ, chart))
    return result


def _scored(event: Event) -> float:
    scored = number(event.get("scored_round"))
    return float(event["round"]) if scored is None else scored
