"""The plan over TLS equals the simulation; who has no right does not get in. `make deploy-test`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import safetensors.torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core.doctor import PASS, dial
from hnfed.deploy.supernode import reason_of
from server.provision import Federation, provision
from tests.deployment.conftest import SITES, Machine, Place, free_port, hnfed

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(900)]
FLOWER = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server(place: Place) -> Machine:
    return place.server()


def ask(place: Place, path: str, cafile: Path | None = None, host: str = "127.0.0.1") -> int:
    """HTTP status under the public port."""
    kit = place.kit("server")
    context = ssl.create_default_context(cafile=str(cafile or kit.ca))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(f"https://{host}:{kit.port}{path}", timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def node(
    place: Place,
    name: str,
    *,
    ca: Path | None = None,
    key: Path | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    program: tuple[str, ...] = (str(FLOWER / "flower-supernode"),),
) -> Machine:
    """A bare SuperNode that claims whatever it likes."""
    kit = place.kit("nyu")
    command = [
        *program, "--superlink", f"{host}:{port or kit.port}",
        "--root-certificates", str(ca or kit.ca), "--port", str(free_port()),
        "--max-retries", "1", "--node-config", 'site="x"',
    ]  # fmt: skip
    if key is not None:
        command += ["--auth-supernode-private-key", str(key)]
    home = place.folder / "nodes" / name
    home.mkdir(parents=True, exist_ok=True)
    env = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{FLOWER}:{os.environ['PATH']}",
    }
    return place.start(Machine(home / "log", *command, env=env))


def test_the_control_api_is_out_of_reach(place: Place, server: Machine) -> None:
    assert ask(place, "/health") == 200
    for path in (
        "/v1/control/list-runs", "/v1/runtime/get-nodes", "/docs", "/openapi.json", "/",
        "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet//../../v1/control/list-runs", "/V1/control/list-runs", "/v1/fleet",
    ):  # fmt: skip
        assert ask(place, path) in (400, 403), path


def test_plaintext_is_refused(place: Place, server: Machine) -> None:
    url = f"http://127.0.0.1:{place.kit('server').port}/v1/fleet/activate-node"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="400"):
        opener.open(url, timeout=10)


def test_another_authority_or_name_is_refused_by_the_site(place: Place, server: Machine) -> None:
    other = place.folder / "other"
    provision(Federation("no", "127.0.0.1", 1, 2, ("nyu",), 30), other)
    key = place.kit("nyu").folder / "node.key"
    wrong = node(place, "wrong-ca", ca=other / "ca" / "ca.crt", key=key)
    assert wrong.says("unable to get local issuer certificate", 60)
    name = node(place, "wrong-name", host="127.0.0.2", key=key)
    assert name.says("certificate is not valid for '127.0.0.2'", 60)


def test_an_expired_certificate_is_refused_by_the_site(place: Place) -> None:
    old = place.folder / "old"
    then = datetime.now(UTC) - timedelta(days=40)
    federation = Federation("old", "127.0.0.1", free_port(), free_port(), ("nyu",), 30)
    provision(federation, old, now=then)
    kit = old / "server"
    (kit / "flower").mkdir()
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program
    nginx = place.start(Machine(kit / "log", program, "-p", f"{kit}/", "-c", kit / "nginx.conf"))
    key = old / "nyu" / "node.key"
    late = node(place, "expired", ca=old / "ca" / "ca.crt", key=key, port=federation.port)
    assert late.says("certificate has expired", 60)
    nginx.end()


def test_no_key_and_a_foreign_key_are_refused_by_the_server(place: Place, server: Machine) -> None:
    keyless = node(place, "keyless")
    assert keyless.process.wait(60) != 0
    path = place.folder / "foreign.key"
    path.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    foreign = node(place, "foreign", key=path)
    assert foreign.process.wait(60) != 0
    assert "2004" in foreign.log.read_text() or "PERMISSION" in foreign.log.read_text().upper()


AN_HOUR_AHEAD = """
from datetime import timedelta
import flwr.supernode.node_auth_http_interceptor as signing
now = signing.now
signing.now = lambda: now() + timedelta(hours=1)
from flwr.supernode.cli import flower_supernode
flower_supernode()
"""


def test_a_skewed_clock_is_refused_by_the_server(place: Place, server: Machine) -> None:
    key = place.kit("nyu").folder / "node.key"
    skewed = node(place, "skewed", key=key, program=(sys.executable, "-c", AN_HOUR_AHEAD))
    skewed.process.wait(90)
    assert "SuperNode ID" not in skewed.log.read_text(), "its signature's time is out of bounds"
    found = list(dial(place.kit("nyu")))
    assert [c.state for c in found] == [PASS] * 3, "the site's doctor tells a clock that is off"


def test_a_second_node_with_the_same_key_is_refused(place: Place, server: Machine) -> None:
    first = place.client("nyu")
    assert first.says("nyu: connected after", 60), first.log.read_text()
    twin = node(place, "twin", key=place.kit("nyu").folder / "node.key")
    assert twin.process.wait(90) != 0
    assert "holds another connection" in reason_of(twin.log.read_text())
    assert first.process.poll() is None, "the first one stays"
    assert first.end() == 143


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
    assert run.process.wait(600) == 0, run.log.read_text()
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
    assert list((place.folder / "state" / "nyu").rglob("receipts.jsonl"))
    for client in clients:
        assert client.end() == 143


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


def running(words: str, kit: Path) -> list[int]:
    """Processes of a kit whose command line holds these words."""
    wanted = (words.encode(), str(kit).encode())
    lines = {int(p.parent.name): _read(p) for p in Path("/proc").glob("[0-9]*/cmdline")}
    return [pid for pid, line in lines.items() if all(w in line for w in wanted)]


def _group(number: int) -> list[int]:
    stats = {int(p.parent.name): _read(p) for p in Path("/proc").glob("[0-9]*/stat")}
    fields = {pid: stat.rpartition(b")")[2].split() for pid, stat in stats.items() if stat}
    return [p for p, f in fields.items() if int(f[2]) == number and f[0] not in (b"Z", b"X")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_unapproved_code_does_not_run(place: Place, server: Machine) -> None:
    for name in SITES:
        (place.folder / "kits" / name / "approved.json").unlink()
    clients = [place.client(name) for name in SITES]
    kit = place.folder / "kits" / "server"
    run = hnfed(place.folder / "refused.log", "run", place.folder / "plan.yaml", "--server", kit,
                "--name", "refused", "federation.query_timeout_s=20")  # fmt: skip
    assert run.process.wait(300) == 1
    assert any(c.says("is not approved at this site", 5) for c in clients)
    assert list((place.folder / "kits" / "nyu" / "pending").glob("*.fab"))
    runs = list((place.folder / "state" / "nyu" / "state").glob("refused-*"))
    assert not runs, "nothing of ours was imported"
    for client in clients:
        client.end()


def test_a_revoked_site_stays_out_and_ctrl_c_ends_all(place: Place, server: Machine) -> None:
    key = place.folder / "kept.key"
    shutil.copy(place.folder / "kits" / "north" / "node.key", key)
    key.chmod(0o600)
    provision(place.federation, place.folder / "kits", revoke=["north"])
    assert server.end(signal.SIGINT) == 130
    again = place.server()
    assert again.says("its former key is refused", 5)
    revoked = node(place, "revoked", key=key)
    assert revoked.process.wait(60) != 0
    assert again.end() == 143
