"""What only shows across the cases of a site: the same patient twice, protocols that differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from core.archives.archive import Archive
from core.archives.contour_qa import OPEN_ENDED
from core.archives.duplicates import copies_of
from core.archives.splits import patients_in_splits
from core.errors import Finding
from hnfed.check.case_check import CaseFacts

# Over 63 real patients no two reach 0.91 (and 0.97 over phantoms); re-exports of one reach 0.99.
SAME_SCAN = 0.985
# Two ways of contouring: two groups with a gap between them that no single group of sizes has.
SMALLEST_GROUP, GROUP_RATIO, GAP_RATIO = 3, 1.8, 1.35


def duplicates(facts: Sequence[CaseFacts], splits: Mapping[str, str]) -> list[Finding]:
    """The same CT under two ids.

    Equal voxel for voxel: the copy is left out (``E_DUPLICATE``, see `core.archives.duplicates`).
    Nearly equal (another export of the scan): told, and used (``W_DUPLICATE_LIKELY``).
    """
    found = copies_of({f.case: f.image for f in facts}, splits)
    left = {finding.case for finding in found}
    unique = [f for f in facts if f.fingerprint is not None and f.case not in left]
    if len(unique) < 2:
        return found
    rows = np.stack([np.asarray(f.fingerprint, dtype=np.float64).ravel() for f in unique])
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    alike = np.triu(rows @ rows.T, 1)
    for i, j in np.argwhere(alike >= SAME_SCAN):
        parts = {splits.get(unique[k].case) for k in (i, j)} - {None}
        where = f", in {' and '.join(sorted(map(str, parts)))}" if len(parts) > 1 else ""
        message = f"looks like the scan of case {unique[i].case!r}{where}"
        remedy = "if it is one patient, keep one of them or give both one `patient` in cases.csv"
        code = "W_DUPLICATE_LIKELY"
        found.append(Finding(code, "warning", unique[j].case, "", message, remedy))
    return found


def split_leaks(archive: Archive, splits: Mapping[str, str]) -> list[Finding]:
    """Patients (column `patient` of ``cases.csv``) with cases in two splits."""
    remedy = "put all cases of a patient into one split"
    return [
        Finding("E_SPLIT_PATIENT", "error", "", "", f"patient {p!r}: {' and '.join(s)}", remedy)
        for p, s in patients_in_splits(archive, splits).items()
    ]


def protocols(facts: Sequence[CaseFacts], site_of: Mapping[str, str]) -> list[Finding]:
    """Organs that a site contours in two ways: sizes in two groups with a gap between them.

    Volume, and length along the patient, each on its own; organs that end with the scan are not
    looked at by length. A smooth spread, however wide, is not reported: patients differ.
    """
    values: dict[tuple[str, str, str], list[tuple[float, str]]] = defaultdict(list)
    for one in facts:
        for organ, place in one.places.items():
            key = (site_of.get(one.case, ""), organ)
            values[(*key, "mL")].append((place.volume_ml, one.case))
            if organ not in OPEN_ENDED:
                values[(*key, "mm")].append((place.extent_z_mm, one.case))
    found: dict[tuple[str, str], Finding] = {}
    for (site, organ, unit), sizes in sorted(values.items()):
        split = two_groups([size for size, _ in sizes])
        if split is None:
            continue
        small, large = split
        what = "in volume" if unit == "mL" else "in length"
        message = (
            f"two ways of contouring {what}: {len(small)} cases of {small[0]:.3g} to "
            f"{small[-1]:.3g} {unit}, {len(large)} of {large[0]:.3g} to {large[-1]:.3g} {unit}"
        )
        remedy = "contour by one guideline, or leave the organ out for one of the groups"
        finding = Finding("W_PROTOCOL_MIXED", "warning", "", organ, message, remedy)
        found.setdefault((site, organ), finding)
    return list(found.values())


def two_groups(values: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """Divides sizes at their widest gap, where both sides are groups of their own; else None."""
    ordered = sorted(values)
    cuts = range(SMALLEST_GROUP, len(ordered) - SMALLEST_GROUP + 1)
    cut = max(cuts, key=lambda i: ordered[i] / ordered[i - 1], default=None)
    if cut is None or ordered[cut] / ordered[cut - 1] < GAP_RATIO:
        return None
    small, large = ordered[:cut], ordered[cut:]
    return (small, large) if np.median(large) / np.median(small) >= GROUP_RATIO else None
