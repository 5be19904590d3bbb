from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from core.wire.countersignature import Countersignature
from core.wire.messages import Order
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.countersigned import genuine
from server.receipts import Receipts
from server.strategy import HEADER

pytestmark = pytest.mark.usefixtures("task_identity")


def reply(receipt: object) -> Message:
    content = RecordDict({HEADER: ConfigRecord({"receipt": receipt})})  # type: ignore[dict-item]
    return Message(content, 2, "train")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kits")
    provision(Federation("hn", "x", 1, 2, ("nyu",), 30), folder)
    return folder


def test_the_last_receipt_of_a_site_is_countersigned_in_its_next_order(
    tmp_path: Path, kits: Path
) -> None:
    receipts = Receipts(tmp_path / "receipts.json")
    receipts.signs_with(kits / "server")
    assert receipts.fields("nyu") == {}
    receipts.seen("nyu", reply("a" * 64))
    receipts.seen("nyu", reply("b" * 64))
    order = Order("run", "p", 1, "train", **receipts.fields("nyu"))
    order = Order.from_config(order.to_config())
    mark = Countersignature(order.receipt, order.receipt_signature, order.receipt_certificate)
    assert mark.receipt == "b" * 64
    assert genuine(mark, "nyu", (kits / "nyu" / "ca.crt").read_bytes())
    assert Receipts(tmp_path / "receipts.json").last == {"nyu": "b" * 64}, "kept for --resume"


@pytest.mark.parametrize("told", ["", "A" * 64, "a" * 63, 7, True])
def test_another_word_is_no_receipt(tmp_path: Path, told: object) -> None:
    receipts = Receipts(tmp_path / "receipts.json")
    receipts.seen("nyu", reply(told))
    receipts.seen("nyu", Message(RecordDict(), 2, "train"))
    assert receipts.last == {}


def test_a_simulation_countersigns_nothing(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path / "receipts.json")
    receipts.signs_with(None)
    receipts.signs_with(tmp_path)
    receipts.seen("nyu", reply("a" * 64))
    assert receipts.fields("nyu") == {}
