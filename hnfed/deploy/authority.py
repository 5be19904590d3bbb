"""The federation's certificate authority: what it signs, and for what each certificate may serve.

The authority carries no name constraints: nothing but hnfed trusts it, each certificate says by its
extended key usage whether it is the server's or a site's, and a federation may move to another
host, which constraints made beforehand would forbid.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from core.errors import UserError
from core.files import read_bounded, replace_file
from hnfed.guard.kit import NAME
from hnfed.guard.kit_files import kept_bytes

RENEW_DAYS = 30  # a certificate with less left is made anew
LARGEST_REQUEST = 16_384  # bytes


class Authority:
    """Key and certificate of a federation's authority; both stay with the coordinator."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate

    @property
    def pem(self) -> str:
        """The certificate, as every kit holds it."""
        return pem_of(self.certificate)

    def server(self, names: Sequence[str], now: datetime, days: int) -> tuple[bytes, str]:
        """A new key for the server, and its certificate, both PEM.

        Args:
            names: DNS names and IP addresses under which it is dialled; the first is its subject.
            now: from when.
            days: for how long.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        alternative = x509.SubjectAlternativeName([_general(n) for n in names])
        builder = self._leaf(
            names[0], key.public_key(), now, days, ExtendedKeyUsageOID.SERVER_AUTH
        ).add_extension(alternative, critical=False)
        return pem_of_key(key), pem_of(builder.sign(self.key, hashes.SHA384()))

    def site(self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int) -> str:
        """A certificate (PEM) by which a site's key opens connections, and serves nowhere."""
        builder = self._leaf(name, key, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)
        return pem_of(builder.sign(self.key, hashes.SHA384()))

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int,
        purpose: ObjectIdentifier,
    ) -> x509.CertificateBuilder:  # fmt: skip
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _certificate(_named(name), self.certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
        )


def made_authority(federation: str, days: int, now: datetime) -> Authority:
    """A new authority for a federation."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _named(f"hnfed {federation} CA")
    certificate = (
        _certificate(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Authority(key, certificate)


def read_authority(folder: Path) -> Authority | None:
    """The authority of a folder, or None where there is none."""
    key_path, path = folder / "ca.key", folder / "ca.crt"
    private, certificate = kept_bytes(key_path), kept_bytes(path)
    if private is None or certificate is None:
        return None
    key = serialization.load_pem_private_key(private, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(key, x509.load_pem_x509_certificate(certificate))


def write_authority(authority: Authority, folder: Path) -> None:
    """Writes ``ca.key``, which only its owner can read, and ``ca.crt``."""
    write_private(folder / "ca.key", pem_of_key(authority.key))
    replace_file(folder / "ca.crt", authority.pem)


def holds(pem: str, names: Sequence[str], now: datetime) -> bool:
    """Whether a server's certificate has these names, its usages, and is valid for some time."""
    made = x509.load_pem_x509_certificate(pem.encode("ascii"))
    found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    same = {str(name.value) for name in found} == set(names)
    return same and _lasts(made, now) and _has_usage(made)


def fits(pem: str, site: str, key: ec.EllipticCurvePublicKey, now: datetime) -> bool:
    """Whether a site's certificate has its name and key, and is valid for some time."""
    made = x509.load_pem_x509_certificate(pem.encode("ascii"))
    return common_name(made.subject) == site and made.public_key() == key and _lasts(made, now)


def serial_of(pem: str) -> str:
    """Serial number of a certificate, as nginx writes it: hexadecimal, capital letters, pairs."""
    number = x509.load_pem_x509_certificate(pem.encode("ascii")).serial_number
    text = f"{number:X}"
    return text if len(text) % 2 == 0 else f"0{text}"


def flower_key_of(pem: str) -> str:
    """A certificate's public key as a node shows it to Flower, in the header ``flwr-public-key``.

    Base64 of its PEM, on one line.
    """
    key = x509.load_pem_x509_certificate(pem.encode("ascii")).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return base64.b64encode(key.public_bytes(serialization.Encoding.PEM, form)).decode("ascii")


def read_request(path: Path) -> tuple[str, ec.EllipticCurvePublicKey]:
    """A site's certificate request: its name and its key, which the request is signed with.

    Raises:
        UserError: no request, a name that no site can have, another kind of key.
    """
    remedy = "take the file request.pem that `hnfed join` made at the site"
    try:
        request = x509.load_pem_x509_csr(read_bounded(path, LARGEST_REQUEST))
        valid = request.is_signature_valid
    except OSError as error:
        raise UserError("--sign", path, remedy, problem=str(error.strerror)) from error
    except (ValueError, InvalidSignature, TypeError) as error:
        raise UserError("--sign", path, remedy, problem="no certificate request") from error
    name, key = common_name(request.subject), request.public_key()
    if not valid or not NAME.fullmatch(name):
        raise UserError("--sign", path, remedy, problem="its signature or its name is wrong")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise UserError("--sign", path, remedy, problem="its key is not of the kind P-384")
    return name, key


def made_request(name: str, key: ec.EllipticCurvePrivateKey) -> str:
    """A site's certificate request (PEM): its name and public key, signed with the key itself."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(name))
    request = builder.sign(key, hashes.SHA384())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def made_node_key() -> tuple[bytes, str]:
    """A site's new key: private (OpenSSH's form, as Flower reads it), and public on one line."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return private, ssh_of(key.public_key())


def ssh_of(key: ec.EllipticCurvePublicKey) -> str:
    """A public key in OpenSSH's form, one line."""
    form = serialization.PublicFormat.OpenSSH
    return key.public_bytes(serialization.Encoding.OpenSSH, form).decode("ascii")


def key_of(ssh: str) -> ec.EllipticCurvePublicKey:
    """Inverse of `ssh_of`.

    Raises:
        ValueError: another kind of key, or none.
    """
    key = serialization.load_ssh_public_key(ssh.encode("ascii"))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("no P-384 key")
    return key


def common_name(name: x509.Name) -> str:
    """The one common name of a subject; "" where it has none or several."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def pem_of(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM (PKCS 8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_private(path: Path, content: bytes) -> None:
    """Writes a key that only its owner can read, at no moment otherwise."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_after_utc - now > timedelta(days=RENEW_DAYS)


def _has_usage(certificate: x509.Certificate) -> bool:
    """False for certificates of hnfed before they said what they may serve for."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.digital_signature


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


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


def _general(text: str) -> x509.GeneralName:
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
