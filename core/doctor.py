"""`hnfed doctor`: is this machine ready; each check with a word and, where it fails, the remedy."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPSConnection
from pathlib import Path

from core.kit import SERVER, Kit

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
ROLES = ("site", "server", "researcher")
PACKAGES = ("torch", "flwr", "monai", "ray", "SimpleITK", "pydicom", "wandb")
LEAST_GB, LEAST_DISK_GB, SOON_DAYS = 6.0, 10.0, 30
AHEAD_S, BEHIND_S = 5.0, 300.0  # a node's signature is valid between


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: what, how it stands, what was found, what to do."""

    name: str
    state: str
    found: str
    remedy: str = ""


def examine(role: str, kit: Kit | None = None) -> Iterator[Check]:
    """Checks this machine, one thing after another.

    Args:
        role: of `ROLES`.
        kit: for a site or a server; without one its checks are left out.
    """
    checks: list[Callable[[], Check]] = [_python, _packages, _device, _memory, _disk, _quiet]
    for check in checks:
        yield _guarded(check)
    if role != "site":
        yield _guarded(_tracking)
    if role == "server":
        yield _guarded(_nginx)
    if kit is None:
        if role != "researcher":
            yield Check("kit", WARN, "none given", "give it: hnfed doctor --role site --kit KIT")
        return
    yield _guarded(lambda: _private(kit))
    yield _guarded(lambda: _whole(kit))
    if role == "server":
        yield _guarded(lambda: _certificate(kit))
        yield _guarded(lambda: _port(kit))
    else:
        yield _guarded(lambda: _approved(kit))
        yield from dial(kit)


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (OSError, ValueError, ImportError) as error:
        name = getattr(check, "__name__", "check").strip("_<>")
        return Check(name, FAIL, f"{type(error).__name__}: {error}", "mend it and run this again")


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] == (3, 11)
    return Check("Python", PASS if good else FAIL, found, "" if good else "use Python 3.11")


