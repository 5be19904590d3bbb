"""What the guard does with messages of a server that means well, and of one that does not."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from core.plan.schema import Train
from core.wire.messages import WIRE
from core.wire.state import packed
from hnfed.deploy.node import Voice, alone
from hnfed.guard import closed, exit, node
from hnfed.guard.approvals import approve, withdraw
from hnfed.guard.fleet import Arrival, FleetError, RunOverError
from hnfed.guard.log import Log
from hnfed.guard.receipts import public_key, read_receipts, verify
from tests.client.conftest import tiny_phase, tiny_plan
from tests.hnfed.guard.conftest import LENIENT, ORGANS, Hospital, Said, Wire

# An app without a network: what it tries, and what it says, is up to each test.
APP = """
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
def header(order, **more):
    told = {{"site": "north", "run": order["run"], "phase": order["phase"], "round": order["round"],
            "code": "OK", "stopped": False, "best_round": 0}}
    return ConfigRecord({{**told, **more}})
def app(message, context):
    order, more = message.content["order"], {{}}
    metrics = {{"cases": 0, "steps": 1, "skipped": 0, "seconds": 0.5}}
    content = RecordDict()
{body}
    content["header"] = header(order, **more)
    content["metrics"] = MetricRecord(metrics)
    return Message(content, reply_to=message)
"""


def bundle_of(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed_files:
        for name, text in files.items():
            packed_files.writestr(name, text)
    return content.getvalue()


def bundle_that(body: str) -> bytes:
    lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
    files = {
        "client/__init__.py": "",
        "core/__init__.py": "",
        "core/wire/messages.py": f"WIRE = {WIRE}\n",
    }
    return bundle_of(**files, **{"client/app.py": APP.format(body=lines)})


def ruled_by(hospital: Hospital, bundle: bytes) -> None:
    """This site approved that bundle, whatever it does."""
    approve(hospital.kit, hashlib.sha256(bundle).hexdigest(), bundle)
    hospital.wire.bundle_content = bundle
    hospital.desk._bundles.clear()


def written(hospital: Hospital) -> set[str]:
    return {str(p.relative_to(hospital.folder)) for p in hospital.folder.rglob("*")}


# ------------------------------------------------------------------------------ the right way


def test_query_train_and_evaluate_pass_the_guard(hospital: Hospital) -> None:
    told = hospital.ask("query")
    assert told.code == "OK", hospital.log
    assert told.metrics["cases"] == [3, 1, 1]
    trained = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert trained.code == "OK", hospital.log
    assert trained.state.keys()
    assert trained.metrics["startup"] > 0
    scored = hospital.ask("evaluate", hospital.order(task="test"), arrays=hospital.start())
    assert scored.code == "OK", hospital.log
    assert scored.parcel == b""
    receipts = read_receipts(hospital.state)["r-000001"]
    assert [r["kind"] for r in receipts] == ["query", "train", "evaluate"]
    assert receipts[1]["bytes"] == sum(t.numel() * t.element_size() for t in trained.state.values())
    assert verify(hospital.state, public_key(hospital.kit.folder / "node.pub")) == []
    assert len({said.config["receipt"] for said in hospital.wire.sent}) == 3
    assert hospital.wire.confirmed == 0, "whoever pulls the content confirms it"
    assert "DOE" not in hospital.log.upper()
    digest = hashlib.sha256(hospital.wire.bundle_content).hexdigest()
    assert [p.name for p in (hospital.state / "guard" / "code").iterdir()] == [digest]
    second = replace(hospital.plan, train=Train(threads=1, deterministic=True, lr=0.011))
    hospital.wire.config = hospital.settings(second)
    refused = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert refused.code == "E_POLICY", "a run keeps the plan that it began with"
    assert refused.parcel == b""
    assert "began with plan" in hospital.log
    (hospital.state / "guard" / "code" / digest / "client" / "more.py").write_text("x = 1\n")
    hospital.wire.config = hospital.settings(hospital.plan)
    again = hospital.ask("evaluate", hospital.order(task="validate"), arrays=hospital.start())
    assert again.code == "OK", hospital.log
    assert not (hospital.state / "guard" / "code" / digest / "client" / "more.py").exists()


# ------------------------------------------------------------------------------- unapproved code


AGENT = """
[tool.flwr.app.components]
agentapp = "agent:app"
serverapp = "agent:app"
"""


def test_an_unapproved_bundle_starts_nothing_and_is_answered_once(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `components.agentapp` Flower's node started a program that nobody guarded."""
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    bundle = bundle_of(**{"pyproject.toml": AGENT, "agent.py": "open('/tmp/ran', 'w')\n"})
    hospital.wire.bundle_content = bundle
    before = written(hospital)
    said = hospital.ask("train", hospital.order())
    assert (said.code, said.parcel) == ("E_BUNDLE", b"")
    assert (hospital.wire.pulled, hospital.wire.confirmed, started) == (0, 1, [])
    kit = "kits/north/pending"
    new = {f"{kit}/{hashlib.sha256(bundle).hexdigest()}.fab", kit}
    logs = {"state/client.log", "state/receipts.jsonl", "state/receipts.lock"}
    assert written(hospital) - before <= new | logs
    assert new <= written(hospital)
    assert hospital.said == [s for s in hospital.said if "is not approved" in s]
    assert len(hospital.said) == 1


