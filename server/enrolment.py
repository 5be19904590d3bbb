"""Which node is which site: by asking, each name once, all of them before a deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from core.errors import UserError
from core.organs.volumes import VOLUME_ML
from core.plan.schema import Phase, Plan
from core.wire.messages import CODES, OK, Description
from server.exchange import Call, exchange
from server.guards import error_words, known_code
from server.record import tell
from server.strategy import HEADER, METRICS, ORDER

Say = Callable[[Mapping[str, object]], None]
# A site's contours of an organ may on average be so many times the largest volume that is plausible
# (core.organs.volumes), and so many voxels more, for coarse grids.
LARGER, MORE_VOXELS = 4.0, 64


@dataclass(frozen=True)
class Bounds:
    """What a site's counts cannot exceed.

    Attributes:
        cases: of one split.
        crop_voxels: of a case.
        organ_voxels: by plan organ, of a case.
    """

    cases: int
    crop_voxels: int
    organ_voxels: tuple[float, ...]


def bounds_of(plan: Plan) -> Bounds:
    """The bounds of a plan's grid, organs and guards."""
    crop = math.prod(plan.preprocess.crop)
    voxel_ml = math.prod(plan.preprocess.spacing_mm) / 1000
    most = []
    for organ in plan.organ_names:
        known = VOLUME_ML.get(organ)
        most.append(min(crop, LARGER * known.high / voxel_ml + MORE_VOXELS) if known else crop)
    return Bounds(plan.federation.guards.max_cases, crop, tuple(most))


def call_roster(
    grid: Grid,
    plan: Plan,
    *,
    run: str,
    fingerprint: str,
    say: Say,
    seen: Callable[[str, Message], None] | None = None,
) -> tuple[dict[str, int], dict[str, Description]]:
    """Asks every node who it is and what it has; a site builds its cache in answer to this (D14).

    Args:
        grid: Flower's grid.
        plan: names the sites; how long to wait for one to appear (not for one that came and cannot
            take part), and how long it may take to answer.
        run: of this run.
        fingerprint: of the server's `core`.
        say: journal.
        seen: called with each reply, and the site that it is of.

    Returns:
        Node id and description by site. Sites that did not come are missing here, and journalled.
    """
    nodes: dict[str, int] = {}
    described: dict[str, Description] = {}
    registered: dict[int, str] = {}
    refused: set[str] = set()
    asked: set[int] = set()
    silent = 0
    sites, bounds = plan.site_names, bounds_of(plan)
    deadline = time.monotonic() + plan.federation.query_timeout_s
    while missing := set(sites) - set(nodes) - refused:
        fresh = sorted(set(grid.get_node_ids()) - asked)
        if not fresh:
            if time.monotonic() > deadline or silent >= len(missing):
                break
            time.sleep(0.2)
            continue
        asked |= set(fresh)
        registered |= _registered(grid)
        order = ConfigRecord({"run": run, "fingerprint": fingerprint})
        names = {str(node): node for node in fresh}
        done = exchange(
            grid,
            {name: RecordDict({ORDER: order}) for name in names},
            names,
            Call("query", "roster", plan.federation.prepare_timeout_s),
        )
        for name, node in names.items():
            verdict = _admit(done.replies.get(name), sites, nodes, bounds, fingerprint)
            if not isinstance(verdict, Description):  # its key goes before what it says
                named = registered.get(node, "") or verdict[0]
                verdict = (named if named in sites else "", *verdict[1:])
            if isinstance(verdict, Description) and registered.get(node, "") not in (
                "",
                verdict.site,
            ):
                verdict = (
                    registered[node],
                    "E_SITE",
                    "the node calls itself by a name that its key does not have",
                )
            if isinstance(verdict, Description):
                nodes[verdict.site], described[verdict.site] = node, verdict
                if seen is not None:
                    seen(verdict.site, done.replies[name])
                continue
            refused |= {verdict[0]}
            silent += verdict[0] == ""
            _refuse(say, *verdict)
    for site in sorted(set(sites) - set(nodes) - refused):
        _refuse(say, site, "E_LOST", "the site did not come before the deadline")
    return nodes, described


def _registered(grid: Grid) -> dict[int, str]:
    """Names under which the coordinator registered the nodes' keys; none in a simulation."""
    ask = getattr(grid, "get_nodes", None)
    return {} if ask is None else {node.node_id: str(node.name or "") for node in ask()}


