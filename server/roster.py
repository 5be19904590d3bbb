"""Which node is which site: by asking, each name once, all of them before a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid

from core.protocol import OK, Description
from server.exchange import exchange
from server.strategy import HEADER, METRICS, ORDER

Say = Callable[[Mapping[str, object]], None]


def call_roster(
    grid: Grid,
    sites: Sequence[str],
    *,
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
        run, fingerprint: of this run and of the server's `core`.
        join_s: how long to wait for a site to appear.
        prepare_s: how long a site may take to answer.
        say: journal.

    Returns:
        Node id and description by site. Sites that did not come are missing here, and in the journal.
    """
    nodes: dict[str, int] = {}
    described: dict[str, Description] = {}
    asked: set[int] = set()
    deadline = time.monotonic() + join_s
    while set(sites) - set(nodes) and time.monotonic() < deadline:
        fresh = sorted(set(grid.get_node_ids()) - asked)
        if not fresh:
            time.sleep(0.2)
            continue
        asked |= set(fresh)
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
            _admit(done.replies.get(name), node, sites, nodes, described, fingerprint, say)
    for site in sorted(set(sites) - set(nodes)):
        say({"event": "rejected", "phase": "", "round": 0, "site": site, "code": "E_LOST",
             "detail": "the site did not come before the deadline"})
    return nodes, described


def _admit(
    reply: object,
    node: int,
    sites: Sequence[str],
    nodes: dict[str, int],
    described: dict[str, Description],
    fingerprint: str,
    say: Say,
) -> None:
    def refuse(site: str, code: str, detail: str) -> None:
        say({"event": "rejected", "phase": "", "round": 0, "site": site, "code": code, "detail": detail})

    from flwr.app import Message

    if not isinstance(reply, Message) or reply.has_error():
        refuse("", "E_LOST" if reply is None else "E_ERROR", "a node did not describe itself")
        return
    header = reply.content.get(HEADER)
    metrics = reply.content.get(METRICS)
    if not isinstance(header, ConfigRecord) or not isinstance(metrics, MetricRecord):
        refuse("", "E_SCHEMA", "a node's description has another form")
        return
    site = str(header.get("site", ""))
    if header.get("code") != OK:
        refuse(site if site in sites else "", str(header.get("code")), "the site cannot take part")
        return
    try:
        description = Description.from_records(header, metrics)
    except (KeyError, TypeError, ValueError, IndexError):
        refuse(site if site in sites else "", "E_SCHEMA", "the description has another form")
        return
    if site not in sites:
        refuse("", "E_SITE", "a node calls itself by a name that the plan does not know")
    elif site in nodes:
        refuse(site, "E_SITE", "a second node with this name; the first one is kept")
    elif description.fingerprint != fingerprint:
        refuse(site, "E_CODE", "the site runs other code than the server")
    else:
        nodes[site] = node
        described[site] = description