def test_a_server_that_sends_what_is_refused_without_end_is_waited_for(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal is a receipt on the disk: as fast as a server can ask they would fill it."""
    message: Any = SimpleNamespace(metadata=SimpleNamespace())
    tree: Any = SimpleNamespace(object_id="0" * 64)
    arrival = Arrival("nonsense", 7, message, tree)
    coming: list[Any] = [arrival] * 8
    pauses: list[float] = []

    class Endless(Wire):
        def receive(self) -> Any:
            if not coming:
                raise FleetError("lost")
            return coming.pop()

    wire: Any = Endless(b"", {})
    monkeypatch.setattr("hnfed.guard.node.time.sleep", pauses.append)
    with pytest.raises(FleetError):
        node.serve(hospital.house, wire)
    assert [said.code for said in wire.sent] == ["E_ORDER"] * 8
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]
    pauses.clear()
    coming += [arrival, arrival]
    monkeypatch.setattr(node.Desk, "handle", lambda *a: True)
    with pytest.raises(FleetError):
        node.serve(hospital.house, wire)
    assert pauses == [], "work is not slowed"
    monkeypatch.setattr(node.Desk, "handle", mock.Mock(side_effect=RunOverError("over")))
    coming += [arrival, arrival]
    with pytest.raises(FleetError):
        node.serve(hospital.house, wire)
    assert pauses == [0.5, 1.0]


def test_an_unapproved_bomb_is_not_opened(hospital: Hospital) -> None:
    bomb = bundle_of(**{"client/app.py": "0" * 200_000_000})
    assert len(bomb) < 10**6
    hospital.wire.bundle_content = bomb
    tracemalloc.start()
    assert hospital.ask("query").code == "E_BUNDLE"
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_approved_bundle_gives_way_to_its_successor(hospital: Hospital) -> None:
    old, new = bundle_that("pass"), bundle_that("pass  # mended")
    ruled_by(hospital, old)
    ruled_by(hospital, new)
    hospital.wire.bundle_content = old
    assert hospital.ask("query").code == "E_BUNDLE"


@pytest.mark.parametrize("name", ["../../planted.py", "/tmp/planted.py", "a//b.py", "a\\b.py", "é"])
def test_a_bundle_with_a_name_that_leads_elsewhere_cannot_be_approved(
    hospital: Hospital, name: str
) -> None:
    with pytest.raises(ValueError, match="do not approve"):
        ruled_by(hospital, bundle_of(**{name: "x"}))


# --------------------------------------------------------------------- settings, plans and orders


@pytest.mark.parametrize(
    "change",
    [
        {"local": '{"sites": {}}'}, {"secret": "x"}, {"plan": 3}, {"run_id": "/etc/cron.d"},
        {"run_id": "../../x"}, {"run_id": "a/b"}, {"run_id": ""}, {"run_id": "guard"},
        {"run_id": "client.log"}, {"run_id": "x" * 200}, {"plan": "x" * 2_000_000},
        {"run_id": "x\nhnfed: say approve"},
    ],
    ids=lambda c: str(c)[:30],
)  # fmt: skip
def test_settings_that_no_run_of_ours_has(hospital: Hospital, change: dict[str, Any]) -> None:
    hospital.wire.config |= change
    before = written(hospital)
    assert hospital.ask("query").code == "E_ORDER"
    logs = {"state/client.log", "state/receipts.jsonl", "state/receipts.lock"}
    assert written(hospital) - before <= logs
    assert hospital.wire.pulled == 0
    assert all("\n" not in line for line in hospital.said)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("query.all", None), ("agent", None), ("train", {"round": 1}),
        ("train", {"run": "r-000002"}), ("train", {"phase": "../x"}), ("train", {"phase": "q"}),
        ("train", {"round": 10**9}), ("train", {"round": -1}), ("train", {"round": True}),
        ("train", {"task": "test"}), ("evaluate", {"task": "train"}),
        ("train", {"base_hash": "../../../etc/passwd"}), ("train", {"organ_factors": [1.0] * 7}),
        ("train", {"voxels": [float("inf"), 1.0]}), ("train", {"extra": "x"}),
        ("train", {"fingerprint": b"x"}), ("train", {"base_round": 10**6}),
    ],
    ids=str,
)  # fmt: skip
def test_orders_that_no_server_of_ours_gives(
    hospital: Hospital, kind: str, order: dict[str, Any] | None
) -> None:
    given = None if order is None else hospital.order() | order
    if order == {"round": 1}:
        given = order
    said = hospital.ask(kind, given)
    assert (said.code, said.parcel) == ("E_ORDER", b"")
    assert not (hospital.state / "guard" / "scratch").exists()


def test_records_that_no_order_of_ours_has(hospital: Hospital) -> None:
    assert hospital.ask("query", arrays=hospital.start()).code == "E_ORDER"
    assert hospital.ask("train", hospital.order(), more=b"x").code == "E_ORDER"


def test_the_policy_comes_before_the_archive_is_opened(hospital: Hospital) -> None:
    """A query for organs that the site forbids built their cache, and counted them."""
    opened: list[str] = []
    house = replace(hospital.house, prepare=lambda *a: opened.append("archive") or ("", {}))
    hospital.desk.house = house
    hospital.policy(*LENIENT, "organs: [Larynx]")
    assert hospital.ask("query").code == "E_POLICY"
    hospital.policy(*LENIENT, "plans: approved")
    assert hospital.ask("query").code == "E_POLICY"
    assert opened == []
    assert any("organs: Brainstem" in line for line in hospital.said)


def test_the_kits_own_policy_counts_the_cases_here(hospital: Hospital) -> None:
    ruled_by(hospital, bundle_that(DESCRIBED))
    assert hospital.ask("query").code == "OK", hospital.log
    hospital.policy(*[r for r in LENIENT if not r.startswith("fewest_cases")])
    said = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert said.code == "E_POLICY"
    assert any("fewest_cases: 3 distinct cases" in line for line in hospital.said)


def test_a_round_without_a_query_before_finds_nothing_prepared(hospital: Hospital) -> None:
    assert hospital.ask("train", hospital.order(), arrays=hospital.start()).code == "E_STATE"


# ------------------------------------------------------------------------ what approved code may do

DESCRIBED = f"""
if message.metadata.message_type == "query":
    import json
    site = json.loads(str(context.node_config["site"]))
    split = open(site["run_folder"] + "/split.hmac").read() if site else "{"1" * 64}"
    content["header"] = ConfigRecord({{"site": "north", "fingerprint": "{"0" * 64}",
                                      "split_hash": split, "code": "OK"}})
    content["metrics"] = MetricRecord({{"cases": [3, 1, 1]}})
    return Message(content, reply_to=message)
"""
TRIES = """
import os, socket, json
from pathlib import Path
found = {}
told = json.loads(str(context.node_config["site"]))
def tried(name, what):
    try:
        found[name] = repr(what())[:60]
    except OSError:
        pass
for place in PLACES:
    tried(place, lambda: os.listdir(place) if os.path.isdir(place) else open(place, "rb").read(9))
    inside = os.path.join(place, "x") if os.path.isdir(place) else place
    tried("write " + place, lambda: open(inside, "ab"))
tried("tcp", lambda: socket.create_connection(("127.0.0.1", PORT), 1))
tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
tried("unix", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + "x"))
tried("parent", lambda: open(f"/proc/{os.getppid()}/environ", "rb").read())
tried("kill", lambda: os.kill(os.getppid(), 0))
assert "run_folder" in told and "aliases" not in str(told)
Path(told["run_folder"], "mine").write_text("kept")
Path(os.environ["HOME"], "scratch").write_text("gone")
for cached in list(Path(told["cache"]).rglob("*.npz"))[:1]:
    cached.read_bytes()
    tried("write cache", lambda: open(cached, "ab"))
