"""`hnfed join`: a site makes its key, sends a request, takes the answer in, confirms other sites.

The key never leaves the folder. What travels (a request, an answer) is public; that it arrived as
it was sent is what two people make sure of by phone, in both directions.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from core.errors import UserError
from core.files import replace_file
from hnfed.deploy.answer import Answer, read_answer
from hnfed.deploy.authority import common_name, made_node_key, made_request, write_private
from hnfed.deploy.provision import kit_name, write_site_kit
from hnfed.guard.kit import FILE, Kit, read_kit, read_private_key, require_plain
from hnfed.guard.kit_files import kept_text
from hnfed.guard.peers import fingerprint, read_peers, spoken

KEY, REQUEST = "node.key", "request.pem"


def begin(folder: Path, site: str) -> Path:
    """Makes a site's key and its certificate request; a key that is there is kept.

    Args:
        folder: that becomes the kit; mode 0700.
        site: pseudonym that the coordinator and the site agreed on.

    Returns:
        The request, to be sent to the coordinator.

    Raises:
        UserError: a name that no site can have, or the folder is another's kit.
    """
    kit_name(site, "--name")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    has_kit = (folder / FILE).is_file()
    if has_kit and (role := read_kit(folder, "site").role) != site:
        raise UserError("--name", site, f"write {role}, or name a new folder",
                        problem=f"this folder is the kit of {role}")  # fmt: skip
    if not (folder / KEY).is_file():
        if has_kit:
            raise UserError(
                "FEDERATION", folder, "bring its node.key back, or name a new folder",
                problem="a kit without its key",
            )  # fmt: skip
        private, public = made_node_key()
        write_private(folder / KEY, private)
        replace_file(folder / "node.pub", public + "\n")
    path = folder / REQUEST
    replace_file(path, made_request(site, read_private_key(folder / KEY)))
    return path


def own_fingerprint(folder: Path) -> str:
    """Fingerprint of the key in a folder, see `hnfed.guard.peers.fingerprint`."""
    return fingerprint(read_private_key(folder / KEY).public_key())


def authority_fingerprint(answer: Answer) -> str:
    """Fingerprint of the authority that an answer brings.

    Raises:
        UserError: it brings none.
    """
    return fingerprint(_certificate(answer.authority).public_key())


def known_authority(folder: Path) -> str:
    """Fingerprint of the authority that a kit trusts already; "" where it trusts none."""
    text = kept_text(folder / "ca.crt")
    return "" if text is None else fingerprint(_certificate(text).public_key())


def require_fitting(folder: Path, answer: Answer) -> None:
    """An answer is for the key in this folder, and everything in it is of one authority.

    Raises:
        UserError: it is not; says in what.
    """
    authority, certificate = _certificate(answer.authority), _certificate(answer.certificate)
    remedy = "ask the coordinator for the answer to this folder's request.pem"
    if (folder / FILE).is_file() and (role := read_kit(folder, "site").role) != answer.site:
        raise UserError(
            "--answer", answer.site, remedy, problem=f"this folder is the kit of {role}"
        )
    if certificate.public_key() != read_private_key(folder / KEY).public_key():
        raise UserError("--answer", answer.site, remedy, problem="it is for another site's key")
    if common_name(certificate.subject) != answer.site:
        raise UserError("--answer", answer.site, remedy, problem="its certificate has another name")
    try:
        for pem in (answer.certificate, *answer.peers.values()):
            _certificate(pem).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UserError(
            "--answer", answer.site, remedy,
            problem="a certificate in it is not of its own authority",
        ) from error  # fmt: skip


def take_in(folder: Path, answer: Answer) -> list[str]:
    """Makes a folder a kit, or renews it, from an answer that a person agreed to.

    Returns:
        What a person should know of the other sites, a line each.

    Raises:
        UserError: the answer does not fit.
    """
    require_fitting(folder, answer)
    try:
        told = write_site_kit(answer, folder)
    except ValueError as error:
        remedy = "ask the coordinator for it again"
        raise UserError("--answer", answer.site, remedy, problem=str(error)) from error
    (folder / REQUEST).unlink(missing_ok=True)
    return told


def read_for(path: Path, folder: Path) -> Answer:
    """An answer file whose names and ports are of their kind, and which fits the folder's key.

    Raises:
        UserError: it is damaged, or for another site.
    """
    answer = read_answer(path)
    try:
        require_plain(answer.kit(folder))
    except (ValueError, TypeError) as error:
        remedy = "ask the coordinator for it again"
        raise UserError("--answer", path, remedy, problem="names or ports in it") from error
    require_fitting(folder, answer)
    return answer


def overview(kit: Kit) -> list[str]:
    """This site's fingerprint, and those of the other sites that it has seen, for a screen."""
    lines = [f"{kit.role} (this site): {spoken(own_fingerprint(kit.folder))}"]
    for site, peer in sorted(read_peers(kit).items()):
        state = "confirmed" if peer.confirmed else "NOT confirmed"
        lines.append(f"{site}: {spoken(peer.sha256)}  {state}")
    return lines


def _certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode("ascii"))
    except ValueError as error:
        remedy = "ask the coordinator for it again"
        raise UserError("--answer", "(a certificate)", remedy, problem="damaged") from error
