"""What a site tells the others under its own signature: who it is, and its part of a sum."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from core.plan.schema import SPLITS

DOMAIN = b"hnfed secure aggregation, hello 1\0"
PART = b"hnfed secure aggregation, part of a sum 1\0"
LONGEST = 4096  # characters of a hello
HEX_KEY = re.compile(r"[0-9a-f]{64}")
FLAGS = re.compile(r"[01]{0,64}")


@dataclass(frozen=True)
class Hello:
    """One site, for one run.

    Attributes:
        site: its name.
        run: id of the run.
        plan: SHA-256 of the plan that it was given.
        code: fingerprint of the code that it runs.
        key: its X25519 key of the run, in hex.
        train, val, test: a 1 for each organ of the plan that its cases of the split annotate, in
            the order of `Plan.organ_names`, else a 0.
        fewest: sites that it asks for in every sum.
        counts: whether its numbers of cases may enter sums.
        scores: whether its scores may.
        evidence: whether it asks for the parts of each round's sum, to compute the weights itself.
    """

    site: str
    run: str
    plan: str
    code: str
    key: str
    train: str
    val: str
    test: str
    fewest: int
    counts: bool
    scores: bool
    evidence: bool = False

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            if type(getattr(self, name)) is not kind:
                raise ValueError(name)
        told = [getattr(self, f.name) for f in fields(self) if f.name not in KINDS]
        if not all(type(v) is str for v in told) or not HEX_KEY.fullmatch(self.key):
            raise ValueError("hello")
        if not all(FLAGS.fullmatch(getattr(self, s)) for s in SPLITS):
            raise ValueError("flags")

    def signed(self, key: ec.EllipticCurvePrivateKey) -> str:
        """The hello as it travels: payload and signature (ECDSA, SHA-384), in base64 and a dot."""
        payload = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        signature = key.sign(DOMAIN + payload, ec.ECDSA(hashes.SHA384()))
        return f"{_text(payload)}.{_text(signature)}"

    @classmethod
    def read(cls, text: str) -> Self:
        """The hello in a text, whoever signed it.

        Raises:
            ValueError: another form.
        """
        try:
            values = json.loads(_parts(text)[0])
        except RecursionError:
            raise ValueError("hello") from None
        if not isinstance(values, dict) or set(values) != {f.name for f in fields(cls)}:
            raise ValueError("hello")
        return cls(**values)

    def has(self, split: str, organ: int) -> bool:
        """Whether it has cases of the split that annotate the organ (its place in the plan)."""
        flags: str = getattr(self, split)
        return flags[organ : organ + 1] == "1"


KINDS: Mapping[str, type] = {"fewest": int, "counts": bool, "scores": bool, "evidence": bool}


def require_signed(text: str, key: ec.EllipticCurvePublicKey) -> None:
    """Requires that a hello is signed by the site that holds this key.

    Raises:
        ValueError: it is not.
    """
    payload, signature = _parts(text)
    try:
        key.verify(signature, DOMAIN + payload, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise ValueError("signature") from None


def part_signed(
    key: ec.EllipticCurvePrivateKey, about: bytes, words: bytes, counts: bytes
) -> bytes:
    """A site's signature under its masked part of a round's sum (ECDSA, SHA-384, DER).

    Args:
        key: of the site's kit.
        about: from `core.secure.masked_sum.context`: run, plan, peers, order, weights to start
            from, attempt. Parts that say the same of it are those of one sum.
        words: the masked update, little-endian.
        counts: the masked counts that the next weights follow from, little-endian.
    """
    return key.sign(_part(about, words, counts), ec.ECDSA(hashes.SHA384()))


def require_part(
    signature: bytes, key: ec.EllipticCurvePublicKey, about: bytes, words: bytes, counts: bytes
) -> None:
    """Requires that a part of a sum is signed by the site that holds this key.

    Raises:
        ValueError: it is not.
    """
    try:
        key.verify(signature, _part(about, words, counts), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise ValueError("signature") from None


def _part(about: bytes, words: bytes, counts: bytes) -> bytes:
    digests = [hashlib.sha256(content).digest() for content in (words, counts)]
    return b"".join((PART, about, *digests))


def members(hellos: Mapping[str, Hello], split: str, organ: int) -> frozenset[str]:
    """Sites that have cases of a split which annotate an organ of the plan."""
    return frozenset(s for s, h in hellos.items() if h.has(split, organ))


def fewest(hellos: Mapping[str, Hello]) -> int:
    """Sites that every sum needs: as many as the most careful one asks for."""
    return max(h.fewest for h in hellos.values())


def _parts(text: str) -> tuple[bytes, bytes]:
    if len(text) > LONGEST or text.count(".") != 1:
        raise ValueError("hello")
    payload, signature = text.split(".")
    return _bytes(payload), _bytes(signature)


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("base64") from None
    if _text(content) != text:
        raise ValueError("base64")
    return content
