"""What a comparison could not pair or average, in sentences that name no case."""

from __future__ import annotations

from collections.abc import Sequence

from hnfed.compare.variants import ALL, Variant, VariantPhase


def left_out(results: Sequence[VariantPhase], base: VariantPhase) -> list[str]:
    """What was not paired or not averaged, counted; no case is named."""
    notes = []
    for result in results:
        label = result.variant.label
        if result.incomplete:
            notes.append(
                f"{label}: {result.incomplete} scores left out, not every seed has the case."
            )
        if not result.scores:
            why = (
                "no scores of single cases: published scores are shown, and paired intervals need "
                "the cases.csv files, which stay at the sites"
                if result.published
                else "no test scores"
            )
            seeds = len(result.variant.runs)
            first = f" Of its {seeds} seeds the first is shown." if seeds > 1 else ""
            notes.append(f"{label}: {why}.{first}")
        lacking = [o for o in base.organs if o not in result.organs]
        if lacking:
            notes.append(f"{label}: no {', '.join(lacking)}; its mean is over fewer organs.")
        if result is not base and result.scores and base.scores:
            notes += _unpaired(result, base)
    return [*notes, *_trained_once(results)]


def _trained_once(results: Sequence[VariantPhase]) -> list[str]:
    """What a test over the patients of a single training is about."""
    scored = [r for r in results if r.scores]
    once = [r for r in scored if len(r.variant.runs) == 1]
    if len(scored) < 2 or not once:
        return []
    return [
        f"trained once: {', '.join(r.variant.label for r in once)}. Patients are resampled, models "
        "are not: intervals and p are about these models, and another seed may turn the difference."
    ]


def _unpaired(result: VariantPhase, base: VariantPhase) -> list[str]:
    mine, theirs = set(result.patients(ALL)), set(base.patients(ALL))
    label, reference = result.variant.label, base.variant.label
    notes = []
    if mine != theirs:
        both = mine & theirs
        notes.append(
            f"{label} and {reference}: the {len(both)} test patients of both are paired; left "
            f"out of the differences: {len(mine - both)} only in {label}, {len(theirs - both)} "
            f"only in {reference}."
        )
    here, there = _splits(result.variant), _splits(base.variant)
    other = sorted(s for s in here.keys() & there.keys() if here[s].isdisjoint(there[s]))
    if other:
        notes.append(
            f"{label} and {reference}: another split of the cases at {', '.join(other)}, so they "
            "also trained on other patients."
        )
    return notes


def _splits(variant: Variant) -> dict[str, set[str]]:
    """Hashes of each site's split over the seeds."""
    found: dict[str, set[str]] = {}
    for run in variant.runs:
        for site, digest in run.splits.items():
            found.setdefault(site, set()).add(digest)
    return found
