"""`hnfed provision`: certificate authority, server certificate, a certificate and a kit a site."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import jinja2
from cryptography.hazmat.primitives.asymmetric import ec

from core.errors import UserError, suggestion
from core.files import replace_file
from core.identifiers import SiteName, site_name
from core.plan.load import read_yaml
from core.plan.ranges import number_of
from core.text import shown
from hnfed.deploy.answer import Answer
from hnfed.deploy.authority import (
    RENEW_DAYS,
    Authority,
    fits,
    flower_key_of,
    holds,
    key_of,
    made_authority,
    made_node_key,
    read_authority,
    serial_of,
    ssh_of,
    write_authority,
    write_private,
)
from hnfed.guard.kit import FILE, HOST, NAME, SERVER, Kit
from hnfed.guard.kit_files import kept_json, kept_text, needed_bytes, needed_json
from hnfed.guard.peers import merged, read_peers, write_peers

ROSTER, CERTIFICATES, SUMS = "roster.json", "certificates.json", "SHA256SUMS"
REVOKED, ANSWERS = "revoked", "answers"
UNSUMMED = (SUMS, ROSTER, CERTIFICATES, "policy.yaml", "peers.json", "request.pem")
DAYS = 730
RESERVED = (SERVER, "ca", REVOKED, ANSWERS)
KEYS = ("here", "site")
MISSING = "(missing)"
# What a site's node asks for, and the largest body of each; all else is refused before Flower.
SMALL, LARGE = "64k", "8m"  # Flower sends no piece of more than 5 MiB
FLEET = {
    "activate-node": SMALL,
    "deactivate-node": SMALL,
    "send-node-heartbeat": SMALL,
    "pull-messages": SMALL,
    "push-messages": "1m",
    "get-run": SMALL,
    "get-fab": SMALL,
    "push-object": LARGE,
    "pull-object": SMALL,
    "confirm-message-received": SMALL,
}


@dataclass(frozen=True)
class Federation:
    """``federation.yaml``: name, where sites reach the server, which sites there are.

    `keys` says who makes a new site's key: the ``site`` (`hnfed join`), or ``here`` as before.
    """

    name: str
    host: str
    port: int
    internal_port: int
    sites: tuple[str, ...]
    days: int
    keys: str = "here"


def read_federation(path: Path) -> Federation:
    """Reads ``federation.yaml``.

    Raises:
        UserError: a key that is unknown, missing or unusable.
    """
    values = read_yaml(path)
    known = ("name", "server", "sites", "days", "keys")
    for key in values:
        if key not in known:
            remedy = f"{suggestion(str(key), known)}use one of {', '.join(known)}"
            raise UserError(f"federation: {key}", values[key], remedy, problem="unknown key")
    server = values.get("server") or {}
    if not isinstance(server, dict) or set(server) - {"host", "port", "internal_port"}:
        raise UserError("federation: server", server, "give host, port and internal_port")
    name, host = str(values.get("name", "")), str(server.get("host", ""))
    if not NAME.fullmatch(name):
        raise UserError("federation: name", name or MISSING, "use small letters, digits, - and _")
    if not HOST.fullmatch(host):
        raise UserError(
            "federation: server.host", host or MISSING, "give the name or IP that sites dial"
        )
    port, internal = server.get("port", 28443), server.get("internal_port", 28444)
    days, sites = values.get("days", DAYS), values.get("sites")
    numbers = {"server.port": port, "server.internal_port": internal, "days": days}
    for key, value in numbers.items():
        number_of("federation", key, value, whole=True)
    if port == internal:
        raise UserError("federation: server.internal_port", internal, "give it another number")
    if not isinstance(sites, list) or not sites:
        raise UserError("federation: sites", sites or MISSING, "list the sites: [nyu, miccai]")
    for site in sites:
        kit_name(site, "federation: sites")
    if len(set(sites)) < len(sites):
        raise UserError("federation: sites", sites, "name each site once")
    keys = values.get("keys", "here")
    if keys not in KEYS:
        raise UserError("federation: keys", keys, f"use one of {', '.join(KEYS)}")
    return Federation(name, host, port, internal, tuple(sites), days, keys)


def kit_name(value: object, field: str) -> SiteName:
    """A site's name that may also name a kit, on file systems that do not tell capitals apart.

    Raises:
        UserError: not of that form, or a folder of other things.
    """
    remedy = "use small letters, digits, - and _, 32 at most, the first a letter"
    if value in RESERVED:
        problem = "the folder of that name holds something else"
        raise UserError(field, value, "choose another name for the site", problem=problem)
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise UserError(field, shown(value, 100), remedy)
    return site_name(value, field)


def provision(
    federation: Federation,
    out: Path,
    *,
    add: Sequence[str] = (),
    revoke: Sequence[str] = (),
    sign: Mapping[str, ec.EllipticCurvePublicKey] | None = None,
    now: datetime | None = None,
) -> list[str]:
    """Makes or completes the kits; keys and certificates that are there and valid are kept.

    A site of the roster whose kit is gone has it: it was handed over, and its key stays. Whatever
    such a site needs anew (its certificate, those of the other sites) goes into an answer file.

    Args:
        federation: from `read_federation`.
        out: folder of the kits; mode 0700.
        add: sites beside those of the file; one whose kit was handed over gets another kit, with a
            new key in the place of the old one.
        revoke: sites whose kits are taken out of service.
        sign: keys that sites made themselves (`hnfed.deploy.authority.read_request`), by site; each
            takes the place of the key that the site had.
        now: for tests.

    Returns:
        What was done, a line each.

    Raises:
        UserError: a name that is no site, or the authority of kits that exist is gone.
    """
    signed = dict(sign or {})
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    roster_path = out / SERVER / ROSTER
    known = _texts(roster_path)
    _require_sites(known, add, revoke, signed)
    for site in (*add, *signed):
        shutil.rmtree(out / REVOKED / site, ignore_errors=True)
    gone = set(revoke) | {p.name for p in (out / REVOKED).glob("*")}
    wanted = [s for s in dict.fromkeys([*known, *federation.sites, *add, *signed]) if s not in gone]
    if (out / "ca" / "ca.key").is_file() and not roster_path.is_file():
        raise UserError(
            "server", out / SERVER, f"bring the server's kit back, or its {ROSTER} at least",
            problem="the list of the sites' keys is gone; new ones would lock every site out",
        )  # fmt: skip
    kits = _Kits(federation, out, now or datetime.now(UTC))
    authority = kits.authority()
    kits.server_certificate(authority)
    keys = {s: kits.key(s, known.get(s, ""), s in add, signed.get(s)) for s in wanted}
    roster = {site: key for site, key in keys.items() if key}
    certificates = kits.certificates(roster, authority)
    for site in roster:
        kits.hand(site, certificates, authority)
    for site in revoke:
        kits.revoke(site)
    replace_file(roster_path, json.dumps(roster, indent=2) + "\n")
    _server_files(federation, out / SERVER, certificates, authority)
    return kits.done


def _require_sites(
    known: Mapping[str, str], add: Sequence[str], revoke: Sequence[str], sign: Mapping[str, object]
) -> None:
    for site in known:
        kit_name(site, f"{SERVER}/{ROSTER}")
    for site in (*add, *revoke, *sign):
        kit_name(site, "--add-site, --revoke, --sign")
    for site in revoke:
        if site not in known:
            raise UserError("--revoke", site, f"choose one of {', '.join(known) or '(none)'}")


@dataclass
class _Kits:
    """The kits of a federation as they are made; `done` gets a line on what was done."""

    federation: Federation
    out: Path
    now: datetime
    done: list[str] = field(default_factory=list)

    def authority(self) -> Authority:
        """The federation's own certificate authority; its key stays with the coordinator."""
        folder = self.out / "ca"
        folder.mkdir(exist_ok=True)
        found = read_authority(folder)
        if found is not None:
            return found
        if (folder.parent / SERVER / "server.crt").is_file():
            raise UserError(
                "ca", folder, "bring ca.key and ca.crt back while `hnfed provision` runs",
                problem="the kits' authority is gone; no site would trust a server of a new one",
            )  # fmt: skip
        made = made_authority(self.federation.name, 2 * self.federation.days + RENEW_DAYS, self.now)
        write_authority(made, folder)
        self.done.append("ca: made; keep ca/ca.key off the network")
        return made

    def server_certificate(self, authority: Authority) -> None:
        """The server's certificate, made anew for another name or for age."""
        folder = self.out / SERVER
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys([self.federation.host, "localhost", "127.0.0.1"]))
        path, key_path = folder / "server.crt", folder / "server.key"
        before = kept_text(path)
        if key_path.is_file() and before is not None and holds(before, names, self.now):
            return
        key, certificate = authority.server(names, self.now, self.federation.days)
        write_private(key_path, key)
        replace_file(path, certificate)
        self.done.append(f"server: certificate for {', '.join(names)}, {self.federation.days} days")

    def key(
        self, site: str, former: str, renewed: bool, own: ec.EllipticCurvePublicKey | None
    ) -> str:
        """A site's public key in OpenSSH's form; made here if need be, "" where the site makes it.

        Args:
            site: whose.
            former: its key in the roster, "" for none.
            renewed: whether it is to get another kit.
            own: the key that it made itself.
        """
        folder = self.out / site
        if own is not None:
            shutil.rmtree(folder, ignore_errors=True)  # a key made here is in nobody's use any more
            self.done.append(f"{site}: signed the key that it made itself")
            if former and former != ssh_of(own):
                self.done.append(f"{site}: its key is a new one; its former key is refused")
            return ssh_of(own)
        if former and not renewed and not _complete(folder):
            self.done.append(f"{site}: handed over before; its key stays")
            return former
        if _complete(folder):
            if renewed and former:
                self.done.append(
                    f"{site}: its kit is here, its key stays; for a new one delete {site}/"
                )
        elif self.federation.keys == "site":
            self.done.append(f"{site}: waits for its request (hnfed join there, then --sign here)")
            return ""
        else:
            self._made_here(site, replaces=bool(former))
        return needed_bytes(folder / "node.pub").decode("ascii", "replace").strip()

    def _made_here(self, site: str, *, replaces: bool) -> None:
        """The old way, kept for one release: the site's key is made at the coordinator's."""
        folder = self.out / site
        folder.mkdir(exist_ok=True)
        private, public = made_node_key()
        write_private(folder / "node.key", private)
        replace_file(folder / "node.pub", public + "\n")
        self.done.append(
            f"{site}: kit made, its key too; hand it over by a safe way, then delete it here "
            "(better: the site makes its own by `hnfed join`, as the next release demands)"
        )
        if replaces:
            self.done.append(f"{site}: its key is a new one; the key of its former kit is refused")

    def certificates(self, roster: Mapping[str, str], authority: Authority) -> dict[str, str]:
        """A certificate (PEM) a site: the one it has, or one made anew for another key or age."""
        path = self.out / SERVER / CERTIFICATES
        found = _texts(path)
        certificates = {}
        for site, public in roster.items():
            key = key_of(public)
            if site not in found or not fits(found[site], site, key, self.now):
                fresh = site not in found
                found[site] = authority.site(site, key, self.now, self.federation.days)
                if not fresh and (self.out / site / "node.key").is_file():
                    self.done.append(
                        f"{site}: a new certificate, {self.federation.days} days, in its kit"
                    )
            certificates[site] = found[site]
        replace_file(path, json.dumps(certificates, indent=1) + "\n")
        return certificates

    def hand(self, site: str, certificates: Mapping[str, str], authority: Authority) -> None:
        """What a site gets: files of its kit where that is here, else an answer file."""
        of, own = self.federation, certificates[site]
        ports = of.port, of.internal_port
        answer = Answer(of.name, site, of.host, *ports, authority.pem, own, dict(certificates))
        path = self.out / ANSWERS / f"{site}.json"
        if _complete(self.out / site):
            path.unlink(missing_ok=True)
            self.done += write_site_kit(answer, self.out / site)
            return
        if kept_text(path) == answer.text():
            return
        path.parent.mkdir(exist_ok=True)
        replace_file(path, answer.text())
        self.done.append(f"{site}: send it the new {ANSWERS}/{site}.json; nothing in it is secret")

    def revoke(self, site: str) -> None:
        """Takes a kit out of service; also one that was handed over."""
        target = self.out / REVOKED / site
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        if (self.out / site).is_dir():
            shutil.move(self.out / site, target)
        target.mkdir(exist_ok=True)  # also of a kit that was handed over: it stays revoked
        (self.out / ANSWERS / f"{site}.json").unlink(missing_ok=True)
        self.done.append(f"{site}: revoked; a running server of these files refuses it at once")


