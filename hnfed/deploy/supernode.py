"""`hnfed client`: a site's node, kept running; outbound connections only.

The node is a process of its own (`hnfed.deploy.node`). It is started again when it ends, and ended
when the server has not been heard for long, whatever the node believes.
"""

from __future__ import annotations

import json
import math
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from core.logfile import append_log
from core.processes import Stopped, deaf, end, stop_by_signal, tell, with_parent
from core.text import shown, uncoloured
from hnfed.deploy.doctor import FAIL, dial
from hnfed.deploy.node import ALIVE, CONNECTED, SAY
from hnfed.deploy.site_file import require_own_kit, site_from_file
from hnfed.guard.approvals import approved
from hnfed.guard.environment import node_environment
from hnfed.guard.kit import Kit
from hnfed.guard.proxy import http_options
from hnfed.guard.standing import Standing

# After a hard kill the server holds the node for a minute, and refuses it until then.
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 20.0, 120.0
CONNECT_SECONDS = 20.0  # without a connection by then the site is told what it can see
SILENT_SECONDS = 300.0  # without an answer of the server for so long a node is started anew
LOG = "node.log"
NODE = ("-I", "-m", "hnfed.deploy.node")
# What Flower says when it is refused, and what that means to the person at the site.
REASONS = (
    (("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
     "the server's certificate is not the one of this kit's federation, or is out of date"),
    (("2001", "invalid authentication"), "the server wants a key, and this node showed none"),
    (("2004", "PERMISSION_DENIED", "not registered"),
     "the server does not know this kit's key, has revoked it, or holds another connection of it: "
     "a second client with this kit, or the last one (up to 60 s after a hard kill)"),
    (("407", "ProxyError"), "the proxy refuses: user and password in `proxy` of the site file?"),
    (("HTTP 400", "HTTP 403"),
     "the server does not take this kit's certificate (revoked, replaced, too old): ask the "
     "coordinator for a new answer file, then `hnfed join KIT --answer FILE`"),
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
    http_options(kit, site.proxy)  # tells at once where key, certificate or proxy are no good
    if not approved(kit):
        tell(
            "no code may run here yet: look at it and pin it with "
            f"`hnfed approve {shlex.quote(str(kit.folder))}`"
        )
    stop_by_signal()
    home = site.base_folder.parent / "guard"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _clear_old(home.with_name("flower"))
    retry = RETRY_SECONDS
    standing = Standing(home)
    child: subprocess.Popen[str] | None = None
    try:
        while True:
            started = time.monotonic()
            word = secrets.token_hex(16)
            child = _start(kit, site_file.resolve(), home, word)
            tell(f"{kit.role}: dialling {kit.host}:{kit.port}")
            standing.tell("dialling")
            said = _follow(child, home / LOG, kit, word, site.proxy, standing)
            end(child)
            code = child.wait()
            child = None
            if time.monotonic() - started > 300:
                retry = RETRY_SECONDS
            reason = reason_of(said) or why_not(kit, site.proxy)
            tell(f"the node ended ({code}): {reason}; trying again in {retry:.0f} s")
            standing.tell("waiting", reason)
            time.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY_SECONDS)
    except Stopped as stopped:
        tell("stopping")
        return 128 + stopped.number
    finally:
        with deaf():  # an impatient second Ctrl-C leaves nothing at work
            if child is not None:
                end(child)
            standing.tell("stopped")
            standing.close()


def reason_of(message: str) -> str:
    """What Flower's last words mean to the person at the site; "" where they say nothing."""
    for words, reason in REASONS:
        if any(word in message for word in words):
            return reason
    return ""


def why_not(kit: Kit, proxy: str = "") -> str:
    """What stands between this site and the server, as far as the site can see."""
    wrong = [f"{c.name}: {c.detail}; {c.remedy}" for c in dial(kit, proxy) if c.state == FAIL]
    return "no connection yet; " + (
        "; ".join(wrong) or f"the server answers; see guard/{LOG} in the site's state folder"
    )


def _clear_old(folder: Path) -> None:
    """Code that an earlier version let Flower install lies where nobody looks at it any more."""
    if (folder / "apps").exists():
        shutil.rmtree(folder / "apps")
        tell(f"removed {folder}/apps: app bundles of an earlier version, which are not used now")


def _start(kit: Kit, site_file: Path, home: Path, word: str) -> subprocess.Popen[str]:
    settings = {"kit": str(kit.folder), "site": str(site_file), "word": word}
    child = subprocess.Popen(
        [sys.executable, *NODE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        cwd=home, env=node_environment(), text=True, errors="replace", start_new_session=True,
        preexec_fn=with_parent,
    )  # fmt: skip
    assert child.stdin is not None
    with child.stdin as settled:
        settled.write(json.dumps(settings))
    return child


@dataclass
class Heard:
    """What a node has said so far.

    Attributes:
        last: its last lines, for the log.
        connected: whether it was let in.
        alive: when the server was last heard, by `time.monotonic`.
    """

    last: list[str] = field(default_factory=list)
    connected: bool = False
    alive: float = field(default_factory=time.monotonic)


def _follow(
    child: subprocess.Popen[str],
    log: Path,
    kit: Kit,
    word: str,
    proxy: str = "",
    standing: Standing | None = None,
) -> str:
    """Follows a node until it ends, or the server has been silent for long; its last words.

    Args:
        child: the node.
        log: for what it and its libraries print.
        kit: of the site.
        word: begins what it says to us.
        proxy: of the site file.
        standing: where it is noted how the client stands.
    """
    assert child.stdout is not None
    heard, begun = Heard(), time.monotonic()
    wondering, told = begun + CONNECT_SECONDS, False
    thread = threading.Thread(target=_read, args=(child.stdout, log, heard, word), daemon=True)
    thread.start()
    while child.poll() is None:
        time.sleep(0.2)
        now = time.monotonic()
        if heard.connected and not told:
            told = True
            tell(f"{kit.role}: connected after {now - begun:.0f} s, waiting for runs")
            if standing is not None:
                standing.tell("connected")
        if not heard.connected and now > wondering:
            tell(reason := why_not(kit, proxy))
            wondering = math.inf
            if standing is not None:
                standing.tell("dialling", reason)
        if standing is not None and told:
            standing.heard(now - heard.alive)
        if now - heard.alive > SILENT_SECONDS:
            tell(f"{kit.role}: the server was not heard for {now - heard.alive:.0f} s")
            break
    thread.join(timeout=2.0)
    return "\n".join(heard.last)


def _read(stream: IO[str], log: Path, heard: Heard, word: str) -> None:
    for raw in stream:
        line = raw.rstrip()
        if line.startswith(f"{word} "):
            _, kind, text = f"{line}  ".split(" ", 2)
            heard.alive = time.monotonic() if kind != SAY else heard.alive
            heard.connected |= kind == CONNECTED
            if kind == SAY:
                tell(shown(text.rstrip()))
            if kind in (ALIVE, CONNECTED):
                continue
            line = text.rstrip()
        line = shown(uncoloured(line), 2000)
        append_log(log, line + "\n")
        heard.last.append(line)
        del heard.last[:-40]
