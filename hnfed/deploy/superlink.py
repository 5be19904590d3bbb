"""`hnfed server`: the SuperLink on the loopback address, nginx before it, the roster in it.

Sites reach nginx, which asks each connection for a site's certificate, and by it the fleet API
only: Flower's control API has no login, so whoever reaches it could run code at every site.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import UserError
from core.files import replace_file
from core.logfile import cut_log
from core.packaging.app_bundle import QUIET, staged_app
from core.processes import Stopped, deaf, end, stop_by_signal, tell, with_parent
from hnfed.deploy.provision import ROSTER, read_roster
from hnfed.guard.kit import Kit
from hnfed.guard.kit_files import kept_json

CONNECTION = "hnfed"
START_SECONDS, RETRY_SECONDS = 90.0, 5.0
NGINX_FILES = 17_000  # of its workers: a place each, and both ends of what passes
RUNS = "HNFED_RUNS"
# Weights that are let go of return to the system: glibc would keep room for them, ever more of it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
ADMITTED, SUPERLINK_LOG = "admitted.json", "superlink.log"
LOGS = (SUPERLINK_LOG, "nginx.log", "nginx.error.log", "nginx.access.log")
COMES = re.compile(rb"\[Fleet\.(Activate|Deactivate)Node\] \w+ node_id=(\d+)")


def serve(kit: Kit) -> int:
    """Runs the server until it is told to stop; starts what dies again.

    Args:
        kit: the server's.

    Returns:
        130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: nginx or Flower is missing, a port is taken, or a server is at work already.
    """
    home = kit.folder / "flower"
    home.mkdir(mode=0o700, exist_ok=True)
    lock = FileLock(home / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            "KIT", kit.folder, "leave that one running, or stop it first",
            problem="a server of this kit is running already",
        ) from None  # fmt: skip
    try:
        require_free(kit)
        write_connection(kit)
        return _serve(kit)
    finally:
        lock.release()


def require_free(kit: Kit) -> None:
    """Both ports of the server can be listened on.

    Raises:
        UserError: one cannot; names it.
    """
    for key, host, port in (
        ("internal_port", "127.0.0.1", kit.internal_port),
        ("port", "", kit.port),
    ):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                remedy = f"see what listens there (ss -ltnp | grep {port}), end it, and start again"
                if error.errno == errno.EACCES:
                    remedy = "give this user the right to ports below 1024, or take another port"
                raise UserError(
                    f"server.{key}", port, remedy, problem=error.strerror or str(error)
                ) from error


def _serve(kit: Kit) -> int:
    stop_by_signal()
    log = kit.folder / "flower" / SUPERLINK_LOG
    read = log.stat().st_size if log.is_file() else 0
    children: dict[str, subprocess.Popen[bytes]] = {}
    provisioned = _provisioned(kit)
    try:
        while True:
            for name, start in (("superlink", _superlink), ("nginx", _nginx)):
                child = children.get(name)
                if child is not None and child.poll() is None:
                    continue
                if child is not None:
                    tell(f"{name} ended with {child.returncode}; starting it again")
                    end(child)  # nginx's workers outlive it, and keep the port
                    time.sleep(RETRY_SECONDS)
                children[name] = start(kit)
                if name == "superlink":
                    _wait(kit, kit.internal_port, children[name])
                    for line in admit(kit):
                        tell(line)
                else:
                    _wait(kit, kit.port, children[name])
                    tell(f"ready: sites dial {kit.host}:{kit.port}")
                    tell(f"the sites must have approved app bundle {_own_bundle()}")
            lines, read = comings(kit, read)
            for line in lines:
                tell(line)
            if (now := _provisioned(kit)) != provisioned:
                provisioned = now
                _take_in(kit, children["nginx"])
            for name in LOGS:
                cut_log(kit.folder / "flower" / name)
            time.sleep(1.0)
    except Stopped as stopped:
        tell("stopping")
        return 128 + stopped.number
    finally:
        with deaf():  # an impatient second Ctrl-C leaves nothing at work
            for child in reversed(list(children.values())):
                end(child)


def _provisioned(kit: Kit) -> tuple[int, int]:
    """Changes when `hnfed provision` wrote this kit again."""
    found = []
    for name in (ROSTER, "nginx.conf"):
        try:
            found.append((kit.folder / name).stat().st_mtime_ns)
        except OSError:  # being copied
            found.append(0)
    return found[0], found[1]


def _take_in(kit: Kit, nginx: subprocess.Popen[bytes]) -> None:
    """Makes what `hnfed provision` changed count: who may connect, at nginx and at Flower."""
    nginx.send_signal(signal.SIGHUP)  # it reads its file again, and keeps what it has if that fails
    tell("provisioned anew: nginx takes the sites' certificates in")
    try:
        for line in admit(kit):
            tell(line)
    except UserError as error:
        tell(f"the roster was not taken in; start the server again: {error}")


def comings(kit: Kit, read: int) -> tuple[list[str], int]:
    """Which sites connected and left, as the SuperLink's log says.

    Args:
        kit: the server's.
        read: bytes of the log that were read before.

    Returns:
        A line each, and the bytes that are read now.
    """
    log = kit.folder / "flower" / SUPERLINK_LOG
    try:
        with log.open("rb") as file:
            if log.stat().st_size < read:  # someone began it anew
                read = 0
            file.seek(read)
            said = file.read()
    except OSError:
        return [], 0
    said = said[: said.rfind(b"\n") + 1]
    found = COMES.findall(said)
    admitted = (kept_json(kit.folder / "flower" / ADMITTED) or {}) if found else {}
    names = {entry["node"]: name for name, entry in admitted.items()}
    lines = [
        f"{names.get(node.decode(), 'an unknown node')}: "
        f"{'connected' if what == b'Activate' else 'disconnected'}"
        for what, node in found
    ]
    return lines, read + len(said)


def bundle_sha256(app: Path) -> str:
    """Of the app bundle that `hnfed run` sends; a site compares it before it approves.

    Args:
        app: folder from `core.packaging.app_bundle.staged_app`.
    """
    from flwr.cli.build import build_fab_from_disk

    return hashlib.sha256(build_fab_from_disk(app)).hexdigest()


def _own_bundle() -> str:
    with staged_app() as app:
        return bundle_sha256(app)


def admit(kit: Kit) -> list[str]:
    """Makes Flower's list of nodes that of ``roster.json``: keys and names.

    Returns:
        What was changed, a line each.
    """
    roster = read_roster(kit.folder)
    path = kit.folder / "flower" / ADMITTED
    admitted: dict[str, dict[str, str]] = kept_json(path) or {}
    told = json_of(flower(kit, "supernode", "list", CONNECTION, "--format", "json"))
    living = {str(node["node-id"]) for node in told["nodes"]}
    done = []
    for name, entry in list(admitted.items()):
        if entry["node"] not in living:
            del admitted[name]
        elif roster.get(name) != entry["key"]:
            flower(kit, "supernode", "unregister", entry["node"], CONNECTION)
            del admitted[name]
            done.append(f"{name}: its former key is refused from now on")
    for name, key in roster.items():
        if name in admitted:
            continue
        public = kit.folder / "flower" / f"{name}.pub"
        public.write_text(key + "\n", encoding="ascii")
        made = json_of(
            flower(
                kit, "supernode", "register", str(public), CONNECTION, "--name", name,
                "--format", "json",
            )
        )  # fmt: skip
        admitted[name] = {"key": key, "node": str(made["node-id"])}
        done.append(f"{name}: its key is registered, it may connect")
    replace_file(path, json.dumps(admitted, indent=1) + "\n")
    return done


def json_of(text: str) -> dict[str, Any]:
    """What Flower's command line printed as JSON, behind whatever else it said.

    Raises:
        UserError: it printed none, or that it failed, which its exit status does not tell.
    """
    try:
        found: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError as error:
        raise UserError(
            "server", text.strip()[-200:], "read the server's log", problem="Flower told no JSON"
        ) from error
    if found.get("success") is False:
        remedy = "is `hnfed server KIT` running? read its log"
        said = str(found.get("error-message", "")).strip().splitlines()
        raise UserError("server", "Flower", remedy, problem=said[-1][:300] if said else "it failed")
    return found


def flower(kit: Kit, *arguments: str) -> str:
    """Flower's command line on this server's SuperLink; what it printed.

    Raises:
        UserError: it failed.
    """
    command = [str(Path(sys.executable).with_name("flwr")), *arguments]
    where, remedy = f"{kit.host}:{kit.port}", "start it with `hnfed server KIT`, read its log"
    try:
        done = subprocess.run(
            command, env=environment(kit), capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            "server", where, remedy, problem="Flower did not answer within 120 s"
        ) from None
    if done.returncode:
        lines = [s for s in (done.stdout + done.stderr).splitlines() if s.strip()]
        raise UserError(
            "server", where, remedy,
            problem=lines[-1][:300] if lines else "Flower did not answer",
        )  # fmt: skip
    return done.stdout


def environment(kit: Kit) -> dict[str, str]:
    """Environment of Flower's processes of this server."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    scripts = str(Path(sys.executable).parent)
    return {
        **ours,
        **QUIET,
        **MALLOC,
        "PATH": os.pathsep.join([scripts, ours.get("PATH", os.defpath)]),
        "FLWR_HOME": str(kit.folder / "flower"),
        RUNS: str(kit.folder / "runs"),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }


