"""`hnfed doctor`: is this machine ready; each check with a word and, where it fails, the remedy."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import socket
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from core.errors import UserError
from core.files import private_folder
from core.plan.schema import Plan
from core.processes import held
from core.text import shown_text
from hnfed.guard.kit import SERVER, Kit
from hnfed.guard.kit_files import kept_bytes, needed_bytes
from hnfed.guard.proxy import http_options, shown
from hnfed.installation import PYTHON, in_words, within

if TYPE_CHECKING:
    from cryptography import x509

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
ROLES = ("site", "server", "researcher")
PACKAGES = ("torch", "flwr", "monai", "ray", "SimpleITK", "pydicom", "wandb")
LEAST_GB, LEAST_DISK_GB, SOON_DAYS = 6.0, 10.0, 30
TIGHT = 0.8  # of the free memory: beyond it a plan may end for want of some
NEW_ANSWER = "ask the coordinator for a new answer file, then: hnfed join KIT --answer FILE"
AHEAD_S, BEHIND_S = 5.0, 300.0  # a node's signature is valid between


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: what, how it stands, what was found, what to do."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def examine(
    role: str,
    kit: Kit | None = None,
    *,
    plan: Plan | None = None,
    device: str = "auto",
    cache: Path | None = None,
    proxy: str = "",
) -> Iterator[Check]:
    """Checks this machine, one thing after another.

    Args:
        role: of `ROLES`.
        kit: for a site or a server; without one its checks are left out.
        plan: whose memory is held against this machine's; None leaves that out.
        device: that the plan would train on.
        cache: folder of prepared cases, to be tried; None leaves that out.
        proxy: of the site file, see `hnfed.guard.proxy.proxy_of`.
    """
    checks: list[Callable[[], Check]] = [_python, _packages, _memory, _disk, _quiet]
    for check in checks if role == "server" else [*checks, _device]:
        yield _guarded(check)
    if plan is not None:
        yield _guarded(_suffices, plan, device)
    if cache is not None:
        yield _guarded(_cache, cache)
    if role != "site":
        yield _guarded(_tracking)
    if role == "server":
        yield _guarded(_nginx)
    if kit is None:
        if role != "researcher":
            yield Check("kit", WARN, "none given", "give it: hnfed doctor --role site --kit KIT")
        return
    yield _guarded(_private, kit)
    yield _guarded(_whole, kit)
    if role == "server":
        yield _guarded(_certificate, kit)
        yield _guarded(_port, kit)
    else:
        yield _guarded(_approved, kit)
        yield _guarded(_own_certificate, kit)
        yield _guarded(_weights, kit)
        if plan is not None:
            yield _guarded(_allowed, kit, plan)
        yield from dial(kit, proxy)


def failed(name: str, error: UserError) -> Check:
    """A check that ended in an error of ours: what it names becomes the line, and its remedy."""
    found = f"{error.field} = {error.value}: {error.problem}".rstrip(": ")
    return Check(name, FAIL, found, error.remedy)


def judged(name: str, good: bool, detail: str, remedy: str, bad: str = WARN) -> Check:
    """A check that passes, or is `bad` and has a remedy."""
    return Check(name, PASS, detail) if good else Check(name, bad, detail, remedy)


def _guarded(check: Callable[..., Check], *arguments: object) -> Check:
    try:
        return check(*arguments)
    except UserError as error:
        return failed(_name(check), error)
    except (OSError, ValueError, ImportError) as error:
        return Check(
            _name(check), FAIL, f"{type(error).__name__}: {error}", "mend it and run this again"
        )


def _name(check: Callable[..., Check]) -> str:
    return check.__name__.strip("_").replace("_", " ")


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    good = within(sys.version_info[:2], PYTHON)
    return judged("Python", good, found, f"use Python {in_words(PYTHON)}", FAIL)


def _packages() -> Check:
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    found = f"missing: {', '.join(absent)}" if absent else ", ".join(PACKAGES)
    return judged("packages", not absent, found, "make install", FAIL)


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__}, no CUDA device"
        return Check("device", WARN, found, "training runs on the CPU; install a driver for a GPU")
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        gpus.append(f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    return Check("device", PASS, "; ".join(gpus))


def _memory() -> Check:
    free = _free_bytes("cpu") / 1e9
    remedy = "close other programs, or take a smaller crop or model"
    return judged("memory", free >= LEAST_GB, f"{free:.0f} GB free", remedy)


def _suffices(plan: Plan, device: str) -> Check:
    """A step of the plan, taken with made-up voxels, against the memory that is free."""
    from core.training.ranks import devices_of, name_of, require_batch
    from simulations.memory_probe import REMEDY, rehearse

    name = "plan's memory"
    try:
        devices = devices_of(device)
        require_batch(plan.train.batch, devices)
        free = min(_free_bytes(str(target)) for target in devices)
        step = rehearse(plan, device)
    except UserError as error:
        return failed(name, error)
    found = f"a step of training takes {step.peak_bytes / 1e9:.1f} of {free / 1e9:.1f} GB free"
    found += f" and {step.seconds:.1f} s on {name_of(devices)}"
    return judged(name, step.peak_bytes < TIGHT * free, found, REMEDY)


def _free_bytes(target: str) -> int:
    if target.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(target)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def _cache(folder: Path) -> Check:
    """Cases are prepared under locks: can this folder be written, and does a lock keep others out?

    Some network shares grant the same lock twice.
    """
    locks = folder / "locks"
    private_folder(folder)
    private_folder(locks)
    free = shutil.disk_usage(folder).free / 1e9
    path = locks / f"doctor-{uuid.uuid4().hex[:8]}.lock"
    try:
        with FileLock(path, timeout=5):
            if not held(path):
                remedy = "put `cache` on a disk of this machine"
                return Check("cache", FAIL, f"{folder}: a lock does not keep others out", remedy)
    except Timeout:
        return Check("cache", FAIL, f"{folder}: no lock to be had", "put `cache` on another disk")
    finally:
        path.unlink(missing_ok=True)
    busy = [p for p in locks.glob("*.lock") if held(p)]
    found = f"{folder}: can be written, its locks hold, {free:.0f} GB free"
    if busy:
        found += f"; {len(busy)} cases are being prepared now"
    return judged("cache", free >= LEAST_DISK_GB, found, "free some space there")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    remedy = "free some: a cache takes some MB a case"
    return judged("disk", free >= LEAST_DISK_GB, f"{free:.0f} GB free here", remedy)


def _quiet() -> Check:
    asked = [k for k in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
             if os.environ.get(k, "0") not in ("0", "false")]  # fmt: skip
    found = f"{', '.join(asked)} is on" if asked else "off: hnfed turns Flower's and Ray's off"
    return judged("telemetry", not asked, found, "unset it; hnfed turns it off")


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


def nginx_program() -> str | None:
    """Where nginx is; None where it is not."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _nginx() -> Check:
    found = nginx_program()
    return judged("nginx", found is not None, found or "missing", "apt install nginx", FAIL)