def declared(description: Description, plan: Plan, phase: Phase) -> list[float]:
    """1 for each organ of the phase that the site says it annotates (all, if it says nothing)."""
    told = description.annotated
    return [float(told[i] > 0) if told else 1.0 for i in _index(plan, phase)]


def frequencies(
    described: Iterable[Description], plan: Plan, phase: Phase
) -> tuple[list[float], list[float]]:
    """Organ and crop voxels over all sites, per organ of the phase; empty if one is silent."""
    rows = list(described)
    if not all(d.voxels and d.totals for d in rows):
        return [], []
    return (
        [sum(d.voxels[i] for d in rows) for i in _index(plan, phase)],
        [sum(d.totals[i] for d in rows) for i in _index(plan, phase)],
    )


def require_same_split(
    meta: Mapping[str, Any], described: Mapping[str, Description], field: str, value: str
) -> None:
    """Weights that were trained with another split of a site must not go on (D17).

    Raises:
        UserError: names `field` and the site.
    """
    for site, theirs in dict(meta.get("splits", {})).items():
        if site in described and described[site].split_hash != theirs:
            raise UserError(
                field,
                value,
                "train the weights again with today's split, or restore the split that they had",
                problem=f"they were trained with another split of site {site}: "
                "its test cases may have been training cases",
            )


def _index(plan: Plan, phase: Phase) -> list[int]:
    return [plan.organ_names.index(o) for o in phase.organs]


def _refuse(say: Say, site: str, code: str, detail: str) -> None:
    event = {"event": "rejected", "phase": "", "round": 0, "site": site}
    say(event | {"code": code, "detail": detail})
    tell(f"{site or 'a node'} cannot take part: {code} ({detail})")


def _admit(
    reply: Message | None,
    sites: Sequence[str],
    nodes: Mapping[str, int],
    bounds: Bounds,
    fingerprint: str,
) -> Description | tuple[str, str, str]:
    """What the site says of itself, or (site, code, detail) of why it cannot take part."""
    if reply is None:
        return "", "E_LOST", "the node did not describe itself in time"
    if reply.has_error():
        return "", "E_ERROR", error_words(reply)
    header = reply.content.get(HEADER)
    metrics = reply.content.get(METRICS)
    if not isinstance(header, ConfigRecord) or not isinstance(metrics, MetricRecord):
        return "", "E_SCHEMA", "a node's description has another form"
    site = str(header.get("site", ""))
    known = site if site in sites else ""
    if header.get("code") != OK:
        code = known_code(header.get("code"))
        return known, code, CODES[code]
    if not known:
        return "", "E_SITE", "a node calls itself by a name that the plan does not know"
    try:
        description = Description.from_records(header, metrics)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return known, "E_SCHEMA", "the description has another form"
    if site in nodes:
        return site, "E_SITE", "a second node with this name; the first one is kept"
    if description.fingerprint != fingerprint:
        return site, "E_CODE", "the site runs other code than the server"
    if wrong := impossible(description, bounds):
        return site, "E_COUNT", wrong
    return description


def impossible(told: Description, bounds: Bounds) -> str:
    """Which of a site's counts cannot be, in words that hold none of them; "" where all can.

    Everything is bounded by what it counts: annotated cases by cases, voxels by the crops of the
    cases that annotate the organ, and by what a contour of that organ may measure.
    """
    organs, rows = len(bounds.organ_voxels), (told.annotated, told.voxels, told.totals)
    if any(len(row) not in (0, organs) for row in rows):
        return "the description counts another number of organs"
    if (told.voxels or told.totals) and not all(rows):
        return "the description counts voxels without the cases that they are of"
    if not all(math.isfinite(v) and v >= 0 for row in rows for v in row):
        return "the description's counts are no counts"
    most = bounds.cases
    if not all(-1 <= n <= most for n in (*told.cases, *told.left_out.values())):
        return "the description's numbers of cases are impossible"
    trained = told.cases[0] if told.cases[0] >= 0 else most
    if any(n > trained for n in told.annotated):
        return "more cases annotate an organ than there are"
    if not told.voxels:
        return ""
    for cases, voxels, total, each in zip(*rows, bounds.organ_voxels, strict=True):
        if total != cases * bounds.crop_voxels:
            return "voxels of crops that are not those of the annotated cases"
        if voxels > min(total, cases * each):
            return "more voxels of an organ than its contours can have"
    return ""