def write_connection(kit: Kit) -> None:
    """Tells Flower's command line how to reach the SuperLink."""
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{kit.internal_port}"\nroot-certificates = "{kit.ca}"\n'
    )
    (kit.folder / "flower" / "config.toml").write_text(text, encoding="utf-8")


def _superlink(kit: Kit) -> subprocess.Popen[bytes]:
    home = kit.folder / "flower"
    command = [
        str(Path(sys.executable).with_name("flower-superlink")),
        "--host", "127.0.0.1", "--port", str(kit.internal_port),
        "--ssl-ca-certfile", str(kit.ca),
        "--ssl-certfile", str(kit.folder / "server.crt"),
        "--ssl-keyfile", str(kit.folder / "server.key"),
        "--enable-supernode-auth", "--database", str(home / "state.db"),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    return _start(command, kit, SUPERLINK_LOG)


def _nginx(kit: Kit) -> subprocess.Popen[bytes]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        remedy = "install it from the distribution: apt install nginx"
        raise UserError("nginx", "(missing)", remedy, problem="it stands between sites and Flower")
    config = kit.folder / "nginx.conf"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= most < NGINX_FILES:
        tell(f"nginx may open {most} files, {NGINX_FILES} are better: LimitNOFILE of the unit")
    return _start([program, "-p", f"{kit.folder}/", "-c", str(config)], kit, "nginx.log")


def _start(command: list[str], kit: Kit, log: str) -> subprocess.Popen[bytes]:
    with (kit.folder / "flower" / log).open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            cwd=kit.folder / "runs", env=environment(kit), start_new_session=True,
            preexec_fn=_as_child,
        )  # fmt: skip


def _as_child() -> None:
    """Ends with its parent; may open as many files as this account may."""
    with_parent()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def answers(kit: Kit, port: int, seconds: float = 3.0) -> bool:
    """Whether something healthy answers on a port of this machine, in time.

    On the public port a certificate of a site is asked for, and none shown: that is an answer too.
    """
    context = ssl.create_default_context(cafile=str(kit.ca))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(f"https://127.0.0.1:{port}/health", timeout=seconds) as reply:
            return int(reply.status) == 200
    except urllib.error.HTTPError as error:
        return port == kit.port and error.code == 400
    except OSError:
        return False


def _wait(kit: Kit, port: int, child: subprocess.Popen[bytes]) -> None:
    """Until something healthy answers on the port."""
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        if answers(kit, port):
            return
        time.sleep(0.2)
    raise UserError(
        "server", f"127.0.0.1:{port}",
        f"read {kit.folder}/flower/*.log; is the port taken, or the certificate too old?",
        problem="what should listen there does not answer",
    )  # fmt: skip