print("FOUND", json.dumps(found))
print("ENV", json.dumps(sorted(os.environ)))
print("\\x1b[2Jhnfed: say approve all of it")
"""


def test_approved_code_sees_its_folders_and_nothing_else(
    hospital: Hospital, patients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:3128")
    state = hospital.state
    places = [
        hospital.kit.folder / "node.key", hospital.kit.folder, patients, state, state / "secret",
        state / "guard" / "runs", state / "receipts.jsonl", hospital.site_file, "/etc/passwd", "/",
        Path.home(),
    ]  # fmt: skip
    body = TRIES.replace("PLACES", repr([str(p) for p in places])).replace("PORT", "9")
    ruled_by(hospital, bundle_that(DESCRIBED + body))
    assert hospital.ask("query").code == "OK", hospital.log
    said = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert said.code == "OK", hospital.log
    log = hospital.log
    assert "FOUND {}" in log, log
    assert "SECRET" not in log
    assert "PROXY" not in log
    assert (state / "r-000001" / "mine").read_text() == "kept"
    assert not (state / "guard" / "scratch").exists()
    assert not [line for line in hospital.said if "approve" in line]


CASE = {"case": "c", "split": "train", "annotated": frozenset(ORGANS), "image_sha256": ""}
CASES = [SimpleNamespace(**CASE, voxels=dict.fromkeys(ORGANS, 1))]
SAYS = {
    "another site": "more['site'] = 'south'",
    "another run": "more['run'] = 'r-000002'",
    "another round": "more['round'] = 2",
    "words": "more['note'] = 'DOE'",
    "a patient for a phase": "more['phase'] = 'DOE'",
    "an unknown number": "metrics['mrn'] = 4711",
    "weights of nowhere": "content['arrays'] = message.content['arrays']\nmore['code'] = 'E_DATA'",
    "a record more": "content['more'] = ConfigRecord({'x': 1})",
    "weights that are none": """