def _private(kit: Kit) -> Check:
    open_to = [p.name for p in kit.folder.glob("*.key") if p.stat().st_mode & 0o077]
    found = f"others can read {', '.join(open_to)}" if open_to else "only you can read them"
    return judged(
        "keys", not open_to, found, f"chmod 600 {shlex.quote(str(kit.folder))}/*.key", FAIL
    )


def _whole(kit: Kit) -> Check:
    wrong = []
    remedy = "get the kit again from the coordinator"
    for line in needed_bytes(kit.folder / "SHA256SUMS").decode("utf-8").splitlines():
        digest, name = line.split("  ")
        path = kit.folder / name
        inside = path.resolve().is_relative_to(kit.folder.resolve())
        content = kept_bytes(path) if inside else None
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            wrong.append(name)
    if wrong:
        return Check("kit", FAIL, f"changed or missing: {', '.join(wrong)}", remedy)
    return Check("kit", PASS, f"whole, {kit.role} of federation {kit.federation}")


def _certificate(kit: Kit) -> Check:
    from cryptography import x509

    made = x509.load_pem_x509_certificate(needed_bytes(kit.folder / "server.crt"))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    held = {str(name.value) for name in names}
    days = (made.not_valid_after_utc - datetime.now(UTC)).days
    remedy = "hnfed provision FEDERATION.yaml -o KITS, then start the server again"
    if kit.host not in held or days < 0:
        found = f"for {', '.join(sorted(held))}, {days} days left; sites dial {kit.host}"
        return Check("certificate", FAIL, found, remedy)
    return judged("certificate", not _ends_soon(made), f"{days} days left", remedy)


