"""`hnfed provision`: certificate authority, server certificate, one key and one kit a site."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.config import read_yaml
from core.errors import UserError
from core.files import replace_file
from core.identifiers import SiteName, site_name
from core.kit import FILE, HOST, SERVER, Kit
from core.ranges import number_of
from core.text import shown

NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
ROSTER, REVOKED, SUMS = "roster.json", "revoked", "SHA256SUMS"
DAYS, RENEW_DAYS = 730, 30
RESERVED = (SERVER, "ca", REVOKED)


@dataclass(frozen=True)
class Federation:
    """``federation.yaml``: name, where sites reach the server, which sites there are."""

    name: str
    host: str
    port: int
    internal_port: int
    sites: tuple[str, ...]
    days: int


def read_federation(path: Path) -> Federation:
    """Reads ``federation.yaml``.

    Raises:
        UserError: a key that is unknown, missing or unusable.
    """
    values = read_yaml(path)
    known = ("name", "server", "sites", "days")
    for key in values:
        if key not in known:
            raise UserError(f"federation: {key}", values[key], f"use one of {', '.join(known)}")
    server = values.get("server") or {}
    if not isinstance(server, dict) or set(server) - {"host", "port", "internal_port"}:
        raise UserError("federation: server", server, "give host, port and internal_port")
    name, host = str(values.get("name", "")), str(server.get("host", ""))
    if not NAME.fullmatch(name):
        raise UserError("federation: name", name, "use small letters, digits, - and _")
    if not HOST.fullmatch(host):
        raise UserError("federation: server.host", host, "give the name or IP that sites dial")
    port, internal = server.get("port", 28443), server.get("internal_port", 28444)
    days, sites = values.get("days", DAYS), values.get("sites")
    numbers = {"server.port": port, "server.internal_port": internal, "days": days}
    for key, value in numbers.items():
        number_of("federation", key, value, whole=True)
    if port == internal:
        raise UserError("federation: server.internal_port", internal, "give it another number")
    if not isinstance(sites, list) or not sites:
        raise UserError("federation: sites", sites, "list the sites: [nyu, miccai]")
    for site in sites:
        kit_name(site, "federation: sites")
    if len(set(sites)) < len(sites):
        raise UserError("federation: sites", sites, "name each site once")
    return Federation(name, host, port, internal, tuple(sites), days)


def kit_name(value: object, field: str) -> SiteName:
    """A site's name that may also name a kit, on file systems that do not tell capitals apart.

    Raises:
        UserError: not of that form, or a folder of other things.
    """
    remedy = "use small letters, digits, - and _, 32 at most, the first a letter"
    if not isinstance(value, str) or not NAME.fullmatch(value) or value in RESERVED:
        raise UserError(field, shown(value, 100), remedy)
    return site_name(value, field)


def provision(
    federation: Federation,
    out: Path,
    *,
    add: Sequence[str] = (),
    revoke: Sequence[str] = (),
    now: datetime | None = None,
) -> list[str]:
    """Makes or completes the kits; keys and certificates that are there and valid are kept.

    A site of the roster whose kit is gone has it: it was handed over, and its key stays.

    Args:
        federation: from `read_federation`.
        out: folder of the kits; mode 0700.
        add: sites beside those of the file; one whose kit was handed over gets another kit, with a
            new key in the place of the old one.
        revoke: sites whose kits are taken out of service. Their keys are refused from the next
            start of the server on.
        now: for tests.

    Returns:
        What was done, a line each.

    Raises:
        UserError: a name that is no site, or the authority of kits that exist is gone.
    """
    moment = now or datetime.now(UTC)
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    done: list[str] = []
    roster_path = out / SERVER / ROSTER
    known: dict[str, str] = json.loads(roster_path.read_text()) if roster_path.is_file() else {}
    for site in known:
        kit_name(site, f"{SERVER}/{ROSTER}")
    for site in (*add, *revoke):
        kit_name(site, "--add-site, --revoke")
    for site in revoke:
        if site not in known:
            raise UserError("--revoke", site, f"choose one of {', '.join(known) or '(none)'}")
    for site in add:
        shutil.rmtree(out / REVOKED / site, ignore_errors=True)
    gone = set(revoke) | {p.name for p in (out / REVOKED).glob("*")}
    wanted = [s for s in dict.fromkeys([*known, *federation.sites, *add]) if s not in gone]
    if (out / "ca" / "ca.key").is_file() and not roster_path.is_file():
        raise UserError(
            "server", out / SERVER, f"bring the server's kit back, or its {ROSTER} at least",
            problem="the list of the sites' keys is gone; new ones would lock every site out",
        )  # fmt: skip
    ca_key, ca = _authority(federation, out / "ca", moment, done)
    _server(federation, out / SERVER, ca_key, ca, moment, done)
    roster, here = {}, [SERVER]
    for site in wanted:
        if site in known and site not in add and not _complete(out / site):
            roster[site] = known[site]
            done.append(f"{site}: handed over before; its key stays")
            continue
        if site in known and site in add and _complete(out / site):
            done.append(f"{site}: its kit is here, its key stays; for a new one delete {site}/")
        roster[site] = _site(federation, out / site, site, ca, done, replaces=site in known)
        here.append(site)
    for site in revoke:
        target = out / REVOKED / site
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        if (out / site).is_dir():
            shutil.move(out / site, target)
        target.mkdir(exist_ok=True)  # also of a kit that was handed over: it stays revoked
        done.append(f"{site}: revoked; start the server again")
    replace_file(roster_path, json.dumps(roster, indent=2) + "\n")
    for name in here:
        _checksums(out / name)
    return done


def _authority(
    federation: Federation, folder: Path, now: datetime, done: list[str]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The federation's own certificate authority; its key stays with the coordinator."""
    folder.mkdir(exist_ok=True)
    key_path, path = folder / "ca.key", folder / "ca.crt"
    if key_path.is_file() and path.is_file():
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, x509.load_pem_x509_certificate(path.read_bytes())
    if (folder.parent / SERVER / "server.crt").is_file():
        raise UserError(
            "ca", folder, "bring ca.key and ca.crt back while `hnfed provision` runs",
            problem="the kits' authority is gone; no site would trust a server of a new one",
        )  # fmt: skip
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hnfed {federation.name} CA")])
    certificate = (
        _certificate(name, name, key.public_key(), now, 2 * federation.days + RENEW_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _private(key_path, _pem(key))
    replace_file(path, certificate.public_bytes(serialization.Encoding.PEM))
    done.append("ca: made; keep ca/ca.key off the network")
    return key, certificate


def _server(
    federation: Federation,
    folder: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime,
    done: list[str],
) -> None:
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    names = sorted({federation.host, "localhost", "127.0.0.1"})
    path, key_path = folder / "server.crt", folder / "server.key"
    if not (key_path.is_file() and path.is_file() and _serves(path, names, now)):
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, federation.host)])
        certificate = (
            _certificate(subject, ca.subject, key.public_key(), now, federation.days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_name(n) for n in names]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA384())
        )
        _private(key_path, _pem(key))
        replace_file(path, certificate.public_bytes(serialization.Encoding.PEM))
        done.append(f"server: certificate for {', '.join(names)}, {federation.days} days")
    _common(federation, folder, SERVER, ca)
    for name in ("nginx.conf", "hnfed-server.service", "README.md"):
        _render(folder / name, f"server_{name}.j2", federation, SERVER)


