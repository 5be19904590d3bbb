from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from client import tasks as work
from client.app import app, site_of
from client.personal_weights import Personal, Stamp
from client.prepared import description_of
from core.errors import UserError
from core.plan.load import plan_json
from core.plan.schema import Phase
from core.training.optimisation import NonFiniteError
from core.wire.messages import NEED_BASE, OK, Description
from core.wire.partition import fingerprint, network, parts_of, state_hash
from core.wire.state import packed, rounded, unpacked
from tests.client.conftest import PATIENT, MakeNode, MakePhase, Node, code, everything
from tests.weights import weights_in

# ------------------------------------------------------------------------------ the right way

# What the tiny plan needs of a site: it has three cases and is not augmented.
LAX = "min_cell: 1\nleast_augmentation: 0\nfewest_voxels_channel: 1\n"


def test_query_describes_the_site(node: MakeNode) -> None:
    reply = node().ask("query")
    told = Description.from_records(reply.content["header"], reply.content["metrics"])
    assert (told.site, told.fingerprint, told.cases) == ("north", fingerprint(), (3, 1, 1))
    assert not reply.content.array_records
    assert PATIENT.encode() not in everything(reply)


def test_train_returns_what_is_shared_and_nothing_else(
    node: MakeNode, make_phase: MakePhase
) -> None:
    n = node(make_phase(freeze="encoder"))
    base, digest = n.base()
    shared = {k: v for k, v in n.start().items() if k not in base}
    reply = n.ask("train", n.order(base_hash=digest), base=base, arrays=shared)
    assert code(reply) == OK
    back = weights_in(reply.content["arrays"])
    assert set(back) == set(shared)
    assert set(back).isdisjoint(base)
    assert any(not torch.equal(back[k], shared[k]) for k in back)
    assert PATIENT.encode() not in everything(reply)


def test_evaluate_returns_no_weights(node: MakeNode) -> None:
    n = node()
    for task, split in (("validate", "val"), ("test", "test")):
        reply = n.ask("evaluate", n.order(task=task), arrays=n.start())
        assert code(reply) == OK
        assert not reply.content.array_records
        assert f"{split}.dice" in reply.content["metrics"]


# ------------------------------------------------------------------------------------ the base


def test_the_base_is_asked_for_and_then_kept(node: MakeNode, make_phase: MakePhase) -> None:
    n = node(make_phase(freeze="encoder"))
    base, digest = n.base()
    shared = {k: v for k, v in n.start().items() if k not in base}
    order = n.order(base_hash=digest)
    first = n.ask("train", order, arrays=shared)
    assert code(first) == NEED_BASE
    assert not first.content.array_records
    assert code(n.ask("train", order, arrays=shared, base=base)) == OK
    assert code(n.ask("train", order, arrays=shared)) == OK
    assert code(n.ask("evaluate", replace(order, task="validate"), arrays=shared)) == OK


def test_a_base_damaged_on_disk_is_asked_for_again(node: MakeNode, make_phase: MakePhase) -> None:
    n = node(make_phase(freeze="encoder"))
    base, digest = n.base()
    shared = {k: v for k, v in n.start().items() if k not in base}
    order = n.order(base_hash=digest)
    n.ask("train", order, arrays=shared, base=base)
    path = n.site.base_folder / f"{digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert code(n.ask("train", order, arrays=shared)) == NEED_BASE
    assert code(n.ask("train", order, arrays=shared, base=base)) == OK


def test_a_base_under_a_wrong_hash_is_refused(node: MakeNode, make_phase: MakePhase) -> None:
    n = node(make_phase(freeze="encoder"))
    base, _ = n.base()
    shared = {k: v for k, v in n.start().items() if k not in base}
    assert code(n.ask("train", n.order(base_hash="0" * 64), arrays=shared, base=base)) == "E_SITE"


# ----------------------------------------------------------------------------- personal phases


def stored(n: Node, index: int = 0) -> Personal:
    phase = n.plan.phases[index]
    return Personal(n.site.phase_folder(phase.name), Stamp.of("run", n.plan, phase))


def personal_node(node: MakeNode, make_phase: MakePhase, *more: Phase) -> Node:
    return node(make_phase(freeze="encoder", share="none"), *more)


