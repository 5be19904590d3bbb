"""The other sites' certificates that a site has seen, and which of them a person there confirmed.

A coordinator signs all certificates, so a certificate alone does not say that its key is another
site's. What says so is a fingerprint that two people compared, by phone: the first `SPOKEN`
characters suffice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from core.errors import UserError
from core.files import replace_file
from hnfed.guard.kit import NAME, Kit
from hnfed.guard.kit_files import damage, kept_json

SPOKEN = 32  # of 64 characters: 128 bits, which nobody can make a second key for
MOST = 1000  # sites of a federation


@dataclass(frozen=True)
class Peer:
    """What a site knows of another one.

    Attributes:
        certificate: PEM, signed by the federation's authority.
        sha256: of the certificate's public key (DER): stays when the certificate is renewed.
        confirmed: a person at this site compared the fingerprint with the other site.
    """

    certificate: str
    sha256: str
    confirmed: bool


def fingerprint(public_key: object) -> str:
    """SHA-256 of a public key (DER, SubjectPublicKeyInfo), 64 hexadecimal characters."""
    from cryptography.hazmat.primitives import serialization

    content = public_key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(content).hexdigest()


def spoken(sha256: str) -> str:
    """A fingerprint as it is read out: the first `SPOKEN` characters, in fours."""
    return " ".join(sha256[i : i + 4] for i in range(0, SPOKEN, 4))


def agrees(said: str, sha256: str) -> bool:
    """Whether what a person typed is a fingerprint.

    Args:
        said: at least `SPOKEN` characters of it; spaces, colons and case do not matter.
        sha256: the fingerprint.
    """
    plain = "".join(said.replace(":", "").split()).lower()
    return len(plain) >= SPOKEN and sha256.startswith(plain)


def read_peers(kit: Kit) -> dict[str, Peer]:
    """What a site's kit holds of the other sites, by name; each fingerprint computed again.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[str, Peer] = {}
    try:
        values = kept_json(kit.peers)
        if values is None:
            return {}
        for site, value in values.items():
            seen = seen_peer(site, value["certificate"])
            same = seen.sha256 == value["sha256"]
            found[site] = replace(seen, confirmed=same and value["confirmed"] is True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "peers.json", kit.peers,
            "delete it, take the coordinator's answer in again (hnfed join), and confirm anew",
            problem=damage(error),
        ) from error  # fmt: skip
    return found


def write_peers(kit: Kit, peers: Mapping[str, Peer]) -> None:
    """Writes ``peers.json``."""
    values = {site: asdict(peer) for site, peer in sorted(peers.items())}
    replace_file(kit.peers, json.dumps(values, indent=1) + "\n")


def seen_peer(site: str, certificate: str) -> Peer:
    """A certificate that was brought for a site, not confirmed.

    Raises:
        ValueError: no certificate, or one of another name.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    made = x509.load_pem_x509_certificate(certificate.encode("ascii"))
    names = [a.value for a in made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [site] or not NAME.fullmatch(site):
        raise ValueError("a certificate of another name")
    return Peer(certificate, fingerprint(made.public_key()), confirmed=False)


def merged(
    known: Mapping[str, Peer], brought: Mapping[str, str], own: str
) -> tuple[dict[str, Peer], list[str]]:
    """What a site knows after the coordinator brought certificates.

    A site whose key is the one that was confirmed stays confirmed; one whose key is another is not.

    Args:
        known: from `read_peers`.
        brought: PEM by site.
        own: name of the site itself, which is left out.

    Returns:
        The peers, and what a person should know, a line each.

    Raises:
        ValueError: something brought is no certificate of its site.
    """
    if len(brought) > MOST:
        raise ValueError("too many sites")
    peers, told = {}, []
    for site, certificate in sorted(brought.items()):
        if site == own:
            continue
        new, old = seen_peer(site, certificate), known.get(site)
        if old is not None and old.sha256 == new.sha256:
            new = replace(new, confirmed=old.confirmed)
        elif old is not None:
            told.append(f"{site}: its key is ANOTHER one than before; ask the people there why")
        peers[site] = new
    told += [f"{site}: is no longer in the federation" for site in sorted(set(known) - set(peers))]
    return peers, told


def confirm(kit: Kit, site: str, said: str) -> Peer:
    """Marks a site as confirmed by a person here.

    Args:
        kit: of this site.
        site: the other one.
        said: the fingerprint that the people there read out.

    Raises:
        UserError: no such site, or its certificate has another fingerprint.
    """
    peers = read_peers(kit)
    if site not in peers:
        known = ", ".join(sorted(peers)) or "(none)"
        raise UserError("--confirm", site, f"choose one of {known}", problem="not seen so far")
    peer = peers[site]
    if not agrees(said, peer.sha256):
        raise UserError(
            "--confirm", said,
            f"ask again; {SPOKEN} characters or more. If they differ, somebody stands between: "
            "tell both sites, and do not confirm",
            problem=f"the certificate seen here of {site} has {spoken(peer.sha256)}",
        )  # fmt: skip
    peers[site] = replace(peer, confirmed=True)
    write_peers(kit, peers)
    return peers[site]
