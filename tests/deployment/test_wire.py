"""Sixty identifiers around two sites: none in what leaves them, nor in what the server keeps."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import sys
from collections.abc import Iterator

import pytest
import yaml

from core.journal import read_events
from tests.client.test_exceptions import PLACES, forms
from tests.deployment.conftest import PLAN, Machine, Place, free_port, hnfed
from tests.deployment.proxy import Proxy, dial_through

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(2400)]
LEAKY = ("nyu", "north")
# Raised once each while the two leaky sites answer, in whatever round they are reached.
RAISED = [*PLACES["train"], *PLACES["evaluate"]]
ROUNDS = len(RAISED) // 2 + 2
FAMILY = ("DOE^JANE", "MUSTERFRAU", "OBRIEN")


def token(number: int) -> str:
    return f"{FAMILY[number % len(FAMILY)]}{4711 + number}X"


VARIABLES = ("USER", "LOGNAME", "HOSTNAME")
GIVEN = 34  # around the two sites
NAMED = [token(i) for i in range(GIVEN + len(VARIABLES))]
TEXTS = [f"RAISED{i:02d}{place[1].strip('_')}Q" for i, place in enumerate(RAISED)]
TOKENS = NAMED + TEXTS

# Stands in the place of the worker: dies once at each place, then goes on as it.
INJECTED = """
import fcntl, sys, threading
from pathlib import Path
import hnfed.guard.worker as worker
left = Path("LEFT")
armed, wanted = [False], [line.split("|") for line in left.read_text().splitlines()]
def claimed(line):
    with open(left, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.read().splitlines()
        if line not in lines:
            return False  # the other site died there meanwhile
        lines.remove(line)
        file.seek(0)
        file.truncate()
        file.write("".join(each + "\\n" for each in lines))
        return True
def on_call(frame, event, argument):
    code = frame.f_code
    if code.co_name in ("train", "evaluate") and code.co_filename.endswith("client/app.py"):
        armed[0] = True
    if not armed[0]:
        return
    for place in list(wanted):
        if code.co_name == place[1] and code.co_filename.endswith(place[0]):
            wanted.remove(place)
            if claimed("|".join(place)):
                wanted.clear()
                raise FileNotFoundError(f"/data/{place[2]}/img.nrrd of {place[2]}")
threading.settrace(on_call)
sys.settrace(on_call)
worker.main()
"""
# A node whose worker is that one, without walls: the list of places lies outside of them.
NODE = """
import os, hnfed.guard.closed as closed, hnfed.guard.node as node
closed.WORKER = ("-P", "-B", "WORKER")
node.walls_of = lambda *a, **k: None
from hnfed.deploy.node import main
os._exit(main())
"""
CLIENT = """
import sys, hnfed.deploy.supernode as supernode
supernode.NODE = ("-P", "NODE")
from hnfed.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def named(place: Place) -> Place:
    """Names, ids, paths, spellings and environment of the leaky sites are full of identifiers."""
    spare = iter(range(GIVEN))
    for site in LEAKY:
        values = yaml.safe_load((place.folder / f"{site}.yaml").read_text())
        root = place.folder / f"archive of {token(next(spare))}" / token(next(spare))
        shutil.copytree(values["root"], root)
        (root / "cases.csv").unlink(missing_ok=True)
        for case in sorted(p for p in root.iterdir() if p.is_dir()):
            named = case.rename(case.with_name(token(next(spare))))
            image = named / "img.nrrd"
            header = f"DICOM_0010_0020:={token(next(spare))}\n".encode()
            image.write_bytes(image.read_bytes().replace(b"encoding:", header + b"encoding:", 1))
            extra = named / "structures" / f"PTV {token(next(spare))}.nrrd"
            extra.write_bytes(next(named.glob("structures/*.nrrd")).read_bytes())
        values |= {
            "root": str(root),
            "aliases": {"Parotid_L": [f"Parotis {token(next(spare))}"]},
            "cache": str(place.folder / "state" / token(next(spare)) / "cache"),
            "state": str(place.folder / "state" / token(next(spare)) / "state"),
            "split": {"train": 0.5, "val": 0.25, "test": 0.25, "seed": 0},
        }
        (place.folder / f"{site}.yaml").write_text(yaml.safe_dump(values))
    assert next(spare, None) is None
    return place


def searched(place: Place, wire: bytes) -> Iterator[tuple[str, bytes]]:
    """All that left the sites, and all that lies at the coordinator's."""
    yield "the wire", wire
    for path in (place.folder / "kits" / "server").rglob("*"):
        if path.is_file():
            yield str(path.relative_to(place.folder)), path.read_bytes()
    for name in ("server.log", "wire.log"):
        yield name, (place.folder / name).read_bytes()


def leaky(place: Place, site: str) -> Machine:
    words = ("client", place.folder / "kits" / site, "--site", place.folder / f"{site}.yaml")
    log, program = place.folder / f"{site}.log", place.folder / "programs" / "client.py"
    return place.start(Machine(log, sys.executable, "-P", program, *words))


def test_no_identifier_leaves_a_site(named: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place, server_kit = named, named.kit("server")
    # One each: the server takes a site's certificate with that site's key alone.
    proxies = [Proxy(server_kit, place.kit(site), free_port(), keep=True) for site in LEAKY]
    for site, proxy in zip(LEAKY, proxies, strict=True):
        dial_through(place.kit(site), proxy.port)
    left = place.folder / "raise.txt"
    texts = zip(RAISED, TEXTS, strict=True)
    left.write_text("".join(f"{p[0]}|{p[1]}|{t}\n" for p, t in texts))
    programs = place.folder / "programs"  # apart: nothing is imported from where others run
    programs.mkdir()
    names = {"LEFT": left, "WORKER": programs / "worker.py", "NODE": programs / "node.py"}
    for name, text in (("worker", INJECTED), ("node", NODE), ("client", CLIENT)):
        for word, path in names.items():
            text = text.replace(f'"{word}"', f'"{path}"')
        (programs / f"{name}.py").write_text(text)
    for variable, name in zip(VARIABLES, NAMED[GIVEN:], strict=True):
        monkeypatch.setenv(variable, name)
    plan = json.loads(json.dumps(PLAN))
    plan["phases"] = [
        plan["phases"][0] | {"rounds": ROUNDS, "patience": 10**6, "freeze": "encoder"}
    ]
    plan["federation"] |= {"min_sites": 1}
    plan["tracking"] = {"mode": "offline"}
    (place.folder / "wire.yaml").write_text(yaml.safe_dump(plan))
    server, kit = place.server(), server_kit.folder
    clients = [place.client("miccai"), *(leaky(place, site) for site in LEAKY)]
    try:
        for client in clients:
            assert client.says("connected", 90), client.log.read_text()
        run = hnfed(place.folder / "wire.log", "run", place.folder / "wire.yaml", "--server", kit,
                    "--name", "wire")  # fmt: skip
        assert run.process.wait(2200) == 0, run.log.read_text()
    finally:
        for machine in (*clients, server):
            machine.end()
        for proxy in proxies:
            proxy.close()
    assert left.read_text() == "", "each place was reached, and its exception raised"
    events = read_events(kit / "runs" / "wire" / "journal.jsonl")
    codes = [e["code"] for e in events if e["event"] == "rejected"]
    assert len(codes) >= len(RAISED)
    files = hits = 0
    host = socket.gethostname()
    words = TOKENS + [w for w in (host, pwd.getpwuid(os.getuid()).pw_name) if len(w) > 5]
    wire = b"".join(bytes(proxy.kept) for proxy in proxies)
    for name, content in searched(place, wire):
        files += 1
        for word in words:
            found = [form for form in forms(word) if form in content]
            if found and not (name.startswith("kits/server") and word == host):
                hits += 1
                print(f"{word} in {name}: {found[0][:40]!r}")
    assert b"pretrain" in wire, "what passed is readable: the search can find"
    assert re.search(rb"split_hash", wire)
    print(f"{len(words)} words in {files} files and {len(wire)} bytes of traffic: {hits} hits; "
          f"{len(codes)} refusals")  # fmt: skip
    assert len(TOKENS) >= 60
    assert hits == 0