def _packages() -> Check:
    absent = []
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            absent.append(name)
    if absent:
        return Check("packages", FAIL, f"missing: {', '.join(absent)}", "make install")
    return Check("packages", PASS, ", ".join(PACKAGES))


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__}, no CUDA device"
        return Check("device", WARN, found, "training runs on the CPU; install a driver for a GPU")
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return Check("device", PASS, f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")


def _memory() -> Check:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6
    good = free >= LEAST_GB
    remedy = "" if good else "close other programs, or take a smaller crop or model"
    return Check("memory", PASS if good else WARN, f"{free:.0f} GB free", remedy)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    good = free >= LEAST_DISK_GB
    remedy = "" if good else "free some: a cache takes some MB a case"
    return Check("disk", PASS if good else WARN, f"{free:.0f} GB free here", remedy)


def _quiet() -> Check:
    asked = [k for k in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
             if os.environ.get(k, "0") not in ("0", "false")]  # fmt: skip
    if asked:
        return Check("telemetry", WARN, f"{', '.join(asked)} is on", "unset it; hnfed turns it off")
    return Check("telemetry", PASS, "off: hnfed turns Flower's and Ray's off")


def _tracking() -> Check:
    """W&B: only the server's side opens it, offline unless the plan says otherwise."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("disabled", "offline"):
        return Check("W&B", PASS, f"WANDB_MODE={mode}: nothing is sent")
    if os.environ.get("WANDB_API_KEY") or _has_login(Path.home() / ".netrc"):
        return Check("W&B", PASS, "a key is there: tracking.mode=online can send")
    remedy = "for tracking.mode=online: set WANDB_API_KEY, or run `wandb login`"
    return Check("W&B", WARN, "no key: runs are kept offline, as by default", remedy)


def _has_login(netrc: Path) -> bool:
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace")


def _nginx() -> Check:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        return Check("nginx", FAIL, "missing", "apt install nginx")
    return Check("nginx", PASS, found)


def _private(kit: Kit) -> Check:
    open_to = [p.name for p in kit.folder.glob("*.key") if p.stat().st_mode & 0o077]
    if open_to:
        remedy = f"chmod 600 {kit.folder}/*.key"
        return Check("keys", FAIL, f"others can read {', '.join(open_to)}", remedy)
    return Check("keys", PASS, "only you can read them")


def _whole(kit: Kit) -> Check:
    wrong = []
    for line in (kit.folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        path = kit.folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(name)
    if wrong:
        remedy = "get the kit again from the coordinator"
        return Check("kit", FAIL, f"changed or missing: {', '.join(wrong)}", remedy)
    return Check("kit", PASS, f"whole, {kit.role} of federation {kit.federation}")


def _certificate(kit: Kit) -> Check:
    from cryptography import x509

    made = x509.load_pem_x509_certificate((kit.folder / "server.crt").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    held = {str(name.value) for name in names}
    days = (made.not_valid_after_utc - datetime.now(UTC)).days
    remedy = "hnfed provision FEDERATION.yaml -o KITS, then start the server again"
    if kit.host not in held or days < 0:
        found = f"for {', '.join(sorted(held))}, {days} days left; sites dial {kit.host}"
        return Check("certificate", FAIL, found, remedy)
    state = WARN if days < SOON_DAYS else PASS
    return Check("certificate", state, f"{days} days left", remedy if state == WARN else "")


def _port(kit: Kit) -> Check:
    with socket.socket() as probe:
        probe.settimeout(3)
        taken = probe.connect_ex(("127.0.0.1", kit.port)) == 0
    return Check("port", PASS, f"{kit.port}: {'the server answers' if taken else 'free'}")


def _approved(kit: Kit) -> Check:
    path = kit.folder / "approved.json"
    count = len(json.loads(path.read_text())) if path.is_file() else 0
    if not count:
        return Check("approved code", FAIL, "none", "hnfed approve KIT")
    return Check("approved code", PASS, f"{count} bundles")


def dial(kit: Kit) -> Iterator[Check]:
    """Name, port, certificate, proxy and clock of the server, as seen from this site."""
    where = f"{kit.host}:{kit.port}"
    try:
        socket.create_connection((kit.host, kit.port), timeout=10).close()
    except OSError as error:
        remedy = "is the server up, the name right, and the port open on the way out?"
        yield Check("server", FAIL, f"{where}: {error}", remedy)
        return
    context = ssl.create_default_context(cafile=str(kit.ca))
    link = HTTPSConnection(kit.host, kit.port, context=context, timeout=10)
    try:
        with contextlib.closing(link):
            link.request("GET", "/health")
            reply = link.getresponse()
            reply.read()
    except ssl.SSLCertVerificationError as error:
        remedy = "ask the coordinator: is it this federation's server, its certificate renewed?"
        yield Check("TLS", FAIL, f"{where}: {error.verify_message}", remedy)
        return
    except (OSError, ValueError) as error:
        yield Check("TLS", FAIL, f"{where}: {error}", "is something between that is no TLS server?")
        return
    yield Check("TLS", PASS, f"{where} holds a certificate of federation {kit.federation}")
    good = reply.status == 200
    remedy = "" if good else "a proxy or firewall answers in the server's place"
    yield Check("server", PASS if good else FAIL, f"answers {reply.status}", remedy)
    told = reply.getheader("Date")
    if told:
        yield clock(time.time() - parsedate_to_datetime(told).timestamp())


def clock(ahead_s: float) -> Check:
    """This machine's clock against the server's: one that is off gets its signatures refused."""
    good = -BEHIND_S < ahead_s < AHEAD_S
    found = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    remedy = "" if good else "set the clock (NTP): a node's signature would be refused"
    return Check("clock", PASS if good else FAIL, found, remedy)


def report(checks: Iterator[Check]) -> int:
    """Prints the checks; 1 where one failed."""
    failed = 0
    for check in checks:
        print(f"{check.state}  {check.name:<14} {check.found}")
        if check.remedy:
            print(f"      {'':<14} -> {check.remedy}")
        failed += check.state == FAIL
    return int(bool(failed))


def role_of(kit: Kit | None, role: str | None) -> str:
    """The role asked for, else that of the kit, else researcher."""
    if role is not None:
        return role
    return "researcher" if kit is None else SERVER if kit.role == SERVER else "site"
