"""Who contributed what to a run: by phase and site, from the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.run_records import mapping, number

Event = Mapping[str, Any]


def contributions(
    events: Sequence[Event], phases: Sequence[Mapping[str, Any]], described: Sequence[Event]
) -> list[dict[str, Any]]:
    """Rows of the table.

    Args:
        events: the journal.
        phases: of the report's view: `name`, `sites`, `organs`, `max_cases`.
        described: each site's cases and annotated organs, None where withheld.

    Returns:
        By phase and site: training cases that it could use, organs of the phase that it annotates,
        rounds in which it was asked and in which its reply was used, replies that were not used by
        reason, seconds of compute, bytes each way. None where the journal does not tell.
    """
    known = {str(site["site"]): site for site in described}
    rows = []
    for phase in phases:
        told = [e for e in events if e.get("phase") == phase["name"]]
        rounds = {e.get("round"): e for e in told if e["event"] == "round"}
        for site in phase["sites"]:
            here = [e for e in told if e.get("site") == site]
            asked = {e.get("round") for e in here if (e["event"], e.get("kind")) == SENT}
            used = [r for r, e in rounds.items() if site in (e.get("accepted") or [])]
            answers = [e for e in here if e["event"] == "accepted"]
            reasons = Counter(str(e.get("code", "")) for e in here if e["event"] == "rejected")
            site_cases = mapping(mapping(known.get(site)).get("cases"))
            organs = mapping(mapping(known.get(site)).get("organs"))
            cases, most = number(site_cases.get("train")), number(phase["max_cases"])
            if cases is not None:
                cases = int(cases if most is None else min(cases, most))
            rows.append(
                {
                    "phase": phase["name"],
                    "site": site,
                    "cases": cases,
                    "withheld": "train" in site_cases and cases is None,
                    "drawn": sum(1 for o in phase["organs"] if organs.get(o) != 0 and o in organs),
                    "organs": len(phase["organs"]),
                    "told": bool(set(organs) & set(phase["organs"])),
                    "asked": max(len(asked), len(used)) or None,
                    "used": len(used),
                    "rejected": sorted(reasons.items()),
                    "seconds": _sum(answers, "seconds_compute"),
                    "sent": _sum(answers, "bytes"),
                    "received": _sum(answers, "bytes_to_site"),
                }
            )
    return rows


SENT = ("sent", "train")


def _sum(events: Sequence[Event], key: str) -> float | None:
    values = [v for v in (number(e.get(key)) for e in events) if v is not None]
    return sum(values) if values else None
