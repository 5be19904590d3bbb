"""Flower ClientApp: unpack, work, pack. An error is answered with a code, whatever its text says.

What may be asked for here and what may leave is not decided in this code: at a site the guard
outside of it looks at each order and each reply.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from client import tasks
from client.local_epochs import Task
from client.personal_weights import Personal, Stamp, cached_base, keep_base
from client.prepared import prepared_site
from core.data.site import Site, simulated_site
from core.errors import UserError
from core.logfile import append_log
from core.models.stages import unique_state
from core.plan.load import plan_from_json
from core.plan.schema import Phase, Plan
from core.training.optimisation import NonFiniteError, out_of_memory
from core.training.ranks import end_others
from core.wire.messages import NEED_BASE, Header, Order
from core.wire.partition import fingerprint, network, parts_of, seed_of, start_state
from core.wire.state import packed, unpacked

app = ClientApp()
Handler = Callable[[Message, Context], Message]
NOTHING = {"cases": 0, "steps": 0, "skipped": 0, "seconds": 0.0}  # metrics of a refusal


def site_of(context: Context) -> Site:
    """The site that this node is: told by its guard, in a simulation by its partition (D1)."""
    config = context.run_config
    local = str(config.get("local", ""))
    if "site" in context.node_config:
        if local:
            raise UserError("local", "(given)", "only a simulation may send a site map")
        return prepared_site(str(context.node_config["site"]))
    if not local:
        raise UserError("site", "(missing)", "start the node with `hnfed client KIT`")
    run = str(config.get("run_id", ""))
    return simulated_site(local, int(context.node_config["partition-id"]), run)


def guarded(handler: Handler) -> Handler:
    """No exception leaves: its text may hold a patient's name. The site's log gets it.

    Nor does a process that was started for the message stay.
    """

    @functools.wraps(handler)
    def safe(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            try:
                order, code = _named(message), _code_of(error)
                header = Header(_log(context, error), order.run, order.phase, order.round, code)
            except Exception:  # telling of an error failed too
                traceback.print_exc()
                header = Header("", "", "", 0, "E_INTERNAL")
            return _message(message, header.to_config(), NOTHING)
        finally:
            end_others()

    return safe


@app.query()
@guarded
def query(message: Message, context: Context) -> Message:
    """Who the site is and what it has; builds its cache where no other process has."""
    site, plan = site_of(context), plan_from_json(str(context.run_config["plan"]))
    config, metrics = tasks.describe(site, plan, fingerprint()).to_records()
    return _message(message, config, metrics)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """One round of training."""
    task = _unpack(message, context)
    state, phase = _incoming(message, task), task.phase
    if state is None:
        return _need_base(message, task)
    if phase.share == "none":
        header, result = tasks.train_personal(task, state)
        return _message(message, header.to_config(), result.to_metrics(phase.organs))
    trained, result = tasks.train_shared(task, state)
    shared = parts_of(network(task.plan, phase), task.plan, phase).shared
    bits = task.plan.federation.update_bits
    seed = seed_of(task.plan.seed, phase.name, task.order.round, task.site.name, "bits")
    parcel = packed({n: trained[n] for n in shared}, bits, state, seed)
    metrics = result.to_metrics(phase.organs)
    return _message(message, task.header().to_config(), metrics, parcel)


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Scores of the last weights on val, or of the chosen best on test."""
    task = _unpack(message, context)
    state = _incoming(message, task)
    if state is None:
        return _need_base(message, task)
    metrics = tasks.evaluate(task, state).to_metrics(task.phase.organs)
    return _message(message, task.header().to_config(), metrics)


def _unpack(message: Message, context: Context) -> Task:
    order = _order_of(message)
    plan = plan_from_json(str(context.run_config["plan"]))
    if order.fingerprint != fingerprint():
        raise CodeDiffersError
    site = site_of(context)
    phase = plan.phase(order.phase)
    if site.name not in phase.sites:
        raise NotOursError
    return Task(site, plan, phase, order)


