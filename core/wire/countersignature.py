"""A receipt's countersignature: the server says that it has seen a site's last receipt.

The server signs with the key of its certificate, which the federation's authority signed; a site
has that authority's certificate, so it needs nothing else to check it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

HASH = re.compile(r"[0-9a-f]{64}")
LONGEST = 8192  # signs of a certificate
SIGNED_WITH = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True)
class Countersignature:
    """That a server has seen a receipt.

    Attributes:
        receipt: SHA-256 of the receipt's line.
        signature: of `told`, as hexadecimal digits.
        certificate: of the server, PEM.
    """

    receipt: str
    signature: str
    certificate: str


def told(site: str, receipt: str) -> bytes:
    """What is signed."""
    return f"hnfed receipt\n{site}\n{receipt}\n".encode("ascii")


def countersign(
    key_pem: bytes, certificate_pem: bytes, site: str, receipt: str
) -> Countersignature:
    """Signs that a receipt of a site was seen.

    Args:
        key_pem: the server's private key.
        certificate_pem: its certificate.
        site: whose receipt it is.
        receipt: SHA-256 of the line.
    """
    key = serialization.load_pem_private_key(key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "kits have keys of P-384"
    assert HASH.fullmatch(receipt), receipt
    signature = key.sign(told(site, receipt), SIGNED_WITH).hex()
    return Countersignature(receipt, signature, certificate_pem.decode("ascii"))


def genuine(mark: Countersignature, site: str, authority_pem: bytes) -> bool:
    """Whether a server of the federation signed for this site; expired or not (it is a record).

    Args:
        mark: that came with an order.
        site: this site's name.
        authority_pem: certificate of the federation's authority (``ca.crt``).
    """
    if not HASH.fullmatch(mark.receipt) or len(mark.certificate) > LONGEST:
        return False
    try:
        authority = x509.load_pem_x509_certificate(authority_pem)
        certificate = x509.load_pem_x509_certificate(mark.certificate.encode("ascii"))
        certificate.verify_directly_issued_by(authority)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key()
        if ExtendedKeyUsageOID.SERVER_AUTH not in usage:  # a site's certificate is none
            return False
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(bytes.fromhex(mark.signature), told(site, mark.receipt), SIGNED_WITH)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return True
