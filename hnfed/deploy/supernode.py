"""`hnfed client`: the SuperNode of a site, kept running; outbound connections only."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from client.site_file import require_own_kit, site_from_file
from core.app_folder import QUIET
from core.doctor import FAIL, dial
from core.errors import UserError
from core.files import replace_file
from core.kit import Kit
from core.logfile import append_log
from core.service import Stopped, deaf, end, stop_by_signal, tell, with_parent
from hnfed.guard import approval_guard
from hnfed.guard.approval_guard import TOLD
from hnfed.guard.approvals import approved
from hnfed.guard.environment import node_environment

# After a hard kill the server holds the node for a minute, and refuses it until then.
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 20.0, 120.0
CONNECT_SECONDS = 20.0  # without a connection by then the site is told what it can see
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What Flower says when it is refused, and what that means to the person at the site.
REASONS = (
    (("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
     "the server's certificate is not the one of this kit's federation, or is out of date"),
    (("2001", "invalid authentication"), "the server wants a key, and this node showed none"),
    (("2004", "PERMISSION_DENIED", "not registered"),
     "the server does not know this kit's key, has revoked it, or holds another connection of it: "
     "a second client with this kit, or the last one (up to 60 s after a hard kill)"),
    (("Connection refused", "ConnectError", "timed out", "unreachable"),
     "nothing answers there: is the server up, and the port open on the way out?"),
)  # fmt: skip


def run_node(kit: Kit, site_file: Path) -> int:
    """Runs the SuperNode until told to stop; starts it again when it ends.

    Args:
        kit: the site's.
        site_file: YAML, see docs/deployment.md.

    Returns:
        130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: kit and site file do not belong together, or the key is not private.
    """
    site = site_from_file(site_file, "node")
    require_own_kit(site, kit)
    key = kit.folder / "node.key"
    if not key.is_file():
        raise UserError("KIT", key, "give the folder of the kit", problem="no key in it")
    if key.stat().st_mode & 0o077:
        raise UserError("node.key", oct(key.stat().st_mode & 0o777), f"run: chmod 600 {key}")
    if not approved(kit):
        tell(f"no code may run here yet: look at it and pin it with `hnfed approve {kit.folder}`")
    stop_by_signal()
    home = site.base_folder.parent / "flower"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _wrapper(home)
    retry = RETRY_SECONDS
    child: subprocess.Popen[str] | None = None
    try:
        while True:
            started = time.monotonic()
            child = _start(kit, site_file.resolve(), home)
            tell(f"{kit.role}: dialling {kit.host}:{kit.port}")
            said = _follow(child, home / "supernode.log", kit)
            code = child.wait()
            end(child)  # what it left at work
            child = None
            if time.monotonic() - started > 300:
                retry = RETRY_SECONDS
            reason = reason_of(said) or why_not(kit)
            tell(f"the node ended ({code}): {reason}; trying again in {retry:.0f} s")
            time.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY_SECONDS)
    except Stopped as stopped:
        tell("stopping")
        return 128 + stopped.number
    finally:
        with deaf():  # an impatient second Ctrl-C leaves nothing at work
            if child is not None:
                end(child)


def reason_of(said: str) -> str:
    """What Flower's last words mean to the person at the site; "" where they say nothing."""
    for words, reason in REASONS:
        if any(word in said for word in words):
            return reason
    return ""


def why_not(kit: Kit) -> str:
    """What stands between this site and the server, as far as the site can see."""
    wrong = [f"{c.name}: {c.found}; {c.remedy}" for c in dial(kit) if c.state == FAIL]
    return "no connection yet; " + (
        "; ".join(wrong)
        or "the server answers; see flower/supernode.log in the site's state folder"
    )


def _wrapper(home: Path) -> None:
    """``flwr-clientapp``, first on the node's PATH: checks the bundle before Flower installs it."""
    folder = home / "bin"
    folder.mkdir(exist_ok=True)
    path = folder / "flwr-clientapp"
    guard = Path(approval_guard.__file__).resolve()
    replace_file(path, f'#!/bin/sh\nexec "{sys.executable}" -P "{guard}" "$@"\n')
    path.chmod(0o700)


def _start(kit: Kit, site_file: Path, home: Path) -> subprocess.Popen[str]:
    scripts = str(Path(sys.executable).parent)
    ours = node_environment()
    path = os.pathsep.join([str(home / "bin"), scripts, ours.get("PATH", os.defpath)])
    environment = {
        **ours, **QUIET, "PATH": path, "FLWR_HOME": str(home), "HNFED_KIT": str(kit.folder),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("flower-supernode")),
        "--superlink", f"{kit.host}:{kit.port}",
        "--root-certificates", str(kit.ca),
        "--auth-supernode-private-key", str(kit.folder / "node.key"),
        "--node-config", f'site="{site_file}" policy="{kit.folder / "policy.yaml"}"',
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        cwd=home, env=environment, text=True, errors="replace", start_new_session=True,
        preexec_fn=with_parent,
    )  # fmt: skip


def _follow(child: subprocess.Popen[str], log: Path, kit: Kit) -> str:
    """Writes Flower's log to the site's disk; returns its last words when the node ends."""
    assert child.stdout is not None
    last: list[str] = []
    connected = threading.Event()
    begun = time.monotonic()
    wondering, told = begun + CONNECT_SECONDS, False
    thread = threading.Thread(target=_read, args=(child.stdout, log, last, connected), daemon=True)
    thread.start()
    while child.poll() is None:
        time.sleep(0.5)
        if connected.is_set() and not told:
            told = True
            tell(f"{kit.role}: connected after {time.monotonic() - begun:.0f} s, waiting for runs")
        if not connected.is_set() and time.monotonic() > wondering:
            tell(why_not(kit))
            wondering = math.inf
    thread.join(timeout=2.0)
    return "\n".join(last)


def _read(stream: IO[str], log: Path, last: list[str], connected: threading.Event) -> None:
    for raw in stream:
        line = COLOUR.sub("", raw).rstrip()
        append_log(log, line + "\n")
        last.append(line)
        del last[:-40]
        if line.startswith(TOLD):
            tell(line.removeprefix(TOLD))
        if "SuperNode ID" in line:
            connected.set()
