"""What a policy hides is hidden in every field of a reply, whatever the code that made it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from core.metrics.scores import MEASURES, SUM_FIELDS, of_few
from core.plan.schema import Plan
from core.secure.layout import TALLIED
from hnfed.guard.order import Asked
from hnfed.guard.rules import Policy

SPLITS = ("val", "test")


def hidden(
    policy: Policy,
    asked: Asked,
    metrics: Mapping[str, Any],
    near: Set[tuple[str, str]] = frozenset(),
) -> dict[str, Any]:
    """A reply's numbers without what is kept back.

    ``counts: false`` takes every number that a number of cases follows from: cases, steps, skipped
    steps, seconds, annotated cases, voxels, reasons why something was left out; the sums over a
    split become means over one case. ``scores: false`` takes validation and test scores, and the
    losses. Of a personal phase no count or loss leaves in any case (two plans that differ by one
    training case would tell its loss), nor a score of fewer cases, or of fewer in which the organ
    was found, than `min_cell`, the plan's or the site's, whichever is larger; nor one that with
    what has left before would tell of fewer.

    Args:
        policy: of the site.
        asked: the order.
        metrics: numbers of the reply.
        near: scores of a personal phase, by split and organ, whose cases differ by few from what
            has left (`hnfed.guard.scored_sets`).
    """
    told = _counted(metrics)
    cell = max(policy.min_cell, asked.plan.federation.min_cell)
    if asked.kind == "query":
        _describe(told, policy, asked.plan, asked.site, cell)
    elif asked.phase is not None and asked.phase.share == "none":
        _personal(told, cell, asked.phase.organs, near)
    if not policy.counts:
        _uncounted(told, asked.kind)
    if not policy.scores:
        told.pop("loss", None)
        for key in [k for k in told if k.partition(".")[0] in SPLITS]:
            del told[key]
    return told


def _counted(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, without scores of which it is not told how many cases stand behind them."""
    uncounted = [s for s in SPLITS if not metrics.get(f"{s}.n")]
    return {k: v for k, v in metrics.items() if k.partition(".")[0] not in uncounted}


def _describe(told: dict[str, Any], policy: Policy, plan: Plan, site: str, cell: int) -> None:
    """Counts of organs of shared phases alone; of a site without one, none below the cell."""
    own = [p for p in plan.phases if site in p.sites]
    shared = {o for p in own if p.share != "none" for o in p.organs}
    for name in TALLIED:
        if name in told:
            rows = zip(plan.organ_names, told[name], strict=False)
            told[name] = [n if organ in shared else type(n)(0) for organ, n in rows]
    if not plan.loss.counts_classes:
        told.pop("voxels", None)
        told.pop("totals", None)
    if not shared and policy.counts:
        told["cases"] = [_cell(n, cell) for n in told.get("cases", [])]
        for key in [k for k in told if k.startswith("left_out.")]:
            told[key] = _cell(told[key], cell)


def _cell(count: int, cell: int) -> int:
    return count if count == 0 or count >= cell else -1


def _personal(
    told: dict[str, Any], cell: int, organs: Sequence[str], near: Set[tuple[str, str]]
) -> None:
    """No counts and losses; scores of few cases, or a few apart from others, are emptied."""
    told.pop("annotated", None)
    told.pop("loss", None)
    told |= {k: 0 for k in ("cases", "steps", "skipped") if k in told}
    for split in SPLITS:
        counts = told.get(f"{split}.n", [])
        both = zip(counts, told.get(f"{split}.detected", counts), strict=True)
        alone = {i for i, organ in enumerate(organs) if (split, organ) in near}
        few = [of_few(n, found, cell) or i in alone for i, (n, found) in enumerate(both)]
        for name in SUM_FIELDS if counts else ():
            values = told.get(f"{split}.{name}", [])
            withheld = -1.0 if name == "n" else 0.0
            told[f"{split}.{name}"] = [
                withheld if hide else v for v, hide in zip(values, few, strict=True)
            ]


def _uncounted(told: dict[str, Any], kind: str) -> None:
    for name in TALLIED:
        told.pop(name, None)
    for key in [k for k in told if k.startswith("left_out.")]:
        told[key] = -1
    if kind == "query":
        told["cases"] = [-1, -1, -1]
    else:
        told |= {k: 0 for k in ("cases", "steps", "skipped") if k in told}
    for key in ("seconds", "startup"):  # how long it took tells of how many
        if key in told:
            told[key] = 0.0
    for split in SPLITS:
        if f"{split}.n" in told:
            _as_means(told, split)


def _as_means(told: dict[str, Any], split: str) -> None:
    """Sums over n cases become those of one case with their mean; -1 and 0 cases stay so."""
    counts, found = told[f"{split}.n"], told[f"{split}.detected"]
    for measure in MEASURES.values():
        name = measure.field
        values = zip(told[f"{split}.{name}"], measure.cases(counts, found), strict=True)
        told[f"{split}.{name}"] = [v / n if n > 0 else v for v, n in values]
    for name in ("n", "detected"):
        told[f"{split}.{name}"] = [min(n, 1.0) for n in told[f"{split}.{name}"]]