def _complete(folder: Path) -> bool:
    """Whether a site's keys are here; a kit that was handed over is deleted here."""
    return (folder / "node.key").is_file() and (folder / "node.pub").is_file()


def write_site_kit(answer: Answer, folder: Path) -> list[str]:
    """All of a site's kit but its key: from the coordinator's answer and this installation.

    What the site decides (``policy.yaml``, which other sites it confirmed) is kept.

    Returns:
        What a person should know, a line each.

    Raises:
        ValueError: a certificate in the answer is none.
    """
    kit = answer.kit(folder)
    peers, told = merged(read_peers(kit), answer.peers, answer.site)
    replace_file(kit.ca, answer.authority)
    replace_file(kit.client_certificate, answer.certificate)
    replace_file(folder / FILE, kit.text())
    write_peers(kit, peers)
    if not (folder / "policy.yaml").is_file():
        _render(folder / "policy.yaml", "site_policy.yaml.j2", kit)
    for name in ("hnfed-client.service", "README.md"):
        _render(folder / name, f"site_{name}.j2", kit)
    _checksums(folder)
    return told


def _server_files(
    federation: Federation, folder: Path, certificates: Mapping[str, str], authority: Authority
) -> None:
    kit = Kit(folder, federation.name, SERVER, federation.host, federation.port,
              federation.internal_port)  # fmt: skip
    replace_file(kit.ca, authority.pem)
    replace_file(folder / FILE, kit.text())
    serials = {serial_of(pem): site for site, pem in certificates.items()}
    keys = {serial_of(pem): flower_key_of(pem) for pem in certificates.values()}
    for name in ("nginx.conf", "hnfed-server.service", "README.md"):
        _render(folder / name, f"server_{name}.j2", kit, serials=serials, keys=keys, fleet=FLEET)
    _checksums(folder)


