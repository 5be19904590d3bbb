"""The way out of a simulated site: the checks and masks of a real one, without kit and receipts.

A simulation hands `release` to its engine by name, so that it is applied outside of the code that
trains. Keys of the sites are made where they are first needed; nobody has to confirm them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from core.config import plan_from_json
from core.plan import Plan
from core.protocol import Order
from hnfed.guard.exit import Reply, code_of, refusal
from hnfed.guard.exit import release as released
from hnfed.guard.masking_session import Keyring
from hnfed.guard.order import Asked

FOLDER, KEY, PUBLIC = "secure", "node.key", "node.pub"
NOTHING = {"run": "", "phase": "", "round": 0, "task": ""}


def release(order: Message, reply: Message, context: Context) -> Message:
    """The reply as a site would let it out; a refusal in place of one that it would not.

    Args:
        order: that the reply answers.
        reply: of the app; one that says what went wrong passes as it is.
        context: of the simulated site.
    """
    if reply.has_error():
        return reply
    local = json.loads(str(context.run_config["local"]))
    site = sorted(local["sites"])[int(context.node_config["partition-id"])]
    plan = plan_from_json(str(context.run_config["plan"]))
    sites = Path(local["out"]) / "sites"
    keyring = None
    if plan.federation.secure_aggregation:
        keyring = simulated_keyring(sites, site, plan.site_names)
    return let_out(order, reply, plan, site, keyring)


def let_out(
    order: Message, reply: Message, plan: Plan, site: str, keyring: Keyring | None
) -> Message:
    """`release` for a site whose plan and keys are known."""
    asked = _asked(order, plan, site)
    try:
        made = released(_records(reply), asked, None, keyring=keyring, incoming=_parcel(order))
    except Exception as error:
        code = code_of(error)
        print(f"{site} lets nothing out ({code}): {error}", file=sys.stderr, flush=True)
        made = refusal(code, site, asked)
    return _message(order, made)


def simulated_keyring(sites: Path, site: str, names: Sequence[str]) -> Keyring:
    """The keyring of a simulated site.

    Args:
        sites: folder in which every site has one of its own.
        site: whose keyring it is.
        names: of all sites.
    """
    folders = {name: sites / name / FOLDER for name in (*names, site)}
    sites.mkdir(parents=True, exist_ok=True)
    with FileLock(sites / ".keys.lock"):
        for folder in folders.values():
            if not (folder / PUBLIC).is_file():
                _make(folder)
    key = serialization.load_pem_private_key((folders[site] / KEY).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    peers = {name: _public(folders[name]) for name in names if name != site}
    return Keyring(site, key, peers, folders[site])


def _asked(message: Message, plan: Plan, site: str) -> Asked:
    record = message.content.get("order")
    values = dict(record) if isinstance(record, ConfigRecord) else {}
    order = Order.from_config(NOTHING | values)
    phase = next((p for p in plan.phases if p.name == order.phase), None)
    kind = message.metadata.message_type.split(".")[0]
    return Asked(kind, site, order.run, plan, order, phase)


def _records(message: Message) -> Reply:
    config, metrics = message.content["header"], message.content.get("metrics", MetricRecord())
    assert isinstance(config, ConfigRecord)
    assert isinstance(metrics, MetricRecord)
    return Reply(dict(config), dict(metrics), _parcel(message))


def _message(order: Message, reply: Reply) -> Message:
    content = RecordDict(
        {"header": ConfigRecord(dict(reply.config)), "metrics": MetricRecord(dict(reply.metrics))}
    )
    if reply.parcel:
        array = Array("uint8", (len(reply.parcel),), "safetensors", reply.parcel)
        content["arrays"] = ArrayRecord({"weights": array})
    return Message(content, reply_to=order)


def _parcel(message: Message) -> bytes:
    record = message.content.get("arrays")
    if not isinstance(record, ArrayRecord):
        return b""
    (array,) = record.values()
    return array.data


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    descriptor = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    (folder / PUBLIC).write_bytes(public)


def _public(folder: Path) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key((folder / PUBLIC).read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
