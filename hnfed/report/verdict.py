"""What a run means, in words: what was trained, whether to trust it, what left, failed, is next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.run_records import mapping, number
from hnfed.report.reasons import meaning
from hnfed.report.references import Reference, human, networks, of_organs
from hnfed.report.wording import FILTERS, listed

FEW_CASES = 10  # below it one case moves a mean over cases by more than most changes do
POOR, LITTLE = 0.5, 0.05
APART = 0.05

View = Mapping[str, Any]


def verdict(view: View) -> dict[str, Any]:
    """The first section of the report.

    Args:
        view: what the rest of the page shows (`hnfed.report.view.view`).

    Returns:
        `trained`, `trust`, `left`, `failed`: sentences; `next`: (sentence, command or ""); and
        `organs`, a table a phase: each organ beside the references, with a judgement in words.
    """
    tables = [_table(p, view["synthetic"]) for p in view["phases"] if p["organ_rows"]]
    return {
        "trained": [_trained(p, view) for p in view["phases"]],
        "organs": tables,
        "trust": _trust(view, tables),
        "left": _left(view),
        "failed": _failed(view),
        "next": _next(view, tables),
    }


def _trained(phase: View, view: View) -> str:
    model = str(mapping(view["config"].get("model")).get("name") or "a network")
    plan = phase["plan"]
    rows = [r for r in view["contributions"] if r["phase"] == phase["name"]]
    counts = [r["cases"] for r in rows]
    own = view["own"]
    by_site = listed(
        f"{'a withheld number' if r['cases'] is None else r['cases']} of {r['site']}" for r in rows
    )
    if counts and all(number(c) is not None for c in counts):
        total = sum(counts)
        cases = f"{total} training {'case' if total == 1 else 'cases'}"
        cases += f": {by_site}" if len(rows) > 1 else ""
        if len(rows) == 1:
            cases += " of this site" if own else f" of {rows[0]['site']}"
    else:
        cases = f"training cases of {listed(phase['sites']) or 'no site'}"
    if own and own.others and plan.get("share") != "none":
        cases += f", together with {listed(own.others)}"
    started = "from scratch"
    if plan.get("init") not in (None, "", "scratch"):
        started = f"from the weights of {plan['init']}"
    frozen = plan.get("freeze")
    if frozen and frozen != "none":
        words = frozen if isinstance(frozen, str) else listed(str(f) for f in frozen)
        started += f", with the {words} frozen"
    size = number(phase["start"].get("parameters"))
    weights = f" ({FILTERS['count'](size)} weights)" if size else ""
    organs = len(phase["organs"])
    done = f"{phase['rounds']} rounds" if phase["rounds"] else "no round"
    if phase["planned"]:
        done = f"{phase['rounds']} of {phase['planned']} rounds"
    stays = " Its weights stay at the site." if plan.get("share") == "none" else ""
    return (
        f"{phase['name']}: {model}{weights} learnt {organs} {'organ' if organs == 1 else 'organs'} "
        f"on {cases}; {started}, {done}.{stays}"
    )


def _table(phase: View, synthetic: bool) -> dict[str, Any]:
    organs = [row["organ"] for row in phase["organ_rows"]]
    known = of_organs(organs)
    names = list(dict.fromkeys(r.name for r in known))
    rows = []
    for row in phase["organ_rows"]:
        figures = [
            next(
                (r.dice[row["organ"]] for r in known if r.name == n and row["organ"] in r.dice),
                None,
            )
            for n in names
        ]
        word, style = judged(row, known, synthetic)
        rows.append({**row, "figures": figures, "word": word, "style": style})
    return {
        "phase": phase["name"],
        "names": names,
        "rows": rows,
        "sources": [(r.name, r.source) for r in known],
        "intervals": any(row["low"] is not None for row in rows),
        "surface": any(row["surface"] is not None for row in rows),
    }


def judged(row: View, known: Sequence[Reference], synthetic: bool) -> tuple[str, str]:
    """An organ's test Dice in words, beside the references, and a style for it."""
    dice = row["dice"]
    if dice is None:
        return ("withheld: few cases" if row["withheld"] else "not scored"), "soft"
    few = f", on {row['n']} cases" if (number(row["n"]) or 0) < FEW_CASES else ""
    few = ", on 1 case" if row["n"] == 1 else few
    if synthetic:
        return ("poor" if dice < POOR else "learnt") + few, "failed" if dice < POOR else "completed"
    reader = human(row["organ"], known)
    others = networks(row["organ"], known)
    goal, whom = (reader, "a second reader") if reader else (max(others, default=None), "networks")
    if goal is None:
        return ("poor" if dice < POOR else "no reference known") + few, "other"
    top = row["high"] if row["high"] is not None else dice
    if dice >= goal:
        return f"as good as {whom}{few}", "completed"
    if top >= goal:
        return f"not told apart from {whom}{few}", "completed" if not few else "other"
    if dice >= goal - LITTLE:
        return f"a little below {whom}{few}", "other"
    return ("poor" if dice < POOR else f"below {whom}") + few, "failed"


