"""What has left, in words that an ethics board can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.text import shown
from hnfed.guard.outbox import CONFIG, MASKED, NUMBERS
from hnfed.guard.receipts import REPAIRED

KINDS = {
    "query": "told what it has, before the first round",
    "train": "sent what it trained, or what came of it",
    "evaluate": "sent scores of weights that came from the server",
    "error": "told that something did not work: a word of a fixed list, nothing else",
    "unreadable": "a line in a run's folder that is no receipt of any version; look at the file",
    REPAIRED: "a line that the machine left unfinished was set aside; nothing left with it",
}


def summary(receipts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What has left, by run, for a person; nothing in it reaches a terminal as it came.

    Args:
        receipts: from `hnfed.guard.receipts.read_receipts`.
    """
    if not any(receipts.values()):
        return "nothing has left: there is no receipt"
    lines = ["Each line below is a run; each reply of it has a receipt of its own (--json FILE)."]
    lines += ["No image, contour, name or id of a patient can be in a reply.", ""]
    lines.append(f"{'run':<28}{'replies':>8}{'tensors':>9}{'MB':>10}  phases and rounds")
    for run, rows in receipts.items():
        lines.append(_row(run, rows))
        lines += _in_words(rows)
    apart = [r for rows in receipts.values() for r in rows if r.get("unchained")]
    old = sum(r.get("kind") != "unreadable" for r in apart)
    if old:
        lines += ["", f"{old} receipts of an earlier version stand in no chain: --verify cannot "
                  "tell whether they are all there"]  # fmt: skip
    names = sorted(
        {str(key) for rows in receipts.values() for row in rows for key in row["scalars"]}
    )
    lines += ["", "numbers and words that have left:"]
    width = max(map(len, names), default=0) + 2
    lines += [f"  {name:<{width}}{_meaning(name)}" for name in names]
    return "\n".join(shown(line) for line in lines)


def _row(run: str, rows: Sequence[Mapping[str, Any]]) -> str:
    rounds: dict[str, int] = {}
    for row in rows:
        phase = str(row["scalars"].get("phase", "")) or str(row.get("kind", ""))
        number = row["scalars"].get("round", 0)
        rounds[phase] = max(rounds.get(phase, 0), number if isinstance(number, int) else 0)
    told = ", ".join(f"{phase} to {n}" if n else phase for phase, n in rounds.items())
    count = sum(len(row.get("tensors", ())) for row in rows)
    size = sum(int(row.get("bytes", 0)) for row in rows) / 1e6
    return f"{run or '(unknown)':<28}{len(rows):>8}{count:>9}{size:>10.2f}  {told}"


def _in_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    times = [str(row.get("at", "")) for row in rows]
    kinds = [str(row.get("kind", "")) for row in rows]
    lines = [f"    from {min(times)} to {max(times)}"] if rows else []
    for kind in dict.fromkeys(kinds):
        of_kind = [row for row in rows if str(row.get("kind", "")) == kind]
        told = [row.get("lines") for row in of_kind]  # one row may stand for many lines
        count = sum(lines if isinstance(lines, int) else 1 for lines in told)
        weights = sum(bool(row.get("tensors")) for row in of_kind)
        with_weights = f"; {weights} of them with weights" if weights else ""
        meaning = KINDS.get(kind, "")
        lines.append(f"    {count} x {kind}: {meaning}{with_weights}")
    return lines


def _meaning(name: str) -> str:
    if name.startswith("version."):
        return "of a library"
    if name.startswith("left_out."):
        return "how often that was the reason why something was left out (docs/data.md)"
    return (CONFIG | NUMBERS | MASKED | {"torn_bytes": "of the line that was set aside"}).get(
        name, ""
    )