def _incoming(message: Message, task: Task) -> dict[str, Tensor] | None:
    """Base and shared weights together; None where the base is not here yet (D8)."""
    state: dict[str, Tensor] = {}
    site, plan, phase, order = task.site, task.plan, task.phase, task.order
    if order.base_hash:
        base = cached_base(site.base_folder, order.base_hash)
        if base is None and "base" in message.content:
            base = _arrays(message, "base", _asked(plan, phase, "base"))
            if not keep_base(site.base_folder, order.base_hash, base, site.base_bytes):
                raise UserError("base", order.base_hash[:12], "ask the server to send it again")
        if base is None:
            return None
        state |= base
    elif phase.share == "none":
        before = plan.phase(phase.init)
        own = Personal(site.phase_folder(before.name), Stamp.of(order.run, plan, before)).best()
        state |= start_state(plan, phase, (own, before.organs))
    if "arrays" in message.content:
        bits = plan.federation.update_bits
        state |= _arrays(message, "arrays", _asked(plan, phase, "shared"), bits)
    return state


def _asked(plan: Plan, phase: Phase, part: str) -> dict[str, Tensor]:
    """The tensors that a part of the phase consists of (names, shapes, types)."""
    model = network(plan, phase)
    names = getattr(parts_of(model, plan, phase), part)
    state = unique_state(model)
    return {name: state[name] for name in names}


def _arrays(
    message: Message, key: str, expected: Mapping[str, Tensor], bits: int = 32
) -> dict[str, Tensor]:
    """The tensors of a parcel, which are those asked for: no other name, shape or type.

    Raises:
        UserError: they are not; nothing of them was kept.
    """
    record = message.content[key]
    values = list(record.values()) if isinstance(record, ArrayRecord) else []
    remedy = "ask the coordinator: server and site differ in the plan or the code"
    if len(values) != 1:
        raise UserError(key, f"{len(values)} parcels", remedy)
    try:
        state = unpacked(values[0].data, expected, bits=bits)
    except ValueError as error:
        raise UserError(key, str(error), remedy) from None
    told = {n: (tuple(t.shape), t.dtype) for n, t in state.items()}
    if told != {n: (tuple(t.shape), t.dtype) for n, t in expected.items()}:
        raise UserError(key, f"{len(state)} tensors", remedy, problem="not those of the phase")
    return state


def _need_base(message: Message, task: Task) -> Message:
    return _message(message, task.header(code=NEED_BASE).to_config(), {})


def _message(
    message: Message,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parcel: bytes = b"",
) -> Message:
    content = RecordDict(
        {"header": ConfigRecord(dict(config)), "metrics": MetricRecord(dict(metrics))}
    )
    if parcel:
        array = Array("uint8", (len(parcel),), "safetensors", parcel)
        content["arrays"] = ArrayRecord({"weights": array})
    return Message(content, reply_to=message)


class CodeDiffersError(RuntimeError):
    """The server runs another `core`."""


class NotOursError(RuntimeError):
    """An order for a phase that this site has no part in."""


def _code_of(error: Exception) -> str:
    if isinstance(error, CodeDiffersError):
        return "E_CODE"
    if isinstance(error, NotOursError):
        return "E_POLICY"
    if isinstance(error, NonFiniteError):
        return "E_NONFINITE"
    if out_of_memory(error):
        return "E_MEMORY"
    if isinstance(error, UserError):
        by_field = {
            "cases": "E_DATA",
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


def _named(message: Message) -> Order:
    """The order as far as its names can be used: without any where one is no name."""
    try:
        return _order_of(message)
    except UserError:
        return Order("", "", 0, "")


def _log(context: Context, error: Exception) -> str:
    """Writes the whole error to the site's own disk; returns the site's name, "" if unknown.

    At a real site the guard keeps what is printed; a simulated one has a log of its own.
    """
    try:
        site = site_of(context)
    except Exception:
        traceback.print_exception(error)
        traceback.print_exc()
        return ""
    if not site.simulated:
        traceback.print_exception(error)
    else:
        try:
            site.run_folder.mkdir(parents=True, exist_ok=True)
            append_log(site.run_folder / "client.log", "".join(traceback.format_exception(error)))
        except OSError:  # must not reach Flower, which would send its text
            traceback.print_exc()
    return site.name
