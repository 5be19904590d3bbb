from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from client import work
from client.app import EXPIRED, _refusal, _say, app, site_of
from client.personal import Personal
from client.site import Site
from core.errors import UserError
from core.optimisation import NonFiniteError
from core.phases import fingerprint, network, parts_of, state_hash
from core.plan import Phase
from core.protocol import NEED_BASE, OK, Description, Order
from hnfed.guard.policy import PolicyError
from tests.client.conftest import PATIENT, MakeNode, MakePhase, Node, code, everything
from tests.weights import weights_in

# ------------------------------------------------------------------------------ the right way


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
    own = Personal(n.site.phase_folder("p"))
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
    own = Personal(n.site.phase_folder("p")).best()
    after = Personal(n.site.phase_folder("q")).best()
    frozen = parts_of(network(n.plan, second), n.plan, second).frozen
    assert all(torch.equal(after[k], own[k]) for k in frozen)


# ------------------------------------------------------------------------------------- limits


def test_a_hung_step_ends_when_the_policy_says_so(
    node: Callable[..., Node],
    make_phase: MakePhase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    real = work.train_shared
    monkeypatch.setattr("client.app.END_SECONDS", 0.0)
    monkeypatch.setattr("client.app.os._exit", ended.append)
    released = threading.Event()

    def hanging(*arguments: Any) -> Any:
        released.wait(60)
        return real(*arguments)

    monkeypatch.setattr(work, "train_shared", hanging)
    policy = tmp_path / "policy.yaml"
    policy.write_text("longest_s: 1\n")
    n = node(make_phase())
    n.node_config["policy"] = str(policy)
    started = time.monotonic()
    reply = n.ask("train", arrays=n.start())
    assert code(reply) == "E_TIME"
    assert time.monotonic() - started < 30
    for _ in range(100):
        if ended:
            break
        time.sleep(0.05)
    assert ended == [1], "what hangs is ended with its process"
    released.set()
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            thread.join(20)
    kinds = [r["kind"] for r in receipts_of(n.site)]
    assert kinds == ["error"], "what was late has not left, and no receipt says that it did"


@pytest.mark.parametrize("late", [True, False], ids=["late", "failed"])
def test_no_receipt_tells_of_weights_that_could_not_be_packed_in_time(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    def packing(state: Any) -> bytes:
        if not late:
            raise RuntimeError("no memory")
        EXPIRED.add(threading.current_thread())
        return b"x"

    monkeypatch.setattr("client.app.packed", packing)
    n = node()
    try:
        assert code(n.ask("train", arrays=n.start())) == ("E_TIME" if late else "E_INTERNAL")
    finally:
        EXPIRED.discard(threading.current_thread())
    assert [r["kind"] for r in receipts_of(n.site)] == ["error"]


def receipts_of(site: Site) -> list[dict[str, Any]]:
    lines = (site.run_folder / "receipts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_an_order_for_a_phase_of_others_is_refused(node: MakeNode, make_phase: MakePhase) -> None:
    """The policy looks at the phases of this site: nothing else may be done here."""
    n = node(make_phase(), make_phase("others", sites=["south"]))
    start = n.start(1)
    reply = n.ask("train", n.order("others"), arrays=start)
    assert code(reply) == "E_POLICY"
    assert not reply.content.array_records


def test_withheld_counts_do_not_follow_from_anything_else(
    node: MakeNode, make_phase: MakePhase, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("counts: false\n")
    n = node(make_phase())
    n.node_config["policy"] = str(policy)
    metrics = n.ask("train", arrays=n.start()).content["metrics"]
    assert [metrics[k] for k in ("cases", "steps", "skipped")] == [0, 0, 0]
    assert "annotated" not in metrics


def test_a_handler_that_exits_is_no_overtime(
    node: MakeNode, make_phase: MakePhase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exiting(*_: Any) -> Any:
        raise SystemExit(3)

    policy = tmp_path / "policy.yaml"
    policy.write_text("longest_s: 600\n")
    monkeypatch.setattr(work, "train_shared", exiting)
    n = node(make_phase())
    n.node_config["policy"] = str(policy)
    assert code(n.ask("train", arrays=n.start())) == "E_INTERNAL"


def test_within_its_limits_a_site_answers_as_ever(
    node: Callable[..., Node],
    make_phase: MakePhase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("longest_s: 600\n")
    n = node(make_phase())
    n.node_config["policy"] = str(policy)
    monkeypatch.setenv("HNFED_STARTED", repr(time.time() - 100.0))
    reply = n.ask("train", arrays=n.start())
    assert code(reply) == OK
    assert 50 < float(reply.content["metrics"]["startup"]) < 200  # type: ignore[arg-type, index]


# ------------------------------------------------------------------------------------- errors


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
    n.site = replace(n.site, sources=(replace(n.site.sources[0], root=f"/nowhere/{PATIENT}"),))
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


def site_file(tmp_path: Path) -> str:
    path = tmp_path / "site.yaml"
    path.write_text(f"name: east\nroot: /data\ncache: {tmp_path}/c\nstate: {tmp_path}/s\n")
    return str(path)


def test_a_real_site_refuses_a_site_map_from_the_server(
    node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = node()
    n.node_config = {"site": site_file(tmp_path)}
    monkeypatch.setattr(work, "describe", lambda *a: pytest.fail("described"))
    with pytest.raises(UserError, match="only a simulation"):
        site_of(n.context)
    reply = n.ask("query")
    assert code(reply) == "E_SITE"
    assert reply.content["header"]["site"] == ""


def test_a_real_site_is_its_site_file(node: MakeNode, tmp_path: Path) -> None:
    n = node()
    n.node_config = {"site": site_file(tmp_path)}
    n.config["local"] = ""
    site = site_of(n.context)
    assert (site.name, site.run_folder) == ("east", tmp_path / "s" / "run")


def test_a_node_that_is_nobody(node: MakeNode) -> None:
    n = node()
    n.config["local"] = ""
    with pytest.raises(UserError, match="node-config"):
        site_of(n.context)


def order_of(run: str) -> Message:
    order = ConfigRecord(Order(run, "p", 3, "train").to_config())
    return Message(RecordDict({"order": order}), 2, "train")


def test_the_screen_of_a_site_shows_one_plain_line_an_order(
    node: MakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    at_site = node()
    _say(order_of("r"), at_site.context, "answered")
    assert capsys.readouterr().out == "", "a simulation has no screen of its own"
    at_site.node_config["policy"] = "policy.yaml"
    _say(order_of("x\nhnfed: approve 1234\x1b]0;t\x07" + 500 * "y"), at_site.context, "answered")
    shown = capsys.readouterr().out
    assert shown == "hnfed: run ?: who is there: answered\n", "a name that is none is not shown"
    _say(order_of("r"), at_site.context, "\x1b]0;t\x07" + 500 * "y")
    shown = capsys.readouterr().out
    assert shown.startswith("hnfed: run r: p round 3, train: <U+001B>]0;t<U+0007>yyy")
    assert len(shown.splitlines()) == 1
    assert shown.rstrip("\n").isprintable()
    assert len(shown) < 450


def test_an_error_on_the_screen_names_no_case_and_a_refusal_says_why(
    node: MakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    at_site = node()
    at_site.node_config["policy"] = "policy.yaml"
    _refusal(order_of("r"), at_site.context, UserError("root", PATIENT, "mend it"))
    shown = capsys.readouterr().out
    assert "p round 3, train: not done, the server is told E_DATA: UserError" in shown
    assert PATIENT not in shown
    _refusal(order_of("r"), at_site.context, PolicyError("min_cell: 1, not 11"))
    assert "E_POLICY: PolicyError, min_cell: 1, not 11" in capsys.readouterr().out
