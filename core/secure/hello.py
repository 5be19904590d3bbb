"""What a site tells the others of itself before sums are masked, under its own signature."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

DOMAIN = b"hnfed secure aggregation, hello 1\0"
LONGEST = 4096  # characters of a hello
HEX_KEY = re.compile(r"[0-9a-f]{64}")
FLAGS = re.compile(r"[01]{0,64}")
SPLITS = ("train", "val", "test")


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

    def __post_init__(self) -> None:
        for name, kind in (("fewest", int), ("counts", bool), ("scores", bool)):
            if type(getattr(self, name)) is not kind:
                raise ValueError(name)
        told = [getattr(self, f.name) for f in fields(self) if f.name not in NOT_TEXT]
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


NOT_TEXT = ("fewest", "counts", "scores")


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
