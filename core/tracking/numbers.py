"""What of a run is tracked, the same for every tracker: flat numbers, tables, models, alerts.

Read from the journal and metrics.json, which hold published figures only (D5): what is withheld
there is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.run_records import mapping, number

Event = Mapping[str, Any]
CELL = ("n", "missed", "dice", "hd95_mm")


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers; None where a cell is withheld."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Model:
    """The best weights of a phase that all sites share.

    Attributes:
        path: file inside the run folder.
        name: of the artifact.
        uses: name of the artifact that the phase began from; "" for none.
        about: scores, round, hash, for whoever looks at it.
    """

    path: Path
    name: str
    uses: str = ""
    about: dict[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """Where a run is tracked to. What it cannot do it raises; the run goes on all the same."""

    notes: list[str]

    def log(self, phase: str, round: int, values: Mapping[str, Any]) -> None:
        """One round as ``PHASE/KEY``."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """One table."""

    def model(self, model: Model) -> None:
        """Weights, by reference."""

    def alert(self, title: str, text: str) -> None:
        """What somebody should look at."""

    def finish(self, status: str = "completed") -> None:
        """The end."""


def first_steps(phases: Sequence[Event]) -> dict[str, int]:
    """By phase the step of its round 0: rounds of all phases in one row, resumed or not."""
    found, step = {}, 0
    for phase in phases:
        found[str(phase["name"])] = step
        step += int(phase.get("rounds", 1)) + 1
    return found


def round_values(event: Event) -> dict[str, float]:
    """A round's numbers; what is withheld, or not known, is absent.

    Returns:
        ``loss/TERM``, ``val/dice/ORGAN/SITE``, ``val/hd95_mm/ORGAN/SITE``, ``val/mean_dice``,
        ``seconds``, ``bytes/to_sites``, ``accepted`` and ``rejected`` (sites), ``reply/SITE`` (1
        accepted, 0 rejected), ``clipped/SITE`` (factor), ``update/norm/SITE`` and
        ``update/cosine/SITE`` (with the average; absent under secure aggregation).
    """
    found = {f"loss/{k}": number(v) for k, v in mapping(event.get("loss")).items()}
    for site, splits in mapping(event.get("sites")).items():
        for split, organs in mapping(splits).items():
            for organ, cell in mapping(organs).items():
                for key in ("dice", "hd95_mm"):
                    found[f"{split}/{key}/{organ}/{site}"] = number(mapping(cell).get(key))
    for key, value in mapping(event.get("mean")).items():
        found[f"val/mean_{key}"] = number(value)
    for key in ("seconds", "seconds_compute", "seconds_waiting", "seconds_transport", "best_round"):
        found[key] = number(event.get(key))
    for way in ("to_sites", "from_sites"):
        found[f"bytes/{way}"] = number(event.get(f"bytes_{way}"))
    accepted, rejected = list(event.get("accepted") or ()), mapping(event.get("rejected"))
    found |= {"accepted": float(len(accepted)), "rejected": float(len(rejected))}
    found |= {f"reply/{site}": 1.0 for site in accepted}
    found |= {f"reply/{site}": 0.0 for site in rejected}
    for site, factor in mapping(event.get("clipped")).items():
        found[f"clipped/{site}"] = number(factor)
    for site, measures in mapping(event.get("updates")).items():
        for key in ("norm", "cosine"):
            found[f"update/{key}/{site}"] = number(mapping(measures).get(key))
    return {key: value for key, value in found.items() if value is not None}


def tables_of(block: Event) -> list[Table]:
    """A finished phase: a row a site and organ, and organ x site for Dice."""
    name, sites = str(block["name"]), mapping(block.get("sites"))
    found = []
    for split, mean in (("test", "mean"), ("val", "mean_val")):
        cells = {s: mapping(mapping(splits).get(split)) for s, splits in sites.items()}
        rows = [
            [site, organ, *(mapping(cell).get(key) for key in CELL)]
            for site, organs in cells.items()
            for organ, cell in organs.items()
        ]
        if not rows:
            continue
        found.append(Table(f"{name}/{split}", ["site", "organ", *CELL], rows))
        pooled = mapping(mapping(block.get(mean)).get("organs"))
        organs = list(dict.fromkeys(str(row[1]) for row in rows))
        wide = [
            [o, *(mapping(cells[s].get(o)).get("dice") for s in cells),
             mapping(pooled.get(o)).get("dice")]
            for o in organs
        ]  # fmt: skip
        found.append(Table(f"{name}/{split}_dice", ["organ", *cells, "all sites"], wide))
    return found


def model_of(run: str, folder: Path, block: Event, phases: Sequence[Event]) -> Model | None:
    """The best weights of a finished phase; None where they stay at the sites (D7)."""
    name = str(block["name"])
    path = folder / "checkpoints" / name / "best.safetensors"
    if not path.is_file():
        return None
    planned = {str(p["name"]): p for p in phases}
    init = str(planned.get(name, {}).get("init", ""))
    before = folder / "checkpoints" / init / "best.safetensors"
    uses = f"{run}-{init}" if init in planned and before.is_file() else ""
    about = {
        "phase": name,
        "round": block.get("best_round"),
        "init": init,
        "began_from": uses,
        "val_dice": mapping(block.get("mean_val")).get("dice"),
        "test_dice": mapping(block.get("mean")).get("dice"),
    }
    return Model(path, f"{run}-{name}", uses, about)


def alert_of(event: Event) -> tuple[str, str] | None:
    """What of the journal somebody should look at: title and text."""
    kind, site = event["event"], event.get("site", "")
    where = f"{event.get('phase') or 'start'} round {event.get('round', 0)}"
    if kind == "rejected":
        detail = event.get("detail", "")
        return f"{site}: {event.get('code')}", f"{where}: the reply was not used ({detail})"
    if kind == "flagged":
        organs = ", ".join(event.get("organs") or ()) or "(organs withheld)"
        return f"{site} stands out", f"{where}: its scores differ from the other sites': {organs}"
    if kind == "run-end" and event.get("status") != "completed":
        return f"the run ended as {event.get('status')}", "read journal.jsonl; go on with --resume"
    return None