def _trust(view: View, tables: Sequence[View]) -> list[str]:
    told = []
    if view["synthetic"]:
        told.append(
            "The patients are synthetic (phantoms): the run shows that training works, and nothing "
            "about real CTs. The figures of real ones stand beside it for scale only."
        )
    rows = [row for table in tables for row in table["rows"] if row["dice"] is not None]
    withheld = [t["phase"] for t in tables if any(r["withheld"] for r in t["rows"])]
    if withheld:
        told.append(
            f"Scores of {listed(withheld)} are withheld, for they are of too few cases: each site "
            "sees its own in its own report (hnfed report KIT, at the site)."
        )
    if not rows and withheld:
        return told
    if not rows:
        return [*told, "There is no test score: nothing can be said about how good the model is."]
    told.append(
        "Test cases were used neither for training nor for choosing the round"
        ". It is one training: a second one would give somewhat other figures."
    )
    small = [int(row["n"]) for row in rows if number(row["n"]) is not None and row["n"] < FEW_CASES]
    if small:
        least, most = min(small), max(small)
        span = f"{least}" if least == most else f"{least} to {most}"
        told.append(f"Few test cases ({span} an organ): the figures are rough.")
    if not any(table["intervals"] for table in tables):
        told.append(
            "There are no intervals: single cases stay at the sites. Each site's own report has "
            "them (hnfed report KIT, at the site)."
        )
    if poor := [row["organ"] for row in rows if row["dice"] < POOR]:
        told.append(f"Weak (Dice below {POOR}): {listed(poor)}.")
    if missed := [
        f"{row['organ']} in {row['missed']} of {row['n']}" for row in rows if row["missed"]
    ]:
        told.append(f"Missed altogether: {listed(missed)} test cases.")
    if below := [r["organ"] for r in rows if r["style"] == "failed" and r["dice"] >= POOR]:
        told.append(f"Clearly below the references: {listed(below)}.")
    for phase in view["phases"]:
        sites = {g["title"]: number(g["mean"].get("dice")) for g in phase["groups"]}
        known = {s: d for s, d in sites.items() if d is not None and s != "all sites"}
        if len(known) > 1 and max(known.values()) - min(known.values()) > APART:
            low, high = min(known, key=lambda s: known[s]), max(known, key=lambda s: known[s])
            told.append(
                f"{phase['name']}: {low} scores lower ({known[low]:.3f}) than {high} "
                f"({known[high]:.3f}); it may scan or draw otherwise."
            )
        if _still_rising(phase):
            told.append(f"{phase['name']} was best in its last round: it may not be through.")
    return told


def _still_rising(phase: View) -> bool:
    return bool(phase["best"] and phase["best"] == phase["rounds"] == phase["planned"])