def _render(path: Path, template: str, kit: Kit, **values: object) -> None:
    text = (
        resources.files("hnfed.deploy").joinpath("templates", template).read_text(encoding="utf-8")
    )
    made = jinja2.Environment(  # plain text, no page: nothing to escape
        autoescape=False, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string(text)
    about = {"name": kit.federation, "host": kit.host, "port": kit.port,
             "internal_port": kit.internal_port}  # fmt: skip
    replace_file(path, made.render(f=about, role=kit.role, **values))


def read_roster(kit: Path) -> dict[str, str]:
    """The public key of each site, from the server's kit.

    Raises:
        UserError: a damaged file, or none: it may be being copied.
    """
    return _as_texts(needed_json(kit / ROSTER), kit / ROSTER)


def _texts(path: Path) -> dict[str, str]:
    """A text for each site; {} where there is no such file."""
    found = kept_json(path)
    return {} if found is None else _as_texts(found, path)


def _as_texts(found: object, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError(path.name, path, "restore the file", problem="it is damaged")
    return found


def _checksums(folder: Path) -> None:
    """SHA-256 of the kit's files; keys and what changes in use are left out."""
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_file() and p.suffix != ".key" and p.name not in UNSUMMED
    )
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}" for n in names]
    replace_file(folder / SUMS, "\n".join(sums) + "\n")
