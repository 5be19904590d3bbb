"""What each site should use, in words and as a table; `core.metrics.advice` chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hnfed.report.wording import FILTERS, in_shell

COLUMNS = ("", "option", "phase", "val Dice", "epochs", "compute", "to site", "from site")
WIDTHS = (1, 10, 28, 8, 7, 12, 9, 9)

Record = Mapping[str, Any]


def command_to_test(entry: Record, run: str) -> str:
    """The command that scores the chosen model, and no other, on the site's test cases."""
    chosen = next(o for o in entry["options"] if o["phase"] == entry["phase"])
    organs = (
        "" if chosen["all_organs"] else " ".join([" --organs", *map(in_shell, entry["organs"])])
    )
    model, site, phase = (in_shell(text) for text in (run, entry["site"], entry["phase"]))
    return (
        f"hnfed evaluate --model {model} --site {site} --phase {phase} "
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