def _left(view: View) -> list[str]:
    if view["own"]:
        return _left_here(view)
    shared = [p for p in view["phases"] if p["plan"].get("share") != "none"]
    own = [p for p in view["phases"] if p["plan"].get("share") == "none"]
    sent = sum(number(r["sent"]) or 0 for r in view["contributions"])
    told = []
    if view["simulated"]:
        told.append(
            "Nothing left this machine: the sites are folders here. What follows is what would "
            "leave real ones."
        )
    if shared:
        secure = mapping(view["config"].get("federation")).get("secure_aggregation")
        weights = "masked weights, which only sums reveal" if secure else "weights"
        told.append(
            f"From each site in {listed(p['name'] for p in shared)}: {weights}, counts of cases "
            "and sums of scores."
        )
        if not secure:
            told.append(
                "The weights are not masked: whoever runs the server can read each site's "
                "(federation.secure_aggregation masks them)."
            )
    if own:
        told.append(
            f"In {listed(p['name'] for p in own)} the weights stayed; only losses and published "
            "scores left."
        )
    told.append("Images, contours, names and figures of single cases stayed.")
    if sent:
        verb = "passed from the sites to the server" if view["simulated"] else "left the sites"
        told.append(f"In all {FILTERS['amount'](sent)} {verb}.")
    return told


def _left_here(view: View) -> list[str]:
    """By the receipts of the site whose page it is."""
    own = view["own"]
    told = ["This page, its pictures and figures of single cases stay here: nothing sends them."]
    sent = sum(number(r["sent"]) or 0 for r in view["contributions"])
    kinds = {"query": "on what it has", "train": "of training", "evaluate": "of scoring",
             "error": "that an order was refused"}  # fmt: skip
    replies = [f"{own.replies[k]} {words}" for k, words in kinds.items() if own.replies.get(k)]
    if not replies:
        return [*told, "No reply has left: there is no receipt of this run."]
    told.append(
        f"{sum(own.replies.get(k, 0) for k in kinds)} replies left ({listed(replies)}), each with "
        f"a receipt: {listed([FILTERS['amount'](sent) + ' of weights', *own.numbers])}."
    )
    if own.masked:
        told.append("Weights, counts and scores were masked: only sums over the sites can be read.")
    elif sent:
        told.append("The weights were not masked: whoever runs the server can read them.")
    own_phases = [p["name"] for p in view["phases"] if p["plan"].get("share") == "none"]
    if own_phases:
        told.append(f"The weights of {listed(own_phases)} stayed.")
    return told


def _failed(view: View) -> list[str]:
    told = []
    if view["own"] and view["status"] != "completed":
        told.append("The last phase of this site has not been tested here, as far as it knows.")
    elif view["status"] != "completed":
        last = view["notes"][-1].get("text", "") if view["notes"] else ""
        told.append(f"The run is {view['status']}." + (f" Its last note: {last}" if last else ""))
    for row in view["contributions"]:
        for code, count in row["rejected"]:
            what = "orders refused" if view["own"] else f"of {row['site']}'s replies not used"
            told.append(f"{row['phase']}: {count} {what} ({code}: {meaning(code)}).")
        if row["asked"] and row["used"] < row["asked"] and not row["rejected"]:
            missing = row["asked"] - row["used"]
            told.append(f"{row['phase']}: {row['site']} took no part in {missing} rounds.")
    without = [e for e in view["rejected"] if view["own"] and not e.get("phase")]
    if without:
        told.append(f"{len(without)} orders were refused before a phase; see below.")
    if view["left"]:
        told += [
            _left_out(site, view["left"]) for site in dict.fromkeys(r["site"] for r in view["left"])
        ]
    if view["problems"]:
        told.append(f"{len(view['problems'])} remarks on the run folder stand below.")
    return told or ["Nothing: every reply was used, and no case was left out."]