def test_a_personal_phase_sends_no_arrays(node: MakeNode, make_phase: MakePhase) -> None:
    n = personal_node(node, make_phase)
    base, digest = n.base()
    assert set(base) == set(n.start())
    for round_ in (1, 2):
        order = n.order(round_=round_, base_hash=digest, base_round=round_ - 1)
        reply = n.ask("train", order, **({"base": base} if round_ == 1 else {}))
        assert code(reply) == OK
        assert not reply.content.array_records
        assert reply.content["metrics"]["cases"] == 0
        assert "annotated" not in reply.content["metrics"]
    reply = n.ask("evaluate", n.order(task="test", round_=2, base_hash=digest, best_round=1))
    assert code(reply) == OK
    assert not reply.content.array_records
    own = stored(n)
    assert own.exported_round() == 1  # the round that the server names, whatever the site's own
    assert state_hash(own.load(1).state) == state_hash(own.best(), sorted(own.load(1).state))


def test_a_round_that_the_site_does_not_have(node: MakeNode, make_phase: MakePhase) -> None:
    n = personal_node(node, make_phase)
    base, digest = n.base()
    order = n.order(round_=6, base_hash=digest, base_round=5)
    assert code(n.ask("train", order, base=base)) == "E_STATE"


def test_a_personal_phase_may_start_from_another_ones_weights(
    node: MakeNode, make_phase: MakePhase
) -> None:
    second = make_phase("q", organs=["Parotid_L"], init="p", freeze="encoder", share="none")
    n = personal_node(node, make_phase, second)
    base, digest = n.base()
    n.ask("train", n.order(base_hash=digest), base=base)
    reply = n.ask("train", n.order("q"))
    assert code(reply) == OK
    own, after = stored(n).best(), stored(n, 1).best()
    frozen = parts_of(network(n.plan, second), n.plan, second).frozen
    assert all(torch.equal(after[k], own[k]) for k in frozen)


# ------------------------------------------------------------------------------------- errors


def test_an_order_for_a_phase_of_others_is_refused(node: MakeNode, make_phase: MakePhase) -> None:
    """The policy looks at the phases of this site: nothing else may be done here."""
    n = node(make_phase(), make_phase("others", sites=["south"]))
    start = n.start(1)
    reply = n.ask("train", n.order("others"), arrays=start)
    assert code(reply) == "E_POLICY"
    assert not reply.content.array_records


