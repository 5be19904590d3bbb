"""Flower ClientApp: unpack, work, pack. Nothing but codes and numbers leaves, come what may."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from client import work
from client.personal import Personal, cached_base, keep_base
from client.site import Site, simulated_site, site_from_file
from core.config import plan_from_json
from core.errors import UserError
from core.optimisation import DeviceMemoryError, NonFiniteError
from core.phases import fingerprint, network, parts_of, start_state
from core.plan import Plan
from core.protocol import NEED_BASE, OK, Header, Order

app = ClientApp()
Handler = Callable[[Message, Context], Message]


def site_of(context: Context) -> Site:
    """The site that this node is: from its node config, in a simulation by its partition (D1)."""
    config = context.run_config
    local = str(config.get("local", ""))
    run = str(config.get("run_id", ""))
    if "site" in context.node_config:
        if local:
            raise UserError("local", "(given)", "only a simulation may send a site map")
        return site_from_file(Path(str(context.node_config["site"])), run)
    if not local:
        raise UserError(
            "site", "(missing)", "start the node with --node-config 'site=\"SITE.yaml\"'"
        )
    return simulated_site(local, int(context.node_config["partition-id"]), run)


def guarded(handler: Handler) -> Handler:
    """No exception leaves the site: its text may hold a patient's name. The site's log gets it."""

    @functools.wraps(handler)
    def safe(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            code = _code_of(error)
            name = _log(context, error)
            order = _order_of(message)
            header = Header(name, order.run, order.phase, order.round, code)
            return Message(
                RecordDict(
                    {
                        "header": ConfigRecord(header.to_config()),
                        "metrics": MetricRecord(
                            {"cases": 0, "steps": 0, "skipped": 0, "seconds": 0.0}
                        ),
                    }
                ),
                reply_to=message,
            )

    return safe


@app.query()
@guarded
def query(message: Message, context: Context) -> Message:
    """Who the site is and what it has; builds its cache where needed."""
    site, plan = site_of(context), plan_from_json(str(context.run_config["plan"]))
    config, metrics = work.describe(site, plan, fingerprint()).to_records()
    return Message(
        RecordDict({"header": ConfigRecord(config), "metrics": MetricRecord(metrics)}),
        reply_to=message,
    )


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """One round of training."""
    site, plan, order = _unpack(message, context)
    phase = plan.phase(order.phase)
    state = _incoming(message, site, plan, order)
    if state is None:
        return _pack(message, Header(site.name, order.run, order.phase, order.round, NEED_BASE), {})
    if phase.share == "none":
        header, result = work.train_personal(site, plan, phase, order, state)
        return _pack(message, header, result.to_metrics(phase.organs))
    trained, result = work.train_shared(site, plan, phase, order, state)
    header = Header(site.name, order.run, order.phase, order.round, OK)
    shared = parts_of(network(plan, phase), plan, phase).shared
    return _pack(
        message, header, result.to_metrics(phase.organs), {n: trained[n].cpu() for n in shared}
    )


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Scores of the last weights on val, or of the chosen best on test."""
    site, plan, order = _unpack(message, context)
    phase = plan.phase(order.phase)
    state = _incoming(message, site, plan, order)
    if state is None:
        return _pack(message, Header(site.name, order.run, order.phase, order.round, NEED_BASE), {})
    result = work.evaluate(site, plan, phase, order, state)
    header = Header(site.name, order.run, order.phase, order.round, OK)
    return _pack(message, header, result.to_metrics(phase.organs))


def _unpack(message: Message, context: Context) -> tuple[Site, Plan, Order]:
    order = _order_of(message)
    plan = plan_from_json(str(context.run_config["plan"]))
    if order.fingerprint != fingerprint():
        raise CodeDiffersError
    return site_of(context), plan, order


def _incoming(message: Message, site: Site, plan: Plan, order: Order) -> dict[str, Tensor] | None:
    """Base and shared weights together; None where the base is not here yet (D8)."""
    state: dict[str, Tensor] = {}
    phase = plan.phase(order.phase)
    if order.base_hash:
        base = cached_base(site.base_folder, order.base_hash)
        if base is None and "base" in message.content:
            base = dict(_arrays(message, "base"))
            if not keep_base(site.base_folder, order.base_hash, base):
                raise UserError("base", order.base_hash[:12], "ask the server to send it again")
        if base is None:
            return None
        state |= base
    elif phase.share == "none":
        before = plan.phase(phase.init)
        own = Personal(site.phase_folder(before.name)).best()
        state |= start_state(plan, phase, (own, before.organs))
    if "arrays" in message.content:
        state |= _arrays(message, "arrays")
    return state


def _arrays(message: Message, key: str) -> Mapping[str, Tensor]:
    record = message.content[key]
    assert isinstance(record, ArrayRecord)
    return record.to_torch_state_dict()


def _pack(
    message: Message,
    header: Header,
    metrics: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> Message:
    content = RecordDict(
        {"header": ConfigRecord(header.to_config()), "metrics": MetricRecord(dict(metrics))}
    )
    if state:
        content["arrays"] = ArrayRecord(dict(state))
    return Message(content, reply_to=message)


class CodeDiffersError(RuntimeError):
    """The server runs another `core`."""


def _code_of(error: Exception) -> str:
    if isinstance(error, CodeDiffersError):
        return "E_CODE"
    if isinstance(error, NonFiniteError):
        return "E_NONFINITE"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "E_MEMORY"
    if isinstance(error, DeviceMemoryError):
        return "E_MEMORY"
    if isinstance(error, UserError):
        by_field = {
            "entries": "E_DATA",
            "root": "E_DATA",
            "base_round": "E_STATE",
            "model": "E_STATE",
        }
        return by_field.get(error.field, "E_SITE")
    return "E_INTERNAL"


def _order_of(message: Message) -> Order:
    record = message.content.get("order")
    values = dict(record) if isinstance(record, ConfigRecord) else {}
    return Order.from_config({"run": "", "phase": "", "round": 0, "task": ""} | values)


def _log(context: Context, error: Exception) -> str:
    """Writes the whole error to the site's own disk; returns the site's name, "" if unknown."""
    try:
        site = site_of(context)
    except Exception:
        traceback.print_exception(error)
        return ""
    try:
        site.run_folder.mkdir(parents=True, exist_ok=True)
        with (site.run_folder / "client.log").open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # must not reach Flower, which would send its text
        traceback.print_exception(error)
    return site.name