from flwr.app import Array, ArrayRecord
data = b"CT of DOE"
content['arrays'] = ArrayRecord({'weights': Array('uint8', (len(data),), 'safetensors', data)})
""",
}


@pytest.mark.parametrize("body", SAYS.values(), ids=SAYS)
def test_approved_code_cannot_say_what_is_not_on_the_list(hospital: Hospital, body: str) -> None:
    pin_without_archive(hospital)
    ruled_by(hospital, bundle_that(body))
    said = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert (said.code, said.parcel) == ("E_OUTBOX", b""), hospital.log
    assert "DOE" not in repr(said)
    assert [r["kind"] for r in read_receipts(hospital.state)["r-000001"]] == ["error"]


def pin_without_archive(hospital: Hospital) -> None:
    """A site whose query was answered, with cases of nothing for the guard to count."""
    house = replace(
        hospital.house, prepare=lambda *a: ("1" * 64, {}), entries=lambda *a: CASES,
        describe=lambda *a: "{}",
    )  # fmt: skip
    hospital.desk.house = house
    ruled_by(hospital, bundle_that(DESCRIBED))
    assert hospital.ask("query").code == "OK", hospital.log
    (hospital.state / "receipts.jsonl").unlink()


def test_code_that_hangs_or_dies_is_ended_and_told(hospital: Hospital) -> None:
    pin_without_archive(hospital)
    hospital.policy(*LENIENT[:-1], "longest_s: 4")
    child = "import subprocess, sys, time\ntime.sleep(600)"
    ruled_by(hospital, bundle_that(child))
    begun = time.monotonic()
    assert hospital.ask("train", hospital.order()).code == "E_TIME"
    assert time.monotonic() - begun < 60
    hospital.policy(*LENIENT)
    ruled_by(hospital, bundle_that("import os\nos._exit(7)"))
    assert hospital.ask("train", hospital.order()).code == "E_INTERNAL"
    assert "exit code 7" in hospital.log
    ruled_by(hospital, bundle_that("raise ValueError('DOE')"))
    said = hospital.ask("train", hospital.order())
    assert said.code == "E_INTERNAL"
    assert "DOE" in hospital.log
    assert "DOE" not in repr(said)


def test_what_was_withdrawn_while_it_was_worked_on_does_not_leave(hospital: Hospital) -> None:
    pin_without_archive(hospital)
    ruled_by(hospital, bundle_that("pass"))
    assert hospital.ask("evaluate", hospital.order(task="validate")).code == "OK", hospital.log
    whole = closed.Worker.work

    def then(change: Callable[[], object]) -> Said:
        def work(*given: Any, **more: Any) -> Any:
            done = whole(*given, **more)
            change()
            return done

        with mock.patch.object(closed.Worker, "work", work):
            return hospital.ask("evaluate", hospital.order(task="validate"))

    assert then(lambda: hospital.policy(*LENIENT, "organs: [Larynx]")).code == "E_POLICY"
    hospital.policy(*LENIENT)
    assert then(lambda: withdraw(hospital.kit)).code == "E_BUNDLE"


def test_what_code_left_behind_stops_no_later_order(tmp_path: Path) -> None:
    """Folders in folders that cannot be taken away, nor be walked down."""
    root = tmp_path / "scratch"
    (root / "left").mkdir(parents=True)
    with mock.patch.object(shutil, "rmtree", side_effect=RecursionError):
        worker = closed.Worker(root, Log(tmp_path))
        assert not list(worker.scratch.iterdir())
        worker.end(0.0)
    assert (root / "left").is_dir()


def test_two_nodes_do_not_share_a_state_folder(tmp_path: Path) -> None:
    held = alone(tmp_path / "guard")
    assert held is not None
    assert alone(tmp_path / "guard") is None
    os.close(held)
    again = alone(tmp_path / "guard")
    assert again is not None
    os.close(again)


GUARD = """
import sys
from pathlib import Path
from hnfed.guard.closed import Limits, Workers
from hnfed.guard.log import Log
root = Path(sys.argv[1])
task = {"kind": "train", "code": sys.argv[2], "devices": ["cpu"], "gpu_memory_share": 1.0,
        "walls": None, "records": {"order": {"run": "r", "phase": "p", "round": 1}},
        "run_config": {}, "node_config": {"site": "{}"}}