ERRORS = [
    (RuntimeError(f"cannot read {PATIENT}"), "E_INTERNAL"),
    (ValueError(f"{PATIENT}"), "E_INTERNAL"),
    (UserError("cache", f"/data/{PATIENT}", "mend it"), "E_SITE"),
    (UserError("entries", PATIENT, "add cases"), "E_DATA"),
    (UserError("base_round", PATIENT, "resume"), "E_STATE"),
    (MemoryError(PATIENT), "E_MEMORY"),
    (torch.OutOfMemoryError(PATIENT), "E_MEMORY"),
    (NonFiniteError("loss", PATIENT, "lower train.lr"), "E_NONFINITE"),
    (KeyError(PATIENT), "E_INTERNAL"),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_leaves_as_its_code_and_stays_whole_in_the_log(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    n = node()

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(work, "train_shared", fail)
    reply = n.ask("train", n.order(round_=7), arrays=n.start())
    assert code(reply) == expected
    header = reply.content["header"]
    assert (header["site"], header["run"], header["phase"], header["round"]) == (
        "north",
        "run",
        "p",
        7,
    )
    assert not reply.has_error()
    assert not reply.content.array_records
    found = everything(reply)
    assert b"DOE" not in found
    assert b"Jane" not in found
    log = (n.site.run_folder / "client.log").read_text()
    assert PATIENT in log
    assert "Traceback" in log


def test_a_log_that_cannot_be_written_leaves_no_text_either(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = node()
    message = n.order("nowhere")

    def full(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "denied", f"/data/{PATIENT}/client.log")

    monkeypatch.setattr(Path, "mkdir", full)
    reply = n.ask("train", message, arrays={})
    assert not reply.has_error()
    assert code(reply) != OK
    assert PATIENT.encode() not in everything(reply)


def test_the_log_grows(node: MakeNode) -> None:
    n = node()
    for _ in range(2):
        n.ask("train", n.order("nowhere"), arrays=n.start())
    assert (n.site.run_folder / "client.log").read_text().count("Traceback") >= 2


def test_an_error_in_query_evaluate_and_an_empty_message(node: MakeNode) -> None:
    n = node()
    n.site = replace(n.site, cache=Path(f"/nowhere/{PATIENT}"))
    for kind in ("query", "train", "evaluate"):
        message = Message(RecordDict(), 2, kind)
        message.metadata.__dict__["_message_id"] = "1"
        reply = app(message, n.context)
        assert code(reply) != OK
        assert PATIENT.encode() not in everything(reply)
    assert PATIENT in (n.site.run_folder / "client.log").read_text()


def test_other_code_is_refused_before_anything_is_done(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = node()
    monkeypatch.setattr(work, "train_shared", lambda *a: pytest.fail("trained"))
    for given in ("0" * 64, ""):
        reply = n.ask("train", n.order(fingerprint=given), arrays=n.start())
        assert code(reply) == "E_CODE"


def test_a_plan_that_cannot_be_read_is_an_error_of_the_site(node: MakeNode) -> None:
    n = node()
    n.config["plan"] = json.dumps({"phases": [{"nmae": "x"}]})
    assert code(n.ask("train", n.order(), arrays=n.start())) == "E_SITE"


# ---------------------------------------------------------------------------- who is this node


def test_a_real_site_refuses_a_site_map_from_the_server(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = node()
    n.node_config = {"site": description_of(n.site, "0" * 64, {})}
    monkeypatch.setattr(work, "describe", lambda *a: pytest.fail("described"))
    with pytest.raises(UserError, match="only a simulation"):
        site_of(n.context)
    reply = n.ask("query")
    assert code(reply) == "E_SITE"
    assert reply.content["header"]["site"] == ""


def test_a_real_site_is_what_its_guard_tells(node: MakeNode) -> None:
    n = node()
    told = description_of(n.site, n.site.split_hash(), {"E_EXCLUDED": 2})
    n.node_config, n.config["local"] = {"site": told}, ""
    site = site_of(n.context)
    assert (site.name, site.run_folder, site.secret) == ("north", n.site.run_folder, b"")
    assert site.sources[0].root == "", "no archive"
    assert str(n.site.sources[0].root) not in told
    reply = n.ask("query")
    assert code(reply) == OK
    assert reply.content["metrics"]["left_out.E_EXCLUDED"] == 2


@pytest.mark.parametrize("told", ["{", "[]", '{"name": "x"}', "site.yaml"])
def test_a_site_that_is_told_otherwise(node: MakeNode, told: str) -> None:
    n = node()
    n.node_config, n.config["local"] = {"site": told}, ""
    assert code(n.ask("query")) == "E_SITE"


def test_a_node_that_is_nobody(node: MakeNode) -> None:
    n = node()
    n.config["local"] = ""
    with pytest.raises(UserError, match="hnfed client"):
        site_of(n.context)


def test_in_16_bits_weights_come_and_go_in_half_the_bytes(node: MakeNode) -> None:
    one = node()
    one.plan = replace(one.plan, federation=replace(one.plan.federation, update_bits=16))
    one.config["plan"] = plan_json(one.plan)
    wide = {"arrays": one.start()}
    assert code(one.ask("train", **wide)) == "E_SITE"  # the server sends 32
    reply = one.ask("train", bits=16, **wide)
    assert code(reply) == "OK"
    (array,) = reply.content["arrays"].values()
    assert len(array.data) == len(packed(one.start(), 16))
    assert {t.dtype for t in unpacked(array.data).values()} == {torch.float16}


def test_in_8_bits_weights_come_as_they_are_and_go_as_what_was_added(node: MakeNode) -> None:
    one, other = node(), node()
    replies = []
    for n, bits in ((one, 8), (other, 32)):
        n.plan = replace(n.plan, federation=replace(n.plan.federation, update_bits=bits))
        n.config["plan"] = plan_json(n.plan)
        start = {"arrays": rounded(n.start(), 8)}
        reply = n.ask("train", bits=bits, **start)
        assert code(reply) == "OK"
        replies.append(weights_in(reply.content["arrays"], bits, start["arrays"]))
    (array,) = one.ask("train", bits=8, arrays=one.start()).content["arrays"].values()
    assert len(array.data) == len(packed(one.start(), 8))
    before = rounded(one.start(), 8)
    for name, tensor in replies[1].items():  # as training in 32 bits had it, but for a step
        longest = float((tensor - before[name]).abs().max())
        assert torch.allclose(replies[0][name], tensor, rtol=0, atol=longest / 125 + 1e-7), name
    assert code(one.ask("train", bits=16, arrays=one.start())) == "E_SITE"
