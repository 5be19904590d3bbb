"""Which node is which site: by asking, each name once, all of them before a deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from core.errors import UserError
from core.plan import Phase, Plan
from core.protocol import CODES, OK, Description
from server.exchange import exchange
from server.guards import error_words, known_code
from server.record import tell
from server.strategy import HEADER, METRICS, ORDER

Say = Callable[[Mapping[str, object]], None]


def call_roster(
    grid: Grid,
    sites: Sequence[str],
    *,
    organs: int,
    run: str,
    fingerprint: str,
    join_s: float,
    prepare_s: float,
    say: Say,
) -> tuple[dict[str, int], dict[str, Description]]:
    """Asks every node who it is and what it has; a site builds its cache in answer to this (D14).

    Args:
        grid: Flower's grid.
        sites: the names that the plan wants.
        organs: how many organs the plan has.
        run: of this run.
        fingerprint: of the server's `core`.
        join_s: how long to wait for a site to appear; not for one that came and cannot take part.
        prepare_s: how long a site may take to answer.
        say: journal.

    Returns:
        Node id and description by site. Sites that did not come are missing here, and journalled.
    """
    nodes: dict[str, int] = {}
    described: dict[str, Description] = {}
    registered: dict[int, str] = {}
    refused: set[str] = set()
    asked: set[int] = set()
    silent = 0
    deadline = time.monotonic() + join_s
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
            kind="query",
            group="roster",
            timeout_s=prepare_s,
        )
        for name, node in names.items():
            verdict = _admit(done.replies.get(name), sites, nodes, organs, fingerprint)
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
    organs: int,
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
    if not _sensible(description, organs):
        return site, "E_COUNT", "the description's counts are impossible"
    return description


def _sensible(description: Description, organs: int) -> bool:
    rows = (description.annotated, description.voxels, description.totals)
    lengths = all(len(r) in (0, organs) for r in rows)
    counts = all(n >= -1 for n in (*description.cases, *description.left_out.values()))
    return lengths and counts and all(math.isfinite(v) and v >= 0 for r in rows for v in r)
