"""Splits: which patient is for training, validation and test; one split for all phases.

Stratified by the rarest annotated organ first, after the iterative stratification of Sechidis,
Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping

from core.archives.archive import Archive, CaseRef
from core.errors import Finding, UserError
from core.plan.schema import SPLITS


def split_cases(
    cases: Mapping[str, frozenset[str]], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Divides patients into train, val and test, each organ in the same proportion.

    Numbers per split: fraction times cases rounded down, and what is left goes to the largest
    remainders (a tie: train, val, test); then each split of a positive fraction that has no case
    takes one from the largest, as far as there are as many cases as such splits. 20 cases at 0.6,
    0.2, 0.2 make 12, 4, 4.

    Order: of the organs that unassigned cases annotate, the one that fewest do; its cases one by
    one, each to the split which lacks most of its share of that organ (a tie: which has most room
    left; then train, val, test) and is not full. Cases without any organ come last. Within an organ
    the order is drawn from `seed` and the case ids, so that the order of `cases` does not matter.

    Args:
        cases: annotated organs by case id.
        fractions: of train, val and test; they add up to 1, missing ones are 0.
        seed: another seed, another split.

    Returns:
        Split by case id, sorted by id.

    Raises:
        UserError: fractions that are not three shares of 1.
    """
    shares = shares_of(fractions)
    room = _quotas(len(cases), shares)
    totals = Counter(organ for organs in cases.values() for organ in organs)
    lacking = {o: {s: shares[s] * n for s in SPLITS} for o, n in totals.items()}
    waiting = sorted(cases, key=lambda case: (_draw(seed, case), case))
    result: dict[str, str] = {}
    while waiting:
        left = Counter(organ for case in waiting for organ in cases[case])
        organ = min(left, key=lambda o: (left[o], o), default=None)
        chosen = [case for case in waiting if organ is None or organ in cases[case]]
        for case in chosen:
            free = [s for s in SPLITS if room[s] > 0]
            split = max(free, key=lambda s: (lacking[organ][s] if organ else 0.0, room[s]))
            result[case] = split
            room[split] -= 1
            for annotated in cases[case]:
                lacking[annotated][split] -= 1
        waiting = [case for case in waiting if case not in result]
    return dict(sorted(result.items()))


def shares_of(fractions: Mapping[str, float], field: str = "split") -> dict[str, float]:
    """The shares of train, val and test; missing ones are 0.

    Raises:
        UserError: they are no shares of 1.
    """
    shares = {name: float(fractions.get(name, 0.0)) for name in SPLITS}
    unknown = sorted(set(fractions) - {*SPLITS, "seed"})
    usable = all(math.isfinite(v) and v >= 0 for v in shares.values())
    if unknown or not usable or abs(sum(shares.values()) - 1) > 1e-6:
        remedy = "give train, val and test, each 0 or more, together 1"
        told = f"they add up to {sum(shares.values()):g}" if usable and not unknown else ""
        raise UserError(field, dict(fractions), remedy, problem=told)
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Cases per split; `split_cases` states the rule."""
    exact = {name: round(share * count, 6) for name, share in shares.items()}
    quotas = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(SPLITS, key=lambda name: quotas[name] - exact[name])
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    wanted = [name for name in SPLITS if shares[name] > 0]
    if count >= len(wanted):
        for name in wanted:
            if quotas[name] == 0:
                quotas[max(SPLITS, key=lambda n: quotas[n])] -= 1
                quotas[name] = 1
    return quotas


def _draw(seed: int, case: str) -> str:
    return hashlib.sha256(f"{seed}\n{case}".encode()).hexdigest()


def assign_splits(
    archive: Archive, fractions: Mapping[str, float], explicit: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of each case of an archive that is to be used.

    1. A case with a split in the archive's own ``cases.csv`` keeps it, whatever `explicit` says.
    2. Else a case that `explicit` names gets the split given there.
    3. Else, if there is neither a split in ``cases.csv`` (for any case) nor an `explicit` list, all
       cases are divided by `split_cases` over the organs that their structures' names mean, the
       cases of one patient (``cases.csv``) together.

    Once either list exists, a case that neither names is *not used*: someone chose the cases, and
    drawing further ones would change a published test set. `unassigned` makes findings of these.

    Args:
        archive: from `open_archive`.
        fractions: train, val and test; ``seed`` may stand among them (default 0).
        explicit: split by case id, from a configuration or a site's ``splits.csv``.

    Returns:
        Split by case id, sorted by id; cases that are not used are missing.

    Raises:
        UserError: unusable fractions, an unknown split in `explicit`, a patient in two splits.
    """
    for case, split in (explicit or {}).items():
        if split not in SPLITS:
            raise UserError(f"splits, case {case}", split, "use train, val or test")
    result = named_splits(archive, explicit)
    if explicit is None and not result:
        drawn = split_cases(_by_patient(archive), fractions, int(fractions.get("seed", 0)))
        return {ref.case: drawn[_patient(ref)] for ref in archive.cases}
    for patient, parts in patients_in_splits(archive, result).items():
        problem = f"cases of one patient stand in {' and '.join(parts)}"
        raise UserError("cases.csv, patient", patient, "put them into one split", problem=problem)
    return result


