"""Keys of the sites of a simulation: made where they are first needed, and known to all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock

from hnfed.guard.masking_session import Keyring

FOLDER, KEY, PUBLIC = "secure", "node.key", "node.pub"


def simulated_keyring(sites: Path, site: str, names: Sequence[str]) -> Keyring:
    """The keyring of a simulated site.

    Args:
        sites: folder in which every site has one of its own.
        site: whose keyring it is.
        names: of all sites.
    """
    folders = {name: sites / name / FOLDER for name in (*names, site)}
    sites.mkdir(parents=True, exist_ok=True)
    with FileLock(sites / ".keys.lock"):
        for folder in folders.values():
            if not (folder / PUBLIC).is_file():
                _make(folder)
    key = serialization.load_pem_private_key((folders[site] / KEY).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    peers = {name: _public(folders[name]) for name in names if name != site}
    return Keyring(site, key, peers, folders[site])


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    descriptor = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    (folder / PUBLIC).write_bytes(public)


def _public(folder: Path) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key((folder / PUBLIC).read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
