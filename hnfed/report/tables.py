"""Tables of the report: what a phase trained and sent, and old organs before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.run_records import mapping, number

Record = Mapping[str, Any]
SPLITS = ("val", "test")
PARTS = ("parameters", "trainable", "frozen", "personal", "shared")
BYTES = ("personal_bytes", "base_bytes", "shared_bytes")


def parts(start: Record, rounds: Sequence[Record]) -> dict[str, Any]:
    """What of the network trained, was frozen, stayed and travelled.

    Args:
        start: the ``phase-start`` event; one of an older run lacks some numbers, which are None.
        rounds: the ``round`` events; those in which the number of trained parameters changes
            tell it.

    Returns:
        The numbers of the event by name, and `course`: (round, parameters that train from it on),
        where that changes; {} without an event.
    """
    if not start:
        return {}
    told = [(e.get("round"), number(e.get("trainable"))) for e in rounds]
    course = [(r, int(n)) for r, n in told if n is not None]
    found: dict[str, Any] = {key: number(start.get(key)) for key in (*PARTS, *BYTES)}
    return found | {"course": course if len(course) > 1 else []}


def before_and_after(block: Record, earlier: Record) -> list[dict[str, Any]]:
    """Dice of the organs that a phase shares with the phase that it starts from, beside each other.

    Args:
        block: of the phase in `metrics.json`.
        earlier: of the phase that it starts from; {} where there is none.

    Returns:
        One table a site that both phases have: `site`, and `rows` of an organ with, for each split,
        a cell `before`, `after` and their `change` (None unless both are published). The last row
        is the mean over the organs that have both, where there are two or more.
    """
    before_sites, after_sites = mapping(earlier.get("sites")), mapping(block.get("sites"))
    old = [str(o) for o in block.get("organs") or [] if o in (earlier.get("organs") or [])]
    tables = []
    for site in sorted(set(before_sites) & set(after_sites)):
        rows: list[dict[str, Any]] = [
            {"organ": o}
            | {
                split: _pair(
                    _cell(before_sites[site], split, o), _cell(after_sites[site], split, o)
                )
                for split in SPLITS
            }
            for o in old
        ]
        if not any(row[split]["shown"] for row in rows for split in SPLITS):
            continue
        if len(rows) > 1:
            rows.append({"organ": "Mean"} | {s: _mean([row[s] for row in rows]) for s in SPLITS})
        tables.append({"site": site, "rows": rows})
    return tables


def _pair(before: Record, after: Record) -> dict[str, Any]:
    first, second = number(before.get("dice")), number(after.get("dice"))
    return {
        "before": first,
        "after": second,
        "change": None if first is None or second is None else second - first,
        "withheld": bool(before.get("suppressed") or after.get("suppressed")),
        "shown": bool(before) and bool(after),
    }


def _mean(pairs: Sequence[Record]) -> dict[str, Any]:
    both = [p for p in pairs if p["change"] is not None]
    mean = {
        key: sum(p[key] for p in both) / len(both) if both else None
        for key in ("before", "after", "change")
    }
    withheld = not both and any(p["withheld"] for p in pairs)
    return {**mean, "withheld": withheld, "shown": bool(both)}


def _cell(splits: object, split: str, organ: str) -> Record:
    return mapping(mapping(mapping(splits).get(split)).get(organ))