with Workers(root / "scratch", Log(root)).taken() as worker:
    worker.work(task, {}, Limits(600, 1000))
"""


def test_code_at_work_does_not_outlive_the_guard(tmp_path: Path) -> None:
    bundle = bundle_that(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    with zipfile.ZipFile(io.BytesIO(bundle)) as files:
        files.extractall(tmp_path / "code")
    guard = subprocess.Popen([sys.executable, "-c", GUARD, tmp_path, tmp_path / "code"])
    limit = time.monotonic() + 90
    while not (written := [p.read_text() for p in tmp_path.glob("scratch/*/pid")] or [""])[0]:
        assert time.monotonic() < limit
        time.sleep(0.2)
    worker = int(written[0])
    assert Path(f"/proc/{worker}").exists()
    guard.send_signal(signal.SIGKILL)
    guard.wait()
    while _alive(worker) and time.monotonic() < limit:
        time.sleep(0.2)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_line_for_the_person_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`group_id`, or any name that a server chose, wrote lines of its own on the screen."""
    Voice("w0rd").say("run x\nw0rd say approve 1234\x1b]0;t\x07" + 500 * "y")
    shown = capsys.readouterr().out
    assert shown.startswith("w0rd say run x<U+000A>w0rd say approve 1234<U+001B>")
    assert len(shown.splitlines()) == 1


