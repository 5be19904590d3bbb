"""What only shows across the cases of a site: the same patient twice, protocols that differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.data.archive import Archive
from core.data.caselist import SPLITS
from core.data.plausible import OPEN_ENDED, Place
from core.data.splits import patients_in_splits
from core.errors import Finding

# Over 63 real patients no two reach 0.91 (and 0.97 over phantoms); re-exports of one reach 0.99.
SAME_SCAN = 0.985
# Two ways of contouring: two groups with a gap between them that no single group of sizes has.
SMALLEST_GROUP, GROUP_RATIO, GAP_RATIO = 3, 1.8, 1.35


class Facts(Protocol):
    """What is needed here of `core.check.CaseFacts`."""

    @property
    def case(self) -> str: ...
    @property
    def places(self) -> Mapping[str, Place]: ...
    @property
    def image(self) -> str: ...
    @property
    def fingerprint(self) -> npt.NDArray[np.int16] | None: ...


def duplicates(facts: Sequence[Facts], splits: Mapping[str, str]) -> list[Finding]:
    """The same CT under two ids.

    Equal voxel for voxel: the copy is left out (``E_DUPLICATE``), and of copies in several splits
    the one in test is kept, else the one in val, so that no tested patient was trained on. Nearly
    equal (another export of the scan): told, and used (``W_DUPLICATE_LIKELY``).
    """
    found = []
    seen: dict[str, str] = {}
    for one in sorted((f for f in facts if f.image), key=lambda f: _rank(f.case, splits)):
        first = seen.setdefault(one.image, one.case)
        if first != one.case:
            found.append(duplicate(one.case, splits.get(one.case), splits.get(first)))
    unique = [f for f in facts if f.fingerprint is not None and seen.get(f.image) == f.case]
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


def duplicate(case: str, split: str | None, split_of_first: str | None) -> Finding:
    """The finding for a case whose CT is, voxel for voxel, that of another one which is kept."""
    apart = split and split_of_first and split != split_of_first
    where = f" (this one in {split}, that one in {split_of_first})" if apart else ""
    message = f"its CT is that of another case, voxel for voxel{where}"
    return Finding("E_DUPLICATE", "error", case, "", message, "remove one of the two")


def _rank(case: str, splits: Mapping[str, str]) -> tuple[int, str]:
    """Order in which copies are kept: test, val, train, none; then by id."""
    split = splits.get(case)
    return (-SPLITS.index(split) if split in SPLITS else 1, case)


def split_leaks(archive: Archive, splits: Mapping[str, str]) -> list[Finding]:
    """Patients (column `patient` of ``cases.csv``) with cases in two splits."""
    remedy = "put all cases of a patient into one split"
    return [
        Finding("E_SPLIT_PATIENT", "error", "", "", f"patient {p!r}: {' and '.join(s)}", remedy)
        for p, s in patients_in_splits(archive, splits).items()
    ]


def protocols(facts: Sequence[Facts], site_of: Mapping[str, str]) -> list[Finding]:
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
