"""The report's section of volumes: predicted against true ones of each test case (Figure 5)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hnfed.report.charts import Axes, Series, line_chart

Volumes = Mapping[str, tuple[float, float]]  # case -> true and predicted mL
Tests = Mapping[tuple[str, str], Mapping[str, Volumes]]  # (site, phase) -> organ -> of its cases
STYLES = ("c1", "c2", "c4", "c3", "c5", "c6")  # green not beside orange
APART = 0.18  # between the dots of one case, as a share of the way to the next case


def volume_charts(
    organs: Sequence[str], phases: Sequence[str], tests: Tests
) -> list[dict[str, Any]]:
    """One chart an organ and site: each phase that tested the organ there, beside the truth.

    Args:
        organs: those that the plan asks for.
        phases: all phases, in order.
        tests: volumes of the test cases.

    Returns:
        Organ, site, the chart, and by phase its style, its mean of predicted / true volume over
        `n` cases (0 for a missed one) and how many it missed. Empty where nothing is known.
    """
    charts = []
    drawn = {phase for (_, phase), known in tests.items() if set(organs) & set(known)}
    tested = [phase for phase in phases if phase in drawn]
    styles = {phase: STYLES[i % len(STYLES)] for i, phase in enumerate(tested)}
    for organ in dict.fromkeys(organs):
        for site in sorted({site for site, _ in tests}):
            found = {p: _usable(tests.get((site, p), {}).get(organ, {})) for p in tested}
            found = {p: volumes for p, volumes in found.items() if volumes}
            if found:
                told = [_summary(p, styles[p], volumes) for p, volumes in found.items()]
                chart = _chart(f"{organ} at {site}", found, styles)
                charts.append({"organ": organ, "site": site, "chart": chart, "phases": told})
    return charts


def without_volumes(
    organs: Sequence[str], tests: Tests, scored: Mapping[tuple[str, str], Collection[str]]
) -> list[str]:
    """Tests of these organs whose file has no volumes, one sentence each."""
    return [
        f"{site}/{phase}/cases.csv has no volumes: its test is of an earlier version"
        for (site, phase), scores in scored.items()
        if any(o in scores and o not in tests.get((site, phase), {}) for o in organs)
    ]


def _usable(volumes: Volumes) -> Volumes:
    """Cases whose numbers are volumes: nothing else has a ratio or a place in a chart."""
    return {
        case: (true, predicted)
        for case, (true, predicted) in volumes.items()
        if 0 < true < math.inf and 0 <= predicted < math.inf
    }


def _summary(phase: str, style: str, volumes: Volumes) -> dict[str, Any]:
    ratios = [predicted / true for true, predicted in volumes.values()]
    return {
        "name": phase,
        "style": style,
        "ratio": math.fsum(ratios) / len(ratios),
        "n": len(ratios),
        "missed": ratios.count(0.0),
    }


def _chart(title: str, volumes_of: Mapping[str, Volumes], styles: Mapping[str, str]) -> Markup:
    """Volumes of the cases 1 to n, by true volume: a line of the truth, dots of each phase."""
    true = {case: both[0] for volumes in volumes_of.values() for case, both in volumes.items()}
    cases = sorted(true, key=lambda case: (true[case], case))
    series = [Series("true", [(i, true[c]) for i, c in enumerate(cases, start=1)], "c0")]
    for turn, (phase, volumes) in enumerate(volumes_of.items()):
        aside = APART * (turn - (len(volumes_of) - 1) / 2)
        points = [(i + aside, volumes[c][1]) for i, c in enumerate(cases, 1) if c in volumes]
        series.append(Series(phase, points, styles[phase], joined=False))
    return line_chart(
        series,
        f"predicted and true volume of {title} in mL by test case",
        Axes(x_label="test case, by true volume", x_range=(0.5, len(cases) + 0.5), size=(540, 280)),
    )
