"""The one way out, for the sites of a simulation: what a hospital would stop, the desk sees.

Without a policy, which a simulated site does not have, and without receipts.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from core.logfile import append_log
from core.plan.load import plan_from_json
from hnfed.guard import exit, order
from hnfed.guard.masking_session import Keyring
from hnfed.guard.order import Asked
from hnfed.guard.outbox import OutboxError
from hnfed.guard.simulated_keys import simulated_keyring

HEADER, METRICS, ARRAYS = "header", "metrics", "arrays"


def release(message: Message, reply: Message, context: Context) -> Message:
    """What of a simulated site's reply leaves; a refusal in place of what may not.

    Args:
        message: the order.
        reply: of the app.
        context: that the app was given.
    """
    return let_out(message, reply, context, site_of, keyring_of)


def let_out(
    message: Message,
    reply: Message,
    context: Context,
    named: Callable[[Context], str],
    keys: Callable[[Context, Asked], Keyring | None],
) -> Message:
    """`release`, where the site's name and its keys are found by these functions."""
    site, asked = "", None
    try:
        site = named(context)
        asked = read(message, context, site)
        record = message.content.array_records.get(ARRAYS)
        incoming = _plain(record) if record else b""
        released = exit.release(
            _reply_of(reply),
            asked,
            None,
            exit.Known(incoming=incoming if isinstance(incoming, bytes) else b""),
            keyring=keys(context, asked),
        )
    except Exception as error:
        _log(context, site, error)
        released = exit.refusal(exit.code_of(error), site, asked)
    return _message(message, released)


def _log(context: Context, site: str, error: Exception) -> None:
    """Into the site's own log, as the app does with an error of its own; else to the screen."""
    try:
        if not site:
            raise ValueError("a site without a name has no log")
        folder = Path(json.loads(str(context.run_config["local"]))["out"]) / "sites" / site
        folder.mkdir(parents=True, exist_ok=True)
        append_log(folder / "client.log", "".join(traceback.format_exception(error)))
    except (OSError, KeyError, ValueError):  # must not reach Flower, which would send its text
        traceback.print_exception(error)
        traceback.print_exc()


def keyring_of(context: Context, asked: Asked) -> Keyring | None:
    """What a simulated site masks with; None where the plan does not ask for sums."""
    if not asked.plan.federation.secure_aggregation:
        return None
    folder = Path(json.loads(str(context.run_config["local"]))["out"]) / "sites"
    return simulated_keyring(folder, asked.site, asked.plan.site_names)


def site_of(context: Context) -> str:
    """The name of a simulated site: by its partition, from the map of the run."""
    sites = json.loads(str(context.run_config["local"]))["sites"]
    return str(sorted(sites)[int(context.node_config["partition-id"])])


def read(message: Message, context: Context, site: str) -> Asked:
    """The order, by the same looks as at a hospital."""
    kind = message.metadata.message_type
    if kind not in order.KINDS:
        raise order.OrderError(f"a message of kind {kind[:40]!r}")
    plan = plan_from_json(str(context.run_config["plan"]))
    records = {name: _plain(record) for name, record in message.content.items()}
    return order.read(kind, site, str(context.run_config["run_id"]), plan, records)


def _reply_of(reply: Message) -> exit.Reply:
    records = {name: _plain(record) for name, record in reply.content.items()}
    header, metrics = records.pop(HEADER, None), records.pop(METRICS, None)
    parcel = records.pop(ARRAYS, b"")
    if not isinstance(header, Mapping) or not isinstance(metrics, Mapping) or records:
        raise OutboxError("records: not a header, numbers and one parcel")
    if not isinstance(parcel, bytes):
        raise OutboxError("arrays: no parcel")
    return exit.Reply(header, metrics, parcel)


def _plain(record: Any) -> dict[str, Any] | bytes:
    if isinstance(record, ArrayRecord):
        (array,) = record.values()
        data: bytes = array.data
        return data
    return dict(record)


def _message(message: Message, reply: exit.Reply) -> Message:
    content = RecordDict(
        {HEADER: ConfigRecord(dict(reply.config)), METRICS: MetricRecord(dict(reply.metrics))}
    )
    if reply.parcel:
        array = Array("uint8", (len(reply.parcel),), "safetensors", reply.parcel)
        content[ARRAYS] = ArrayRecord({"weights": array})
    return Message(content, reply_to=message)
