"""The plan over TLS equals the simulation; who has no right does not get in. `make deploy-test`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import safetensors.torch
import yaml

from core.journal import read_events
from hnfed.cli.main import main
from hnfed.deploy.provision import provision
from hnfed.guard.kit import read_kit, ssl_context
from hnfed.guard.peers import confirm, read_peers, spoken
from tests.deployment.conftest import PLAN, SITES, Machine, Place, content_of, hnfed, running
from tests.deployment.fleet import Fleet, refused

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(place: Place) -> Machine:
    return place.server()


def ask(place: Place, path: str) -> int:
    """HTTP status under the public port, asked by a site."""
    kit = place.kit("server")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl_context(place.kit("nyu"))),
    )
    try:
        with opener.open(f"https://127.0.0.1:{kit.port}{path}", timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_kit_and_a_site_file_of_another_name(place: Place) -> None:
    file = place.write_site("miccai", place.folder, "stolen.yaml")
    thief = hnfed(
        place.folder / "thief.log", "client", place.folder / "kits" / "nyu", "--site", file
    )
    assert thief.process.wait(60) == 1
    assert "the kit is nyu's" in thief.log.read_text()


def test_a_key_that_others_can_read(place: Place) -> None:
    copy = place.folder / "open-kit"
    shutil.copytree(place.folder / "kits" / "nyu", copy)
    (copy / "node.key").chmod(0o644)
    site = place.folder / "nyu.yaml"
    careless = hnfed(place.folder / "careless.log", "client", copy, "--site", site)
    assert careless.process.wait(60) == 1
    assert "chmod 600" in careless.log.read_text()


def test_the_plan_gives_the_weights_of_the_simulation(place: Place, server: Machine) -> None:
    clients = [place.client(name) for name in SITES]
    kit = place.folder / "kits" / "server"
    run = hnfed(place.folder / "run.log", "run", place.folder / "plan.yaml", "--server", kit,
                "--name", "tls")  # fmt: skip
    seen: set[str] = set()
    while run.process.poll() is None:
        for client in clients:
            family = family_of(client.process.pid)
            assert not listening(family), "nothing listens at a site"
            seen |= {content_of(Path(f"/proc/{p}/cmdline")).decode() for p in family}
        time.sleep(0.5)
    assert run.process.wait(600) == 0, run.log.read_text()
    assert [line for line in seen if "hnfed.guard.worker" in line], "the worker was looked at"
    assert not [line for line in seen if "flower-" in line or "flwr-" in line]
    folder = kit / "runs" / "tls"
    for name in ("best", "last"):
        path = f"checkpoints/pretrain/{name}.safetensors"
        ours = safetensors.torch.load_file(folder / path)
        theirs = safetensors.torch.load_file(place.folder / "inline" / path)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert float((ours[key] - theirs[key]).abs().max()) <= 1e-6, key
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "completed"
    assert not list(folder.glob("checkpoints/personalise/*.safetensors")), "it stays at the site"
    assert list((place.folder / "state" / "nyu").rglob("personalise/best.safetensors"))
    assert (
        main(["report", str(place.kit("nyu").folder), "--site", str(place.folder / "nyu.yaml")])
        == 0
    )
    (page,) = (place.folder / "state" / "nyu").rglob("report-local.html")
    assert page.stat().st_mode & 0o077 == 0
    text = page.read_text()
    for words in ("personalise", "together with miccai and north", "data:image/png", "nyu_0"):
        assert words in text, f"of the site's own cases: {words}"
    assert list((place.folder / "state" / "nyu").rglob("receipts.jsonl"))
    for client in clients:
        assert client.end() == 143


def test_sums_alone_leave_where_the_policy_requires_it(place: Place, server: Machine) -> None:
    """Over TLS, behind each site's walls: the weights of the same plan in one process."""
    plan, kit = place.folder / "secure.yaml", place.folder / "kits" / "server"
    values = json.loads(json.dumps(PLAN))
    values["federation"] |= {"secure_aggregation": True}
    plan.write_text(yaml.safe_dump(values))
    assert main(["simulate", str(plan), "--out", str(place.folder / "inline-secure")]) == 0
    for name in SITES:
        place.be_lenient(name, "agreed")  # each site derives the weights of every order, too
        with (place.kit(name).folder / "policy.yaml").open("a") as policy:
            policy.write("secure_aggregation: required\n")
        for other, peer in read_peers(place.kit(name)).items():
            confirm(place.kit(name), other, spoken(peer.sha256))
    clients = [place.client(name) for name in SITES]
    words = ("--server", kit, "federation.query_timeout_s=20")
    plain = hnfed(place.folder / "plain.log", "run", place.folder / "plan.yaml", *words,
                  "--name", "plain")  # fmt: skip
    assert plain.process.wait(300) == 1
    told = [e for e in read_events(kit / "runs" / "plain" / "journal.jsonl") if "code" in e]
    assert {e["code"] for e in told} == {"E_POLICY"}, "nothing is told without sums"
    run = hnfed(place.folder / "secure.log", "run", plan, "--server", kit, "--name", "secure")
    assert run.process.wait(600) == 0, run.log.read_text()
    folder = kit / "runs" / "secure"
    for path, inline in (
        ("checkpoints/pretrain/last.safetensors", "inline-secure"),
        # The first mean; in later rounds Adam makes a step of the last bit of a small gradient.
        ("state/pretrain/round-00001.safetensors", "inline"),
    ):
        ours = safetensors.torch.load_file(folder / path)
        theirs = safetensors.torch.load_file(place.folder / inline / path)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert float((ours[key] - theirs[key]).abs().max()) <= 1e-6, (inline, key)
    for client in clients:
        assert client.end() == 143
    for name in SITES:
        place.be_lenient(name)