def named_splits(archive: Archive, explicit: Mapping[str, str] | None) -> dict[str, str]:
    """The splits of ``cases.csv``, else of a list, sorted by case; a case in neither is missing."""
    known = {ref.case for ref in archive.cases}
    named = {case: split for case, split in (explicit or {}).items() if case in known}
    listed = {ref.case: ref.split for ref in archive.cases if ref.split is not None}
    return dict(sorted({**named, **listed}.items()))


def patients_in_splits(archive: Archive, splits: Mapping[str, str]) -> dict[str, list[str]]:
    """Patients (``cases.csv``) whose cases lie in more than one split, with these splits."""
    parts: dict[str, set[str]] = {}
    for ref in archive.cases:
        if ref.patient and ref.case in splits:
            parts.setdefault(ref.patient, set()).add(splits[ref.case])
    return {p: sorted(s, key=SPLITS.index) for p, s in sorted(parts.items()) if len(s) > 1}


def _patient(ref: CaseRef) -> str:
    return f"patient {ref.patient}" if ref.patient else ref.case


def _by_patient(archive: Archive) -> dict[str, frozenset[str]]:
    annotated: dict[str, frozenset[str]] = {}
    for ref in archive.cases:
        name = _patient(ref)
        annotated[name] = annotated.get(name, frozenset()) | frozenset(ref.structures)
    return annotated


def unassigned(cases: Collection[str]) -> tuple[Finding, ...]:
    """Findings for cases that no list of splits names."""
    remedy = "name it in the list of splits to use it"
    return tuple(
        Finding("W_CASE_UNASSIGNED", "warning", case, "", "in no split: not used", remedy)
        for case in sorted(cases)
    )


def overruled(splits: Mapping[str, str], explicit: Mapping[str, str] | None) -> tuple[Finding, ...]:
    """Findings for the cases whose split in ``cases.csv`` stands against the one that was given.

    Args:
        splits: what `assign_splits` returned.
        explicit: what it was given.
    """
    return tuple(
        Finding(
            "W_CASE_SPLIT",
            "warning",
            case,
            "",
            f"listed for {wanted}, but {splits[case]} in the archive's cases.csv, which stands",
            "change the list, or clear the column split of cases.csv",
        )
        for case, wanted in sorted((explicit or {}).items())
        if splits.get(case, wanted) != wanted
    )


def split_hash(split: Mapping[str, str], secret: bytes) -> str:
    """HMAC-SHA-256 of a split under a site's secret; only that site can compare it.

    Args:
        split: split by case id; the order does not matter.
        secret: bytes that never leave the site.
    """
    text = json.dumps(dict(sorted(split.items())), ensure_ascii=True, separators=(",", ":"))
    return hmac.new(secret, b"split\n" + text.encode(), hashlib.sha256).hexdigest()


def case_hash(case: str, secret: bytes) -> str:
    """HMAC-SHA-256 of a case id under a site's secret: a name for it that says nothing outside."""
    return hmac.new(secret, b"case\n" + case.encode(), hashlib.sha256).hexdigest()