def _complete(folder: Path) -> bool:
    """Whether a site's keys are here; a kit that was handed over is deleted here."""
    return (folder / "node.key").is_file() and (folder / "node.pub").is_file()


def _site(
    federation: Federation,
    folder: Path,
    site: str,
    ca: x509.Certificate,
    done: list[str],
    *,
    replaces: bool,
) -> str:
    """A site's kit; returns its public key in OpenSSH's form."""
    folder.mkdir(exist_ok=True)
    key_path, public_path = folder / "node.key", folder / "node.pub"
    if not _complete(folder):
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        _private(key_path, private)
        replace_file(public_path, public + b"\n")
        done.append(f"{site}: kit made; hand it over by a safe way, then delete it here")
        if replaces:
            done.append(
                f"{site}: its key is a new one; the key of its former kit is refused from the next "
                "start of the server on"
            )
    _common(federation, folder, site, ca)
    if not (folder / "policy.yaml").is_file():
        _render(folder / "policy.yaml", "site_policy.yaml.j2", federation, site)
    for name in ("hnfed-client.service", "README.md"):
        _render(folder / name, f"site_{name}.j2", federation, site)
    return public_path.read_text().strip()


def _common(federation: Federation, folder: Path, role: str, ca: x509.Certificate) -> None:
    replace_file(folder / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))
    kit = Kit(
        folder, federation.name, role, federation.host, federation.port, federation.internal_port
    )
    replace_file(folder / FILE, kit.text())


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: Any, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=10))
        .not_valid_after(now + timedelta(days=days))
    )


def _serves(path: Path, names: Sequence[str], now: datetime) -> bool:
    """Whether a certificate holds these names and is valid for some time yet."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    held = {str(name.value) for name in found}
    left = certificate.not_valid_after_utc - now
    return held == set(names) and left > timedelta(days=RENEW_DAYS)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _private(path: Path, content: bytes) -> None:
    """Writes a key that only its owner can read, at no moment otherwise."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _render(path: Path, template: str, federation: Federation, role: str) -> None:
    text = resources.files("server").joinpath("templates", template).read_text(encoding="utf-8")
    made = jinja2.Environment(  # plain text, no page: nothing to escape
        autoescape=False, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string(text)
    replace_file(path, made.render(f=federation, role=role))


def _checksums(folder: Path) -> None:
    """SHA-256 of the kit's files; keys and what changes in use are left out."""
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_file() and p.suffix != ".key" and p.name not in (SUMS, ROSTER, "policy.yaml")
    )
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}" for n in names]
    replace_file(folder / SUMS, "\n".join(sums) + "\n")