def _ends_soon(certificate: x509.Certificate) -> bool:
    """Whether a month is left, or the last quarter of a certificate that was made for less."""
    whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    soon = min(timedelta(days=SOON_DAYS), whole / 4)
    return certificate.not_valid_after_utc - datetime.now(UTC) < soon


def _own_certificate(kit: Kit) -> Check:
    """How long the site's certificate holds, and how many other sites were confirmed here."""
    from cryptography import x509

    from hnfed.guard.peers import read_peers

    content = kept_bytes(kit.client_certificate)
    if content is None:
        return Check("certificate", FAIL, "the kit has none", NEW_ANSWER)
    made = x509.load_pem_x509_certificate(content)
    days = (made.not_valid_after_utc - datetime.now(UTC)).days
    try:
        peers = read_peers(kit).values()
    except UserError as error:
        return failed("certificate", error)
    sure = sum(peer.confirmed for peer in peers)
    found = f"{days} days left; {sure} of {len(peers)} other sites' keys confirmed here"
    bad = FAIL if days < 0 else WARN
    return judged("certificate", not _ends_soon(made), found, NEW_ANSWER, bad)


def _weights(kit: Kit) -> Check:
    """Whose weights this site works with, and whether it could tell them."""
    from hnfed.guard.peers import read_peers
    from hnfed.guard.policy import read_policy

    try:
        policy = read_policy(kit.folder / "policy.yaml")
        sure = sum(peer.confirmed for peer in read_peers(kit).values())
    except UserError as error:
        return failed("weights", error)
    if policy.weights == "any":
        found = "any: whoever takes over the server's machine can make a reply show one CT"
        remedy = "with three sites or more: federation.secure_aggregation=true, and weights: agreed"
        return Check("weights", WARN, found, remedy)
    if sure + 1 < policy.secure_aggregation_sites:
        found = f"agreed; {sure} other sites confirmed, shared phases need "
        found += f"{policy.secure_aggregation_sites - 1}"
        remedy = "hnfed join KIT --confirm SITE FINGERPRINT; a federation of two: weights: any in "
        return Check(
            "weights", WARN, found, remedy + "policy.yaml (docs/privacy.md: what it risks)"
        )
    return Check("weights", PASS, "agreed: this site derives them itself")


def _allowed(kit: Kit, plan: Plan) -> Check:
    """A plan against the site's policy, before a coordinator sends it."""
    from hnfed.guard.policy import PolicyError, read_policy, require_plan

    name = "plan's policy"
    try:
        require_plan(plan, kit.role, read_policy(kit.folder / "policy.yaml"))
    except UserError as error:
        return failed(name, error)
    except PolicyError as error:
        remedy = "the coordinator changes the plan, or the site that line of policy.yaml"
        return Check(name, WARN, f"refuses: {error}", remedy)
    return Check(name, PASS, "allows it")