def _left_out(site: str, rows: Sequence[View]) -> str:
    """What a site left out before training, by reason."""
    here = [row for row in rows if row["site"] == site]
    reasons = []
    for row in here:
        count = "withheld number" if row["count"] is None else row["count"]
        reasons.append(f"{row['meaning'] or row['code']} ({count})")
    return f"Left out at {site}, before training: {listed(reasons)}."


def _next(view: View, tables: Sequence[View]) -> list[tuple[str, str]]:
    if view["own"]:
        return _next_here(view, tables)
    run = view["folder"]
    told: list[tuple[str, str]] = []
    if view["status"] != "completed":
        told.append(("Go on where it stopped: the same command with --resume.", ""))
    for phase in view["phases"]:
        if _still_rising(phase):
            twice = 2 * int(phase["planned"])
            told.append(
                (f"Train {phase['name']} longer.", f"phases.{phase['name']}.rounds={twice}")
            )
    rows = [row for table in tables for row in table["rows"]]
    if any(row["style"] == "failed" for row in rows):
        if view["simulated"]:
            where = "under “Contours”" if view["has_pictures"] else "by name in cases.csv"
            told.append(
                (f"Look at the worst cases {where} before changing anything.", _predict(run))
            )
        else:
            told.append(("Ask the sites what their worst cases look like: each has them in its own "
                         "report.", "hnfed report KIT --site SITE.yaml"))  # fmt: skip
    if any((number(row["n"]) or FEW_CASES) < FEW_CASES for row in rows):
        told.append(("Test on more cases, or over folds, before comparing anything.", ""))
    if view["left"]:
        told.append(
            ("See at the site which cases were left out, and mend them.", "hnfed check ARCHIVE")
        )
    if view["synthetic"]:
        told.append(
            ("Try it with your own CTs: first see what can be used.", "hnfed check ARCHIVE")
        )
    elif view["status"] == "completed" and rows:
        shared = [p["name"] for p in view["phases"] if p["plan"].get("share") != "none"]
        model = run if view["simulated"] else "bundle"
        command = f"hnfed evaluate --model {model} --data ARCHIVE --split test"
        phase = f" --phase {shared[-1]}" if shared and not view["simulated"] else ""
        if view["simulated"] or shared:
            told.append(
                ("Hand the model on, with a model card.", f"hnfed export {run}{phase} -o bundle")
            )
            told.append(("Score it at the site where it is to be used, before that.", command))
    return told


def _next_here(view: View, tables: Sequence[View]) -> list[tuple[str, str]]:
    """What the site whose page it is can do."""
    own = view["own"]
    told: list[tuple[str, str]] = []
    if any(row["style"] == "failed" for table in tables for row in table["rows"]):
        where = "under “Contours”" if view["has_pictures"] else "by name under each phase"
        told.append((f"Look at the worst cases {where} before anything is used.", ""))
    if own.weights:
        command = f"{_predict(own.place)} --phase {own.weights[-1]}"
        told.append((f"Contour a CT with this site's own weights of {own.weights[-1]}.", command))
    shared = [p["name"] for p in view["phases"] if p["name"] not in own.weights and p["organ_rows"]]
    if shared:
        told.append(
            (f"The best weights of {listed(shared)} are at the coordinator: ask for the bundle "
             "that hnfed export makes, and score it here.",
             "hnfed evaluate --model BUNDLE --data ARCHIVE --split test")
        )  # fmt: skip
    if view["left"] or any(f["severity"] == "error" for f in own.findings):
        option = own.option or f"--site {own.kit}/site.yaml"
        words = "Mend the cases that were left out; they are named below."
        told.append((words, f"hnfed check ARCHIVE {option}"))
    if view["rejected"]:
        told.append(("Read why orders were refused: client.log in the state folder.", ""))
    command = " ".join(filter(None, ["hnfed receipts", own.kit, own.option, "--verify"]))
    told.append(("See each thing that left.", command))
    return told


def _predict(run: str) -> str:
    return f"hnfed predict -i CT -o contours --model {run} --preview"