def test_a_killed_superlink_and_resume_give_the_same_weights(place: Place, server: Machine) -> None:
    clients = [place.client(name) for name in SITES]
    kit = place.folder / "kits" / "server"
    words = ("run", place.folder / "plan.yaml", "--server", kit, "--name", "again")
    run = hnfed(place.folder / "killed.log", *words)
    assert run.says("pretrain 1/2", 300), run.log.read_text()
    (pid,) = running("flower-superlink", kit)
    os.kill(pid, signal.SIGKILL)
    assert run.process.wait(200) == 1
    assert server.says("superlink ended with -9; starting it again", 30)
    assert not (kit / "runs" / "again" / "checkpoints" / "personalise").exists()
    more = hnfed(place.folder / "resumed.log", *words, "--resume")
    assert more.process.wait(500) == 0, more.log.read_text()
    path = "checkpoints/pretrain/last.safetensors"
    ours = safetensors.torch.load_file(kit / "runs" / "again" / path)
    theirs = safetensors.torch.load_file(place.folder / "inline" / path)
    for key in ours:
        assert float((ours[key] - theirs[key]).abs().max()) <= 1e-6, key
    for client in clients:
        assert client.end() == 143


def test_a_killed_nginx_leaves_the_port_to_the_next(place: Place, server: Machine) -> None:
    kit = place.folder / "kits" / "server"
    (master,) = running("nginx: master", kit)
    group = _group(master)
    assert len(group) > 1, "it has workers"
    ready = server.log.read_text().count("ready:")
    os.kill(master, signal.SIGKILL)
    assert server.says("nginx ended with -9; starting it again", 30)
    limit = time.monotonic() + 30
    while not (again := running("nginx: master", kit)) and time.monotonic() < limit:
        time.sleep(0.2)
    assert again != [master]
    assert _group(master) == []
    while server.log.read_text().count("ready:") == ready and time.monotonic() < limit:
        time.sleep(0.2)
    assert server.log.read_text().count("ready:") == ready + 1
    assert ask(place, "/health") == 200


def family_of(pid: int) -> set[int]:
    """A process and all that descend from it."""
    stats = {int(p.parent.name): content_of(p) for p in Path("/proc").glob("[0-9]*/stat")}
    parents = {p: int(s.rpartition(b")")[2].split()[1]) for p, s in stats.items() if s}
    family = {pid}
    while more := {p for p, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def listening(family: set[int]) -> list[str]:
    """Sockets of these processes that wait for others, TCP on any address, or with a path."""
    waiting = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            if line.split()[3] == "0A":
                waiting.add(f"socket:[{line.split()[9]}]")
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        if line.split()[3] == "00010000":
            waiting.add(f"socket:[{line.split()[6]}]")
    held = []
    for pid in family:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                held.append(os.readlink(fd))
    return [name for name in held if name in waiting]


def _group(number: int) -> list[int]:
    stats = {int(p.parent.name): content_of(p) for p in Path("/proc").glob("[0-9]*/stat")}
    fields = {pid: stat.rpartition(b")")[2].split() for pid, stat in stats.items() if stat}
    return [p for p, f in fields.items() if int(f[2]) == number and f[0] not in (b"Z", b"X")]


def test_unapproved_code_does_not_run(place: Place, server: Machine) -> None:
    for name in SITES:
        (place.folder / "kits" / name / "approved.json").unlink()
    clients = [place.client(name) for name in SITES]
    kit = place.folder / "kits" / "server"
    run = hnfed(place.folder / "refused.log", "run", place.folder / "plan.yaml", "--server", kit,
                "--name", "refused", "federation.query_timeout_s=20")  # fmt: skip
    assert run.process.wait(300) == 1
    assert any(c.says("is not approved at this site", 5) for c in clients)
    told = [c.log.read_text().count("is not approved at this site") for c in clients]
    assert max(told) == 1, "a refused message is answered once"
    assert list((place.folder / "kits" / "nyu" / "pending").glob("*.fab"))
    state = place.folder / "state" / "nyu" / "state"
    assert not list(state.glob("refused-*")), "nothing of ours was imported"
    assert not list((state / "guard").glob("scratch/*/*")), "what waits there was given nothing"
    for client in clients:
        client.end()


def test_a_revoked_site_stays_out_and_ctrl_c_ends_all(place: Place, server: Machine) -> None:
    kept = place.folder / "kept"
    shutil.copytree(place.folder / "kits" / "north", kept)
    provision(place.federation, place.folder / "kits", revoke=["north"])
    assert server.says("north: its former key is refused", 30), "while it runs"
    assert server.end(signal.SIGINT) == 130
    again = place.server()
    assert refused(Fleet(read_kit(kept, "site"))) == 403
    assert again.end() == 143