def _port(kit: Kit) -> Check:
    answers = [_listens(kit.port), _listens(kit.internal_port)]
    found = f"{kit.port} and {kit.internal_port} (internal): "
    if answers[0] != answers[1]:
        found += f"something listens on {kit.port if answers[0] else kit.internal_port} alone"
        return Check("ports", FAIL, found, "end what holds it, or provision with another port")
    return Check("ports", PASS, found + ("the server is up" if answers[0] else "free"))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _approved(kit: Kit) -> Check:
    from hnfed.guard.approvals import approved

    count = len(approved(kit))
    found = f"{count} bundle{'s' if count > 1 else ''}" if count else "none"
    return judged("approved code", count > 0, found, "hnfed approve KIT", FAIL)


def dial(kit: Kit, proxy: str = "") -> Iterator[Check]:
    """Proxy, port, certificates and clock, as seen from this site: dialled as the node dials.

    Args:
        kit: the site's.
        proxy: of the site file, see `hnfed.guard.proxy.proxy_of`.
    """
    import httpx

    where = f"{kit.host}:{kit.port}"
    try:
        options = http_options(kit, proxy)
    except UserError as error:
        yield failed(error.field.removeprefix("site file: "), error)
        return
    by = shown(options["proxy"] or "")
    try:
        with httpx.Client(**options, timeout=10.0) as client:
            reply = client.get(f"https://{where}/health")
    except httpx.ProxyError as error:
        remedy = (
            "set `proxy` of the site file, user and password in it; let the proxy CONNECT there"
        )
        yield Check("proxy", FAIL, f"{by} refuses {where}: {error}", remedy)
        return
    except httpx.TransportError as error:
        yield _unreached(error, where, by)
        return
    if by:
        yield Check("proxy", PASS, f"{by} lets {where} through")
    yield Check("TLS", PASS, f"{where} holds a certificate of federation {kit.federation}")
    yield _answered(reply.status_code)
    told = reply.headers.get("Date")
    if told:
        yield clock(time.time() - parsedate_to_datetime(told).timestamp())


def _unreached(error: Exception, where: str, by: str) -> Check:
    """Which of TLS, proxy and server a failed connection speaks of."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = "ask the coordinator: is it this federation's server, its certificate renewed?"
        return Check("TLS", FAIL, f"{where}: {cause.verify_message}", remedy)
    if cause is not None:
        remedy = "is something between that is no TLS server?"
        return Check("TLS", FAIL, f"{where}: {cause}", remedy)
    found = f"{where}{f' by {by}' if by else ''}: {error or type(error).__name__}"
    remedy = "is the server up, the name right, and the port open on the way out?"
    return Check(
        "server", FAIL, found, f"{remedy} And the proxy's name and port?" if by else remedy
    )


def _answered(status: int) -> Check:
    """What nginx before the server thinks of this kit's certificate."""
    if status == 200:
        return Check("server", PASS, "answers, and knows this kit's certificate")
    if status in (400, 403):
        found = "it does not take this kit's certificate (revoked, replaced, old?)"
        return Check("server", FAIL, f"answers {status}: {found}", NEW_ANSWER)
    return Check("server", FAIL, f"answers {status}", "is `hnfed server` running there?")


def clock(ahead_s: float) -> Check:
    """This machine's clock against the server's: one that is off gets its signatures refused."""
    good = -BEHIND_S < ahead_s < AHEAD_S
    found = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    remedy = "set the clock (NTP): a node's signature would be refused"
    return judged("clock", good, found, remedy, FAIL)


def report(checks: Iterator[Check]) -> list[Check]:
    """Prints each check as it is done."""
    done = []
    for check in checks:
        print(f"{check.state}  {check.name:<14} {shown_text(check.detail)}")
        if check.remedy:
            print(f"      {'':<14} -> {shown_text(check.remedy)}")
        done.append(check)
    return done


def role_of(kit: Kit | None, role: str | None) -> str:
    """The role asked for, else that of the kit, else researcher."""
    if role is not None:
        return role
    return "researcher" if kit is None else SERVER if kit.role == SERVER else "site"
