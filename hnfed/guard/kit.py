"""A kit: the folder by which a coordinator or a site takes part in one federation."""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from hnfed.guard.kit_files import kept_bytes, kept_json, needed_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

FILE, SCHEMA, MOST_BYTES = "kit.json", 1, 1_000_000
SERVER = "server"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")  # of a federation, of a site
HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
# Below TLS 1.3, whose suites are all of this kind: forward secrecy, authenticated encryption.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True)
class Kit:
    """What ``kit.json`` says.

    Attributes:
        folder: of the kit.
        federation: its name.
        role: `SERVER`, or the site's name.
        host: under which sites reach the server.
        port: the same.
        internal_port: the SuperLink's, on the loopback address of the server's machine.
    """

    folder: Path
    federation: str
    role: str
    host: str
    port: int
    internal_port: int

    @property
    def ca(self) -> Path:
        """The federation's authority: it signs the server's certificate and the sites'."""
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        """A site's private key (P-384, OpenSSH's form); made there, and never leaves it."""
        return self.folder / "node.key"

    @property
    def public(self) -> Path:
        """The site's public key, in OpenSSH's form: what the coordinator's roster holds."""
        return self.folder / "node.pub"

    @property
    def client_certificate(self) -> Path:
        """The authority's word that `key` is this site's: shown to the server when it connects."""
        return self.folder / "node.crt"

    @property
    def peers(self) -> Path:
        """Certificates of the other sites that this one has seen, see `hnfed.guard.peers`."""
        return self.folder / "peers.json"

    def text(self) -> str:
        """Content of ``kit.json``."""
        values = {k: v for k, v in asdict(self).items() if k != "folder"}
        return json.dumps({"schema": SCHEMA, **values}, indent=2) + "\n"


def read_kit(folder: Path, role: str) -> Kit:
    """Reads a kit.

    Args:
        folder: of the kit.
        role: ``server`` or ``site``: what the kit must be for.

    Raises:
        UserError: no kit, or one for another role.
    """
    path = folder / FILE
    remedy = "give the folder that `hnfed provision` made for this machine"
    try:
        values = kept_json(path, MOST_BYTES)
        if values is None:
            problem = f"no {FILE} in it" if folder.is_dir() else "no such folder"
            raise UserError("KIT", folder, remedy, problem=problem)
        if values.pop("schema") != SCHEMA:
            raise ValueError("schema")
        kit = Kit(folder=folder.resolve(), **values)
        require_plain(kit)
    except OSError as error:
        problem = f"{FILE} cannot be read: {str(error.strerror).lower()}"
        raise UserError("KIT", folder, "let this account read it", problem=problem) from error
    except UserError as error:
        if error.field == "KIT":
            raise
        again = "get the kit anew from the coordinator"
        raise UserError("KIT", folder, again, problem=f"{FILE}: {error.problem}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{FILE} is damaged, or another version of hnfed made it"
        raise UserError(
            "KIT", folder, "get the kit anew from the coordinator", problem=problem
        ) from error
    if (kit.role == SERVER) != (role == SERVER):
        raise UserError("KIT", folder, remedy, problem=f"this kit is for {kit.role}")
    return kit


def require_plain(kit: Kit) -> None:
    """Names, host and ports of a kit are of their kind.

    Raises:
        ValueError: one is not.
    """
    texts = ((NAME, kit.federation), (NAME, kit.role), (HOST, kit.host))
    ports = (kit.port, kit.internal_port)
    if not all(isinstance(text, str) and form.fullmatch(text) for form, text in texts):
        raise ValueError("names")
    if not all(type(port) is int and 0 < port < 65536 for port in ports):
        raise ValueError("ports")


def require_private(path: Path) -> None:
    """A file with a secret in it is there, and only its owner can read it.

    Raises:
        UserError: it is missing, or others can read it.
    """
    if not path.is_file():
        raise UserError("KIT", path, "give the folder of the kit", problem="no key in it")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(path.name, oct(mode), f"run: chmod 600 {shlex.quote(str(path))}")


def private_key(kit: Kit) -> ec.EllipticCurvePrivateKey:
    """A site's private key.

    Raises:
        UserError: missing, readable by others, or no key.
    """
    return read_private_key(kit.key)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """`private_key` of a folder that is no kit yet."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    require_private(path)
    try:
        key = load_ssh_private_key(needed_bytes(path, MOST_BYTES), None)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(
            "node.key", path, "bring the site's key back, or join anew with another one",
            problem="it is no private key in OpenSSH's form without a password",
        ) from error  # fmt: skip
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError("node.key", path, "join anew: hnfed join", problem="no P-384 key")
    return key


def ssl_context(kit: Kit) -> ssl.SSLContext:
    """How a site speaks to the server: trusts the federation's authority alone, shows its own name.

    Args:
        kit: a site's.

    Raises:
        UserError: key, certificate or authority is missing or damaged, or they do not fit.
    """
    if kept_bytes(kit.client_certificate, MOST_BYTES) is None:
        raise UserError(
            "node.crt", kit.client_certificate,
            "ask the coordinator for an answer file (hnfed provision writes it), then: "
            f"hnfed join {shlex.quote(str(kit.folder))} --answer FILE",
            problem="this kit has no certificate for the connection",
        )  # fmt: skip
    needed_bytes(kit.ca, MOST_BYTES)  # OpenSSL would wait for a pipe
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    try:
        context.load_verify_locations(kit.ca)
        with _pem_path(private_key(kit)) as path:
            context.load_cert_chain(kit.client_certificate, path)
    except OSError as error:  # also what OpenSSL finds
        raise UserError(
            "KIT", kit.folder, "ask the coordinator for the answer file again: hnfed join",
            problem=f"node.key, node.crt and ca.crt do not fit ({str(error)[:100]})",
        ) from error  # fmt: skip
    return context


@contextmanager
def _pem_path(key: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    """A path under which OpenSSL can read the key, while it lasts; in memory where that can be."""
    from cryptography.hazmat.primitives import serialization

    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("node"), "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as named:  # mode 0600
        named.write(content)
        named.flush()
        yield named.name
