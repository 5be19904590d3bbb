"""Flower ClientApp: unpack, work, pack. Nothing but codes and numbers leaves, come what may."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from client import work
from client.personal import Personal, cached_base, keep_base
from client.site import Site, simulated_site
from client.site_file import site_from_file
from core.config import plan_from_json
from core.errors import UserError
from core.logfile import append_log
from core.models.stages import unique_state
from core.optimisation import DeviceMemoryError, NonFiniteError, resolve_device
from core.parcel import packed, unpacked
from core.phases import fingerprint, network, parts_of, start_state
from core.plan import Phase, Plan
from core.protocol import NEED_BASE, OK, Header, Order, Result
from core.text import shown
from hnfed.guard.approval_guard import STARTED, TOLD
from hnfed.guard.outbox import OutboxError, write_receipt
from hnfed.guard.outbox import require_allowed as require_leaving
from hnfed.guard.policy import Policy, PolicyError, read_policy
from hnfed.guard.policy import require_allowed as require_plan

app = ClientApp()
Handler = Callable[[Message, Context], Message]
END_SECONDS = 60.0
SHOWN = 400  # characters of a line for the person at the site
EXPIRED: WeakSet[threading.Thread] = (
    WeakSet()
)  # threads whose order was ended: they release nothing
NOTHING = {"cases": 0, "steps": 0, "skipped": 0, "seconds": 0.0}  # metrics of a refusal


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


def policy_of(context: Context) -> Policy | None:
    """The site's policy; a simulated site has none, a real one must."""
    if "policy" in context.node_config:
        return read_policy(Path(str(context.node_config["policy"])))
    if "site" in context.node_config:
        raise UserError("policy", "(missing)", "start the node with `hnfed client KIT`")
    return None


def guarded(handler: Handler) -> Handler:
    """No exception leaves the site: its text may hold a patient's name. The site's log gets it."""

    @functools.wraps(handler)
    def safe(message: Message, context: Context) -> Message:
        try:
            _say(message, context, "begun")
            reply = _within_limits(handler, message, context)
            lacks = reply.content["header"]["code"] == NEED_BASE
            _say(message, context, "asks for the frozen part first" if lacks else "answered")
            return reply
        except Exception as error:
            try:
                return _refusal(message, context, error)
            except Exception:  # telling of an error failed too
                traceback.print_exc()
                return _message(message, Header("", "", "", 0, "E_INTERNAL").to_config(), NOTHING)

    return safe


def _refusal(message: Message, context: Context, error: Exception) -> Message:
    """The reply that tells the server of an error: a code, and whose it is."""
    name = _log(context, error)
    order, code = _named(message), _code_of(error)
    about = str(error) if isinstance(error, PolicyError) else "see client.log"
    _say(message, context, f"not done, the server is told {code}: {type(error).__name__}, {about}")
    config = Header(name, order.run, order.phase, order.round, code).to_config()
    try:
        write_receipt(site_of(context).run_folder, "error", config, NOTHING, {})
    except Exception:  # a site that is not set up has no place for receipts
        traceback.print_exc()
    return _message(message, config, NOTHING)


def _say(message: Message, context: Context, what: str) -> None:
    """A line for the person at the site, on this machine only; a simulation has none."""
    if "policy" not in context.node_config:
        return
    order = _named(message)
    task = f"{order.phase} round {order.round}, {order.task}" if order.phase else "who is there"
    line = f"run {order.run or '?'}: {task}: {what}"
    with contextlib.suppress(OSError):
        print(TOLD + shown(line, SHOWN), flush=True)


