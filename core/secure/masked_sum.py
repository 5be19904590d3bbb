"""Sums of which nobody sees a summand: fixed point, and masks that cancel in pairs.

After Bonawitz et al., Practical secure aggregation, CCS 2017. Every two sites share a seed; of the
stream that it gives one adds and the other subtracts, modulo 2^32 or 2^64. One site's masked vector
is then uniform whatever it holds, and the sum over *all* sites that a segment belongs to is the sum
of what they hold. There are no masks of a site's own and no shares of any: a sum over fewer sites
cannot be opened by anybody (docs/decisions/0004-secure-aggregation.md says why).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.wire.state import packed, unpacked

FEWEST = 3  # sites: of a sum over two, either knows the other's part
# Updates: a share of the whole, so that the sum stays below the largest one. 32 bits a number.
UPDATE_BITS, UPDATE_LIMIT = 27, 8.0
# Counts and sums of scores: 64 bits a number.
NUMBER_BITS = 20
SIGNATURE = 128  # bytes that hold the length of a signature and its bytes

Words = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """Neighbouring numbers of a vector that the same sites contribute to.

    Attributes:
        length: how many.
        members: the sites; of any other the numbers are 0 and carry no mask.
    """

    length: int
    members: frozenset[str]


def context(values: Mapping[str, Any]) -> bytes:
    """SHA-256 of everything that all sites of a sum must have been told alike (32 bytes).

    Seeds come from it: where a server tells two sites different things, the weights to start from
    say, their masks do not cancel, and what it gets is noise.

    Args:
        values: numbers, text and lists of them; floats count to the last bit.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


def seeds(
    private: X25519PrivateKey, own: str, publics: Mapping[str, bytes], about: bytes, label: str
) -> dict[str, bytes]:
    """The seed that `own` shares with each other site, for one vector of one exchange.

    Args:
        private: key of `own`.
        own: name of the site.
        publics: key by site (32 bytes each); that of `own` is passed over.
        about: from `context`.
        label: of the vector: no two vectors of an exchange have a seed in common.

    Returns:
        32 bytes by site.
    """
    made = {}
    for site, public in publics.items():
        if site == own:
            continue
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
        info = "\x1f".join(("hnfed secure sum", label, *sorted((own, site)))).encode()
        made[site] = HKDF(hashes.SHA256(), 32, salt=about, info=info).derive(secret)
    return made


def masked(
    values: Words, segments: Sequence[Segment], own: str, pairs: Mapping[str, bytes], fewest: int
) -> Words:
    """The vector as it may leave `own`: uniform to whoever lacks the seeds.

    Args:
        values: uint32 or uint64, from `fixed`; as long as the segments together.
        segments: in the order of the vector, alike at all sites.
        own: name of the site.
        pairs: from `seeds`.
        fewest: a segment with fewer members leaves as zeros, whoever contributes to it.

    Returns:
        A new vector of the same type.
    """
    assert len(values) == sum(s.length for s in segments), "segments of another vector"
    out = values.copy()
    bounds = np.cumsum([0, *(s.length for s in segments)])
    open_ = [own in s.members and len(s.members) >= fewest for s in segments]
    for i, opened in enumerate(open_):
        if not opened:
            out[bounds[i] : bounds[i + 1]] = 0
    for site, seed in sorted(pairs.items()):
        stream = _stream(seed, len(values), values.dtype)
        for i, segment in enumerate(segments):
            if not open_[i] or site not in segment.members:
                continue
            part = slice(bounds[i], bounds[i + 1])
            if own < site:
                out[part] += stream[part]
            else:
                out[part] -= stream[part]
    return out


def opened(vectors: Sequence[Words], bits: int) -> Floats:
    """The sum of what the sites hold, from their masked vectors: all of them, or it is noise.

    Args:
        vectors: of one type and length, one a site.
        bits: as in `fixed`.
    """
    total = vectors[0].copy()
    for vector in vectors[1:]:
        total += vector
    signed: npt.NDArray[Any] = total.view(np.int32 if total.itemsize == 4 else np.int64)
    return signed.astype(np.float64) / float(2**bits)


def fixed(values: Floats, bits: int, sites: int, width: int = 64) -> Words:
    """Numbers in fixed point, modulo 2^width.

    Args:
        values: (N,), finite; their sum over the sites must stay below 2^(width - 1 - bits).
        bits: behind the point; a number is off by at most 2^-(bits + 1).
        sites: how many add up; 1 where the values are shares of a whole.
        width: 32 or 64.

    Raises:
        ValueError: a number that is not finite, or too large.
    """
    most = 2.0 ** (width - 1 - bits) / sites
    largest = float(np.abs(values).max(initial=0.0))
    if not largest < most:  # also where it is NaN
        raise ValueError(f"a number beyond {most:g} cannot be masked")
    whole = np.rint(values * float(2**bits)).astype(np.int64)
    return whole.astype(np.uint32) if width == 32 else whole.view(np.uint64)


@dataclass(frozen=True)
class Evidence:
    """The parts of a round's sum as they left the sites: who has them opens the sum again.

    Attributes:
        words: (sites, N) masked updates (uint32), the sites in the order of their names.
        counts: (sites, 2 + organs) of the masked numbers those that `core.secure.layout.counted`
            names (uint64).
        signatures: of each site under its row of both (DER).
    """

    words: Words
    counts: Words
    signatures: tuple[bytes, ...]

    def to_parcel(self) -> bytes:
        """The evidence as it travels and lies on the server's disk."""
        signed = np.zeros((len(self.signatures), SIGNATURE), np.uint8)
        for row, signature in zip(signed, self.signatures, strict=True):
            row[0] = len(signature)
            row[1 : 1 + len(signature)] = np.frombuffer(signature, np.uint8)
        arrays = {"words": self.words.view(np.int32), "counts": self.counts.view(np.int64)}
        return packed({n: torch.from_numpy(a) for n, a in (arrays | {"signed": signed}).items()})

    @classmethod
    def from_parcel(cls, parcel: bytes, sites: int, words: int, counts: int) -> Evidence:
        """Inverse of `to_parcel`, of bytes that may come from anywhere.

        Args:
            parcel: the bytes.
            sites: of the sum.
            words: numbers of an update.
            counts: numbers of a site's counts.

        Raises:
            ValueError: another form or size.
        """
        expected = {
            "words": torch.empty((sites, words), dtype=torch.int32, device="meta"),
            "counts": torch.empty((sites, counts), dtype=torch.int64, device="meta"),
            "signed": torch.empty((sites, SIGNATURE), dtype=torch.uint8, device="meta"),
        }
        state = unpacked(parcel, expected)
        told = {n: (t.shape, t.dtype) for n, t in state.items()}
        if told != {n: (t.shape, t.dtype) for n, t in expected.items()}:
            raise ValueError("evidence of another form")
        found = {n: t.numpy() for n, t in state.items()}
        signed = [bytes(row[1 : 1 + int(row[0])]) for row in found["signed"]]
        return cls(found["words"].view(np.uint32), found["counts"].view(np.uint64), tuple(signed))


def _stream(seed: bytes, length: int, kind: np.dtype[Any]) -> Words:
    """ChaCha20's key stream (RFC 8439's block function); a seed is used for one vector only."""
    cipher = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    words: Words = np.frombuffer(cipher.update(bytes(length * kind.itemsize)), kind)
    return words
