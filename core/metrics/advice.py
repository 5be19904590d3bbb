"""What each site should use: chosen on its own validation cases, the cost named, no test case seen.

From published figures alone: `metrics.json`, the journal and the plan. What a server may not know
(`min_cell`), it does not choose by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.run_records import number

ADVICE = "advice.json"
FEW = 10  # fewer validation cases: one case moves the mean by more than a typical margin
PLACES = 3  # Dice that agree to so many digits are a tie

Record = Mapping[str, Any]


def advise(
    planned: Sequence[Record], measured: Sequence[Record], events: Sequence[Record]
) -> list[dict[str, Any]]:
    """One entry for each site and set of organs for which the site has two models or more.

    The organs are those of each phase that stays at the sites; its options are all phases in which
    the site took part and that contour these organs. The highest mean validation Dice over the
    organs is chosen; of Dice that agree to three digits the one with the least further compute.

    Args:
        planned: phases of the plan (name, sites, organs, init, freeze, share, local_epochs).
            What the journal's ``phase-start`` says of a phase replaces it.
        measured: phases of `metrics.json`.
        events: the journal.

    Returns:
        Entries as in ``advice.json`` (docs/advisor.md); `choice` is None where the scores are
        withheld or missing (`why`).
    """
    plans = {str(p.get("name")): p for p in planned}
    plans |= {str(e["phase"]): e for e in events if e["event"] == "phase-start" and "share" in e}
    blocks = {str(b.get("name")): b for b in measured}
    found: dict[tuple[str, frozenset[str]], dict[str, Any]] = {}
    for plan in [p for p in plans.values() if p.get("share") == "none"]:
        organs = _names(plan, "organs")
        for site in _names(plan, "sites"):
            key = (site, frozenset(organs))
            names = [
                name
                for name, other in plans.items()
                if site in _names(other, "sites") and key[1] <= set(_names(other, "organs"))
            ]
            if key not in found and len([n for n in names if n in blocks]) > 1:
                found[key] = _entry(site, organs, names, plans, blocks, events)
    return [found[key] for key in found]


def _entry(
    site: str,
    organs: Sequence[str],
    names: Sequence[str],
    plans: Mapping[str, Record],
    blocks: Mapping[str, Record],
    events: Sequence[Record],
) -> dict[str, Any]:
    done = [name for name in names if name in blocks]
    cells = {name: _val_cells(blocks[name], site) for name in done}
    common = [o for o in organs if all(_scored(cells[name].get(o)) for name in done)]
    missing = {o: _why_missing([cells[name].get(o) for name in done]) for o in organs}
    options = [_option(name, site, plans[name], cells[name], common, events) for name in done]
    entry: dict[str, Any] = {
        "site": site,
        "organs": common,
        "left_out": {o: why for o, why in missing.items() if o not in common},
        "waiting": [name for name in names if name not in blocks],
        "options": options,
        "choice": None,
        "why": "",
    }
    if not common:
        withheld = "withheld" in missing.values()
        entry["why"] = "withheld" if withheld else "no validation score"
        return entry
    ranked = sorted(options, key=_rank)
    best, second = ranked[0], ranked[1]
    n = min(int(cells[name][o]["n"]) for name in done for o in common)
    margin = round(best["dice"], PLACES) - round(second["dice"], PLACES)
    return entry | {
        "choice": best["kind"],
        "phase": best["phase"],
        "second": second["phase"],
        "margin": round(margin, PLACES),
        "n": n,
        "few": n < FEW,
    }


def _rank(option: Record) -> tuple[float, float, float]:
    """The best first; of equals the cheapest."""
    seconds = 0.0 if option["spent"] else number(option["seconds"])
    epochs = 0.0 if option["spent"] else float(option["epochs"])
    return -round(option["dice"], PLACES), float("inf") if seconds is None else seconds, epochs


def _option(
    name: str,
    site: str,
    plan: Record,
    cells: Mapping[str, Record],
    organs: Sequence[str],
    events: Sequence[Record],
) -> dict[str, Any]:
    """One model of a site, its score and what it cost this site.

    `spent`: of a phase that the site shared with others; choosing it costs nothing further.
    """
    own = [e for e in events if e.get("phase") == name]
    rounds = {
        e.get("round") for e in own if e["event"] == "round" and site in _names(e, "accepted")
    }
    replies = [e for e in own if e["event"] == "accepted" and e.get("site") == site]
    scores = [float(cells[o]["dice"]) for o in organs]
    return {
        "kind": kind_of(plan),
        "phase": name,
        "dice": sum(scores) / len(scores) if scores else None,
        "epochs": len(rounds) * int(plan.get("local_epochs", 1)),
        "seconds": _total(replies, "seconds_compute"),
        "bytes_to_site": _total(replies, "bytes_to_site"),
        "bytes_from_site": _total(replies, "bytes"),
        "spent": kind_of(plan) == "global",
        "all_organs": set(organs) == set(_names(plan, "organs")),
    }


def kind_of(plan: Record) -> str:
    """What a phase is to one of its sites: one of `core.plan.candidates.KINDS`."""
    if plan.get("share") != "none" and len(_names(plan, "sites")) > 1:
        return "global"
    if plan.get("init", "scratch") == "scratch":
        return "local"
    return "fine-tuned" if plan.get("freeze", "none") in ("none", []) else "frozen"


def _names(record: Record, key: str) -> list[str]:
    values = record.get(key)
    return [str(v) for v in values] if isinstance(values, list | tuple) else []


def _val_cells(block: Record, site: str) -> Mapping[str, Record]:
    cells = (block.get("sites") or {}).get(site) or {}
    return cells.get("val") or {}


def _scored(cell: Record | None) -> bool:
    return bool(cell and cell.get("n") and number(cell.get("dice")) is not None)


def _why_missing(cells: Sequence[Record | None]) -> str:
    if any(cell and cell.get("suppressed") for cell in cells):
        return "withheld"
    return "no validation case"


def _total(events: Sequence[Record], key: str) -> float | None:
    values = [number(e.get(key)) for e in events]
    known = [v for v in values if v is not None]
    return round(sum(known), 3) if known and len(known) == len(values) else None