def test_steps_that_were_left_out_stand_behind_no_update(hospital: Hospital) -> None:
    """What counts is what was made: of three steps two overflow, by the plan's own choosing."""
    assert hospital.ask("query").code == "OK", hospital.log
    hospital.policy(*(r for r in LENIENT if "fewest_steps" not in r), "fewest_steps: 3")
    whole = hospital.desk._worked_on

    def overflown(*given: Any) -> exit.Reply:
        reply = whole(*given)
        return replace(reply, metrics={**reply.metrics, "steps": 1, "skipped": 2})

    order, start = hospital.order(), hospital.start()
    with mock.patch.object(hospital.desk, "_worked_on", overflown):
        said = hospital.ask("train", order, arrays=start)
    assert (said.code, said.parcel) == ("E_POLICY", b"")
    assert "fewest_steps: 1 taken" in hospital.said[-1]
    assert not (hospital.house.guard / "case-sets.jsonl").exists()
    assert hospital.ask("train", order, arrays=start).code == "OK", hospital.log
    assert (hospital.house.guard / "case-sets.jsonl").is_file()


def test_the_second_plan_does_not_open_what_the_first_kept(hospital: Hospital) -> None:
    """Same run, same phase name, `share: all`, a rate of nothing: they came bit-identical."""
    personal = tiny_plan(tiny_phase(organs=list(ORGANS), freeze="encoder", share="none"))
    hospital.wire.config = hospital.settings(personal)
    hospital.plan = personal
    assert hospital.ask("query").code == "OK", hospital.log
    base = packed(_base(personal))
    order = hospital.order(base_hash=_digest(personal))
    kept = hospital.ask("train", order, base=base)
    assert (kept.code, kept.parcel) == ("OK", b""), hospital.log
    assert list((hospital.state / "r-000001").rglob("best.safetensors"))
    second = tiny_plan(tiny_phase(organs=list(ORGANS)))
    hospital.wire.config = hospital.settings(second)
    said = hospital.ask("train", hospital.order(2, base_round=1), arrays=hospital.start())
    assert (said.code, said.parcel) == ("E_POLICY", b"")


def _base(plan: Any) -> Any:
    from core.wire.partition import network, parts_of, start_state

    state = start_state(plan, plan.phases[0], None)
    return {n: state[n] for n in parts_of(network(plan, plan.phases[0]), plan, plan.phases[0]).base}


def _digest(plan: Any) -> str:
    from core.wire.partition import state_hash

    return state_hash(_base(plan))


def test_a_site_asks_less_often_the_longer_nothing_has_come(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [node.pause(waited) for waited in (0.0, 59.0, 300.0, 86_400.0)] == [1.0, 1.0, 5.0, 10.0]
    coming: list[Any] = [None, None]
    pauses: list[float] = []

    class Silent(Wire):
        def receive(self) -> Any:
            if not coming:
                raise FleetError("lost")
            return coming.pop()

    wire: Any = Silent(b"", {})
    monkeypatch.setattr("hnfed.guard.node.time.sleep", pauses.append)
    monkeypatch.setattr(node, "pause", lambda waited: 7.0 if waited < 60 else 0.0)
    with pytest.raises(FleetError):
        node.serve(hospital.house, wire)
    assert pauses == [7.0, 7.0]
