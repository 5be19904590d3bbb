"""Every reason code that a site may count has its words."""

from __future__ import annotations

import re
from pathlib import Path

from core.wire.messages import CODES
from hnfed.report.reasons import MEANINGS, NOTED, meaning, reasons

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(p for name in ("archives", "data") for p in (ROOT / "core" / name).rglob("*.py"))
# Of two codes the text holds a part, to look for those that begin with it.
PARTS = {"E_IMAGE", "E_LABEL", "W_CASE_", "W_EXCLUDE_"}
FOREIGN = {"E_SPLIT_PATIENT"}  # of `hnfed check` alone


def test_every_code_of_a_case_has_words() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    found = set(re.findall(r"\b(?:E|W_CASE|W_EXCLUDE)_[A-Z_]+\b", text)) - PARTS - FOREIGN
    assert len(found) > 20
    assert found - set(MEANINGS) == set()
    assert MEANINGS.keys() & CODES.keys() == set()
    assert NOTED.issubset(MEANINGS)


def test_what_cost_nothing_is_told_apart() -> None:
    sites = [{"site": "a", "left_out": {"W_OVERLAP_RESOLVED": None, "E_NO_BODY": 2, "E_NEW": 1}}]
    (noted,) = reasons(sites, left_out=False)
    assert (noted["code"], noted["count"]) == ("W_OVERLAP_RESOLVED", None)
    assert [r["code"] for r in reasons(sites, left_out=True)] == ["E_NO_BODY", "E_NEW"]
    assert meaning("E_NORM") == CODES["E_NORM"]
    assert meaning("E_NEW") == ""
