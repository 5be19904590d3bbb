"""Secure aggregation on Flower's messages: what came in, and the reply as it may leave."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from core.parcel import unpacked
from core.plan import Plan
from core.protocol import Order
from hnfed.guard.masking import Asked, Keyring, secured

NOTHING = {"run": "", "phase": "", "round": 0, "task": ""}


def masked_message(asked: Message, reply: Message, plan: Plan, keyring: Keyring) -> Message:
    """The reply of a site to a message, as it may leave under secure aggregation.

    Args:
        asked: as it came.
        reply: what the site's code made of it, in the form that the outbox lets pass.
        plan: of the run; asks for secure aggregation.
        keyring: of the site.

    Raises:
        MaskingError: nothing may leave.
    """
    order = asked.content.get("order")
    values = dict(order) if isinstance(order, ConfigRecord) else {}
    about = Asked(
        kind=asked.metadata.message_type.split(".")[0],
        order=Order.from_config(NOTHING | values),
        parcel=_parcel(asked),
        plan=plan,
    )
    config, metrics = reply.content["header"], reply.content.get("metrics", MetricRecord())
    assert isinstance(config, ConfigRecord)
    assert isinstance(metrics, MetricRecord)
    parcel = _parcel(reply)
    state = unpacked(parcel) if parcel else {}
    head, numbers, weights = secured(about, dict(config), dict(metrics), state, keyring)
    content = RecordDict({"header": ConfigRecord(head), "metrics": MetricRecord(numbers)})
    if weights:
        array = Array("uint8", (len(weights),), "safetensors", weights)
        content["arrays"] = ArrayRecord({"weights": array})
    return Message(content, reply_to=asked)


def _parcel(message: Message) -> bytes:
    record = message.content.get("arrays")
    if not isinstance(record, ArrayRecord):
        return b""
    (array,) = record.values()
    return array.data
