"""A receipt's countersignature: the server says that it has seen a site's last receipt.

The server signs with the key of its certificate, which the federation's authority signed; a site
has that authority's certificate, so it needs nothing else to check it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HASH = re.compile(r"[0-9a-f]{64}")
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
