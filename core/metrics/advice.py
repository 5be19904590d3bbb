"""What each site should use: chosen on its own validation cases, the cost named, no test case seen.

From published figures alone: `metrics.json`, the journal and the plan. What a server may not know
(`min_cell`), it does not choose by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.run_json import FILTERS, number

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


def command_to_test(entry: Record, run: str) -> str:
    """The command that scores the chosen model, and no other, on the site's test cases."""
    chosen = next(o for o in entry["options"] if o["phase"] == entry["phase"])
    organs = "" if chosen["all_organs"] else f" --organs {' '.join(entry['organs'])}"
    return (
        f"hnfed evaluate --model {run} --site {entry['site']} --phase {entry['phase']} "
        f"--data ARCHIVE --split test{organs}"
    )


def sentence(entry: Record) -> str:
    """The choice, its margin, and what to be careful about, for people."""
    parts = []
    if entry["choice"] is None:
        parts.append(
            "Withheld: too few validation cases to be published. The site decides by itself: it "
            "scores each option on its own validation cases (hnfed evaluate --split val)."
            if entry["why"] == "withheld"
            else "No choice: the site tells no validation scores."
        )
    elif entry["margin"] == 0:
        parts.append(
            f"Use {entry['choice']} ({entry['phase']}): as good as {entry['second']}, and cheaper."
        )
    else:
        parts.append(
            f"Use {entry['choice']} ({entry['phase']}): {entry['margin']:.3f} better "
            f"than {entry['second']} on the site's validation cases."
        )
    if entry.get("few"):
        cases = "case" if entry["n"] == 1 else "cases"
        parts.append(
            f"Only {entry['n']} validation {cases} of the rarest organ: another draw of "
            "cases may choose otherwise."
        )
    if entry["choice"] is not None and entry["left_out"]:
        left = ", ".join(f"{o} ({why})" for o, why in entry["left_out"].items())
        parts.append(f"Left out of the mean: {left}.")
    if entry["waiting"]:
        parts.append(f"Not compared, for not finished: {', '.join(entry['waiting'])}.")
    return " ".join(parts)


def table(advice: Sequence[Record], run: str) -> str:
    """The same as text: a table a site, the choice marked, and the command that tests it."""
    lines: list[str] = []
    for entry in advice:
        organs = entry["organs"] or list(entry["left_out"])
        lines += [f"{entry['site']}: {', '.join(organs)}", _line(COLUMNS)]
        for option in entry["options"]:
            lines.append(_line(_cells(option, chosen=option["phase"] == entry.get("phase"))))
        lines.append(sentence(entry))
        if entry["choice"] is not None:
            lines.append(f"test it alone: {command_to_test(entry, run)}")
        lines.append("")
    return "\n".join(lines[:-1])


COLUMNS = ("", "option", "phase", "val Dice", "epochs", "compute", "to site", "from site")
WIDTHS = (1, 10, 28, 8, 7, 12, 9, 9)


def _cells(option: Record, *, chosen: bool) -> tuple[str, ...]:
    dice = "withheld" if option["dice"] is None else FILTERS["dice"](option["dice"])
    if option["spent"]:
        return "*" if chosen else "", option["kind"], option["phase"], dice, "0", "spent", "", ""
    return (
        "*" if chosen else "",
        option["kind"],
        option["phase"],
        dice,
        str(option["epochs"]),
        FILTERS["duration"](option["seconds"]),
        *(FILTERS["amount"](option[k]) for k in ("bytes_to_site", "bytes_from_site")),
    )


def _line(cells: Sequence[str]) -> str:
    left = [f"{c:<{w}}" for c, w in zip(cells[:3], WIDTHS[:3], strict=True)]
    right = [f"{c:>{w}}" for c, w in zip(cells[3:], WIDTHS[3:], strict=True)]
    return " ".join([*left, *right]).rstrip()


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
