"""The report's section on what was left out: reason codes in words, and which only note.

Codes of replies are `core.wire.messages.CODES`; these here are of cases and organs at a site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.wire.messages import CODES

MEANINGS = {
    "E_ABSENT": "a case that the split names is not in the archive",
    "E_DUPLICATE": "the same CT as another case, voxel for voxel",
    "E_EXCLUDED": "a case excluded by the configuration",
    "E_HU_INVERTED": "CT inverted: air is brighter than the body",
    "E_HU_OFFSET": "CT values are all shifted",
    "E_IMAGE_GEOMETRY": "slices of the CT do not make an even grid",
    "E_IMAGE_HU": "CT values are no Hounsfield units",
    "E_IMAGE_MISSING": "the CT, or a file of it, is missing",
    "E_IMAGE_SHAPE": "the CT is no volume of one channel",
    "E_IMAGE_UNREADABLE": "the CT cannot be read",
    "E_IMAGE_VALUES": "the CT holds values that are no numbers",
    "E_LABEL_AMBIGUOUS": "two structures of a case mean the same organ",
    "E_LABEL_EMPTY": "a structure without a voxel",
    "E_LABEL_GRID": "a structure that is not on the CT's grid",
    "E_LABEL_INCOMPLETE": "a structure of which contours lie in no slice",
    "E_LABEL_OFF_BODY": "a structure that lies in air",
    "E_LABEL_SAME": "two organs of a case have the same mask, voxel for voxel",
    "E_LABEL_UNREADABLE": "a structure that cannot be read",
    "E_LABEL_VALUES": "a structure whose values are no mask of the organ",
    "E_NO_BODY": "no body found in the CT",
    "E_NO_ORGAN": "a case without an organ that can be used",
    "E_NO_CT": "a study with images, none of them a CT",
    "E_NOT_READABLE": "a file or folder that the operating system does not let be read",
    "E_CASE_ABSENT": "cases.csv lists a case that is not in the archive",
    "E_SERIES_MIXED": "a CT series whose images are of several scans",
    "E_ORGAN_PLACE": "an organ where it cannot be",
    "E_ORGAN_SIDE": "an organ on the other side of the patient",
    "E_ORGAN_VOLUME": "an organ far larger than it can be",
    "E_SLICES_DOUBLED": "two slices of the CT lie in one place",
    "E_SLICES_MISSING": "slices of the CT are missing",
    "W_ALIAS_UNKNOWN": "an alias in the site file is for no organ of the plan",
    "W_CASE_RENAMED": "several folders have one name: the case was given another",
    "W_CASE_SPLIT": "a list gives a case another split than cases.csv, which stands",
    "W_CASE_UNASSIGNED": "a case that no split names is not used",
    "W_CASE_UNLISTED": "a case that cases.csv does not list",
    "W_DICOM_UNREADABLE": "DICOM files that cannot be read",
    "W_EXCLUDE_UNKNOWN": "a case to be excluded is not in the archive",
    "W_OVERLAP_RESOLVED": "organs overlap: in training the smaller one keeps its share of a voxel",
    "W_PACKED": "packed files, which may hold cases, are not opened",
    "W_STRUCTURE_SET_ALONE": "a structure set without the CT that it is drawn on",
}
NOTED = {
    "W_CASE_RENAMED", "W_CASE_SPLIT", "W_CASE_UNLISTED", "W_EXCLUDE_UNKNOWN",
    "W_OVERLAP_RESOLVED",
}  # fmt: skip


def meaning(code: object) -> str:
    """A reason code in words; "" for one of another version."""
    return MEANINGS.get(str(code)) or CODES.get(str(code), "")


def reasons(described: Sequence[Mapping[str, Any]], *, left_out: bool) -> list[dict[str, Any]]:
    """Rows of a table of reason codes: site, code, meaning and count (None: withheld).

    Args:
        described: sites with `site` and `left_out`: code -> count.
        left_out: those of what was not used; else those of what was noted and cost no case.
    """
    return [
        {"site": site["site"], "code": code, "meaning": meaning(code), "count": n}
        for site in described
        for code, n in site["left_out"].items()
        if (code not in NOTED) == left_out
    ]