def _within_limits(handler: Handler, message: Message, context: Context) -> Message:
    """The handler's reply, in the time and GPU memory that the site's policy gives it.

    Raises:
        OvertimeError: it takes longer. At a site the process ends after its reply, and with it what
            hangs; a minute later it is ended in any case.
    """
    policy = policy_of(context)
    if policy is None:
        return handler(message, context)
    device = resolve_device(site_of(context).device)
    if device.type == "cuda" and policy.gpu_memory_share < 1.0:
        torch.cuda.set_per_process_memory_fraction(policy.gpu_memory_share, device)
    done: list[Message] = []
    failed: list[BaseException] = []

    def work_on() -> None:
        try:
            done.append(handler(message, context))
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=work_on, daemon=True)
    worker.start()
    worker.join(policy.longest_s)
    if failed:
        raise failed[0] if isinstance(failed[0], Exception) else RuntimeError from failed[0]
    if not done:
        EXPIRED.add(worker)
        end = threading.Timer(END_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        raise OvertimeError(f"longest_s: {policy.longest_s}")
    return done[0]


@app.query()
@guarded
def query(message: Message, context: Context) -> Message:
    """Who the site is and what it has; builds its cache where needed."""
    site, plan = site_of(context), plan_from_json(str(context.run_config["plan"]))
    policy = policy_of(context)
    if policy is not None:
        require_plan(plan, site.name, policy)
    told = work.describe(site, plan, fingerprint())
    if policy is not None and not policy.counts:
        hidden = dict.fromkeys(told.left_out, -1)
        told = replace(
            told, cases=(-1, -1, -1), annotated=(), voxels=(), totals=(), left_out=hidden
        )
    config, metrics = told.to_records()
    return _release(message, site, "query", config, metrics)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """One round of training."""
    site, plan, order = _unpack(message, context)
    phase = plan.phase(order.phase)
    state = _incoming(message, site, plan, order)
    if state is None:
        return _need_base(message, site, order)
    policy = policy_of(context)
    if phase.share == "none":
        header, result = work.train_personal(site, plan, phase, order, state)
        metrics = _told(result, policy).to_metrics(phase.organs)
        return _release(message, site, "train", header.to_config(), metrics)
    trained, result = work.train_shared(site, plan, phase, order, state)
    header = Header(site.name, order.run, order.phase, order.round, OK)
    model = network(plan, phase)
    shared = parts_of(model, plan, phase).shared
    shapes = {n: tuple(v.shape) for n, v in unique_state(model).items() if n in shared}
    metrics = _told(result, policy).to_metrics(phase.organs)
    leaving = {n: trained[n].cpu() for n in shared}
    return _release(message, site, "train", header.to_config(), metrics, leaving, shapes)


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Scores of the last weights on val, or of the chosen best on test."""
    site, plan, order = _unpack(message, context)
    phase = plan.phase(order.phase)
    state = _incoming(message, site, plan, order)
    if state is None:
        return _need_base(message, site, order)
    result = work.evaluate(site, plan, phase, order, state)
    header = Header(site.name, order.run, order.phase, order.round, OK)
    metrics = _told(result, policy_of(context)).to_metrics(phase.organs)
    return _release(message, site, "evaluate", header.to_config(), metrics)


def _unpack(message: Message, context: Context) -> tuple[Site, Plan, Order]:
    order = _order_of(message)
    plan = plan_from_json(str(context.run_config["plan"]))
    if order.fingerprint != fingerprint():
        raise CodeDiffersError
    site, policy = site_of(context), policy_of(context)
    if policy is not None:
        require_plan(plan, site.name, policy)
    if site.name not in plan.phase(order.phase).sites:  # what the policy let pass is not for it
        raise PolicyError("phase")
    return site, plan, order


def _incoming(message: Message, site: Site, plan: Plan, order: Order) -> dict[str, Tensor] | None:
    """Base and shared weights together; None where the base is not here yet (D8)."""
    state: dict[str, Tensor] = {}
    phase = plan.phase(order.phase)
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
        own = Personal(site.phase_folder(before.name)).best()
        state |= start_state(plan, phase, (own, before.organs))
    if "arrays" in message.content:
        state |= _arrays(message, "arrays", _asked(plan, phase, "shared"))
    return state


def _asked(plan: Plan, phase: Phase, part: str) -> dict[str, Tensor]:
    """The tensors that a part of the phase consists of (names, shapes, types)."""
    model = network(plan, phase)
    names = getattr(parts_of(model, plan, phase), part)
    state = unique_state(model)
    return {name: state[name] for name in names}


def _arrays(message: Message, key: str, asked: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        state = unpacked(values[0].data, asked)
    except ValueError as error:
        raise UserError(key, str(error), remedy) from None
    told = {n: (tuple(t.shape), t.dtype) for n, t in state.items()}
    if told != {n: (tuple(t.shape), t.dtype) for n, t in asked.items()}:
        raise UserError(key, f"{len(state)} tensors", remedy, problem="not those of the phase")
    return state


def _need_base(message: Message, site: Site, order: Order) -> Message:
    header = Header(site.name, order.run, order.phase, order.round, NEED_BASE)
    return _release(message, site, "train", header.to_config(), {})


def _told(result: Result, policy: Policy | None) -> Result:
    """The result without what the site's policy keeps back; tells how long the process took."""
    result = replace(result, startup=_startup(result.seconds))
    if policy is not None and not policy.counts:
        result = replace(result, cases=0, annotated=(), steps=0, skipped=0)
    if policy is not None and not policy.scores:
        result = replace(result, scores={})
    return result


def _startup(working_s: float) -> float:
    """Seconds from the start of this message's process to its work; 0 in a simulation."""
    started = os.environ.get(STARTED, "")
    return max(time.time() - float(started) - working_s, 0.0) if started else 0.0


def _release(
    message: Message,
    site: Site,
    kind: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Message:
    """The one way out: checked against the allow-list, a receipt written, then sent."""
    require_leaving(config, metrics, state or {}, shapes or {})
    parcel = packed(state) if state else b""
    if threading.current_thread() in EXPIRED:
        raise OvertimeError("its refusal has gone out already")
    write_receipt(site.run_folder, kind, config, metrics, state or {})
    return _message(message, config, metrics, parcel)


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


class OvertimeError(RuntimeError):
    """An order took longer than the site's policy allows."""


def _code_of(error: Exception) -> str:
    if isinstance(error, OvertimeError):
        return "E_TIME"
    if isinstance(error, CodeDiffersError):
        return "E_CODE"
    if isinstance(error, PolicyError):
        return "E_POLICY"
    if isinstance(error, OutboxError):
        return "E_OUTBOX"
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


def _named(message: Message) -> Order:
    """The order as far as its names can be used: without any where one is no name."""
    try:
        return _order_of(message)
    except UserError:
        return Order("", "", 0, "")


def _log(context: Context, error: Exception) -> str:
    """Writes the whole error to the site's own disk; returns the site's name, "" if unknown."""
    try:
        site = site_of(context)
    except Exception:
        traceback.print_exception(error)
        return ""
    try:
        site.run_folder.mkdir(parents=True, exist_ok=True)
        append_log(site.run_folder / "client.log", "".join(traceback.format_exception(error)))
    except OSError:  # must not reach Flower, which would send its text
        traceback.print_exception(error)
    return site.name
