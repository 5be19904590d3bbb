"""The process of a site that talks to the server; `hnfed.deploy.supernode` keeps it running.

Its settings come by standard input, so that nothing of them stands in the list of processes. What
it says to the person at the site begins with a word that only its supervisor knows.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from client.prepared import description_of, prepared_site
from core.data.cached_case import Entry
from core.plan.schema import Phase, Plan
from core.processes import Stopped, stop_by_signal
from core.text import shown
from core.training.ranks import devices_of, name_of
from hnfed.deploy.prepare import prepared_apart
from hnfed.deploy.site_file import require_own_kit, site_from_file
from hnfed.guard.fleet import Connection, FleetError, connect
from hnfed.guard.kit import Kit, private_key, read_kit
from hnfed.guard.node import House, serve
from hnfed.guard.pins import Pin
from hnfed.guard.policy import read_policy
from hnfed.guard.proxy import http_options
from hnfed.guard.walls import warning_of

LOCK = "node.lock"
SHOWN = 400  # signs of a line for the person at the site
ALIVE_SECONDS = 10.0  # between two signs of life
SAY, ALIVE, CONNECTED = "say", "alive", "connected"


def main() -> int:
    """Connects and answers until the connection is lost or a signal ends it."""
    os.umask(0o077)
    settings = json.loads(sys.stdin.read())
    stop_by_signal()
    voice = Voice(str(settings["word"]))
    kit, site_file = read_kit(Path(settings["kit"]), "site"), Path(settings["site"])
    policy = read_policy(kit.folder / "policy.yaml")
    if warning := warning_of(policy.sandbox):
        voice.say(warning)
    house = house_of(kit, site_file, voice.say)
    if (held := alone(house.guard)) is None:
        voice.say(f"another client works on {house.state}: give each kit a state folder of its own")
        return 1
    try:
        connection = dialled(kit, site_from_file(site_file, "node").proxy, voice.alive)
    except FleetError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    try:
        voice.tell(CONNECTED)
        serve(house, connection)
    except FleetError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except Stopped as stopped:
        return 128 + stopped.number
    finally:
        connection.close()
        os.close(held)
    return 0


def alone(guard: Path) -> int | None:
    """Holds the guard's folder, which two nodes at once would tear from under each other.

    Returns:
        A descriptor that holds it until it is closed; None where another process does.
    """
    guard.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(guard / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


class Voice:
    """What the supervisor hears.

    Args:
        word: begins each line; a secret of the two.
    """

    def __init__(self, word: str) -> None:
        self._word = word
        self._last = 0.0
        self._lock = threading.Lock()

    def tell(self, kind: str, text: str = "") -> None:
        """One line for the supervisor."""
        with self._lock:
            print(f"{self._word} {kind} {text}".rstrip(), flush=True)

    def say(self, text: str) -> None:
        """One line for the person at the site; foreign signs are written out."""
        self.tell(SAY, shown(text, SHOWN))

    def alive(self) -> None:
        """The server was heard: a sign of life at times."""
        if time.monotonic() - self._last > ALIVE_SECONDS:
            self._last = time.monotonic()
            self.tell(ALIVE)


def dialled(kit: Kit, proxy: str, heard: Callable[[], None]) -> Connection:
    """The connection of a kit.

    Args:
        kit: of the site.
        proxy: of the site file.
        heard: called whenever the server has answered.
    """
    options = http_options(kit, proxy)
    return connect(f"{kit.host}:{kit.port}", private_key(kit), options, heard=heard)


def house_of(kit: Kit, site_file: Path, say: Callable[[str], None]) -> House:
    """The site as the guard sees it.

    Args:
        kit: of the site.
        site_file: YAML.
        say: see `House`.
    """
    site = site_from_file(site_file, "node")
    require_own_kit(site, kit)
    devices = devices_of(site.device, "site file: device")

    def describe(run: str, pin: Pin) -> str:
        of_run = replace(site_from_file(site_file, run), device=name_of(devices))
        return description_of(of_run, pin.split, pin.left_out)

    def entries(plan: Plan, phase: Phase, split: str, of: str) -> list[Entry]:
        return prepared_site(description_of(site, split, {})).of_phase(plan, phase, of)

    return House(
        kit=kit,
        name=site.name,
        state=site.base_folder.parent.resolve(),
        cache=site.cache.resolve(),
        devices=devices,
        prepare=functools.partial(prepared_apart, site_file, kit.folder / "policy.yaml"),
        entries=entries,
        describe=describe,
        say=say,
    )


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no thread of a library keeps a node that has ended
