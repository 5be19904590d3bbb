"""What comes with a message, read as what it may be and nothing else: settings, plan, order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from core.errors import UserError
from core.identifiers import RunId, run_id
from core.plan.schema import Phase, Plan
from core.secure.hello import LONGEST as LONGEST_HELLO
from core.secure.layout import EVIDENCE
from core.wire.messages import SETTINGS, Order

# Kinds of messages that this site answers, with the tasks that each may ask for.
KINDS = {"query": ("", "tally"), "train": ("train",), "evaluate": ("validate", "test", "finish")}
# Parcels of bytes that a message may hold, and those that are handed on behind the walls.
HANDED_ON = ("arrays", "base")
PARCELS: dict[str, tuple[str, ...]] = {"query": ()}
PARCELS |= dict.fromkeys(("train", "evaluate"), (*HANDED_ON, EVIDENCE))
MOST_TEXT = 2**20
MOST_PEERS = 1000
LONGEST = 8192  # of an order's texts: a certificate


class OrderError(RuntimeError):
    """An order of another form than any of ours; its text stays at the site."""


@dataclass(frozen=True)
class Asked:
    """A message that was read and found to be an order.

    Attributes:
        kind: query, train or evaluate.
        site: this site's name.
        run: hnfed's own id of the run.
        plan: of the run.
        order: what is asked; of a query the run and the fingerprint alone.
        phase: of the order; None in a query.
    """

    kind: str
    site: str
    run: str
    plan: Plan
    order: Order
    phase: Phase | None


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The six settings of a run, as its server gave them; never what a bundle says they are.

    Raises:
        OrderError: another setting, no text, a long one, a site map, or a run without a name.
    """
    for key, value in config.items():
        if key not in SETTINGS or not isinstance(value, str) or len(value) > MOST_TEXT:
            raise OrderError(f"run configuration: {key[:40]!r}")
    told = {key: str(config.get(key, "")) for key in SETTINGS}
    if told["local"]:
        raise OrderError("run configuration: only a simulation may send a site map")
    _run(told["run_id"])
    return told


def read(kind: str, site: str, run: str, plan: Plan, records: Mapping[str, Any]) -> Asked:
    """The order that a message holds.

    Args:
        kind: a key of `KINDS`.
        site: this site's name.
        run: from `settings_of`.
        plan: of the run.
        records: of the message: values, or the bytes of an array.

    Raises:
        OrderError: a record, key, type or value that no order of ours has.
    """
    values = records.get("order")
    if not isinstance(values, dict) or set(records) - {"order", *PARCELS[kind]}:
        raise OrderError(f"records: {sorted(map(str, records))[:8]}")
    if not all(isinstance(records[name], bytes) for name in records if name != "order"):
        raise OrderError("records: no array")
    order = _typed(values)
    if order.run != run:
        raise OrderError("run: another one than the run's settings name")
    if kind == "query":
        if order.task not in KINDS[kind] or bool(order.task) != bool(order.peers):
            raise OrderError("task")
        return Asked(kind, site, run, plan, order, None)
    known = {phase.name: phase for phase in plan.phases}
    if order.phase not in known or order.task not in KINDS[kind]:
        raise OrderError("phase or task")
    phase = known[order.phase]
    if not 0 <= order.round <= phase.rounds or (kind == "train" and order.round < 1):
        raise OrderError("round")
    if max(order.base_round, order.best_round) > order.round - (kind == "train"):
        raise OrderError("base_round or best_round")
    for name in ("voxels", "totals", "organ_factors"):
        if len(getattr(order, name)) not in (0, len(phase.organs)):
            raise OrderError(name)
    if len(order.weights) not in (0, 1 + len(phase.organs)):
        raise OrderError("weights")
    return Asked(kind, site, run, plan, order, phase)


def _typed(values: Mapping[str, Any]) -> Order:
    empty = Order("", "", 0, "")
    for key, value in values.items():
        if key not in {f.name for f in fields(Order)}:
            raise OrderError(f"order: {key[:40]!r}")
        default = getattr(empty, key)
        if key == "peers":
            fits = (
                isinstance(value, list) and len(value) <= MOST_PEERS and all(map(_is_hello, value))
            )
        elif isinstance(default, list):
            fits = isinstance(value, list) and all(_is_size(v) for v in value)
        else:
            fits = type(value) is type(default) and (
                len(value) <= LONGEST if isinstance(value, str) else value >= 0
            )
        if not fits:
            raise OrderError(f"order: {key}")
    try:
        order = Order.from_config({"run": "", "phase": "", "round": 0, "task": ""} | dict(values))
    except UserError as error:
        raise OrderError(f"order: {error.field}") from error
    _run(order.run)
    return order


def _is_hello(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_HELLO


def _is_size(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value) and value >= 0


def _run(name: str) -> RunId:
    try:
        return run_id(name)
    except UserError as error:
        raise OrderError("run: no name of a run") from error
