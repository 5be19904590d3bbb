"""Who takes part in a sum, verified; and what this site ever masked, kept on its disk.

A session is one exchange. It begins only if the other sites are those of the plan, each known to a
person here by its key, and if nothing was masked for the same order before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from filelock import FileLock

from core.errors import UserError
from core.files import replace_file
from core.plan.load import plan_hash
from core.plan.schema import SPLITS, Plan
from core.secure.hello import Hello, fewest, members, require_signed
from core.secure.layout import summed_sites
from core.secure.masked_sum import FEWEST, Segment, Words, context, masked, seeds
from core.wire.messages import Description
from core.wire.partition import fingerprint
from hnfed.guard.kit_files import kept_json
from hnfed.guard.order import Asked

SETS = "sets.json"
# Of an order, what may differ between the sites: their own rounds, and their own receipts.
TOLD_ALONE = ("base_round", "best_round", "receipt", "receipt_signature", "receipt_certificate")


class MaskingError(RuntimeError):
    """A reply was not masked, so nothing left; the text stays in the site's log."""


@dataclass(frozen=True)
class Keyring:
    """A site's own key, and the keys of the others that a person at this site has confirmed.

    Attributes:
        site: name of this site.
        key: of its kit (P-384): signs what it says of itself.
        peers: public key of every confirmed site.
        folder: where the site keeps its keys of runs and what it masked; private.
        fewest: sites that it asks for in every sum.
        may_change: whether sums of this site may be over other sites than before.
        counts, scores: whether its policy lets numbers of cases, and scores, enter sums.
        agreed: whether it works with weights alone that it derives itself.
    """

    site: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    peers: Mapping[str, ec.EllipticCurvePublicKey]
    folder: Path
    fewest: int = FEWEST
    may_change: bool = False
    counts: bool = True
    scores: bool = True
    agreed: bool = False

    def public(self, site: str) -> ec.EllipticCurvePublicKey:
        """The key of a site: this one's own, or a confirmed one."""
        return self.key.public_key() if site == self.site else self.peers[site]


def public_keys(certificates: Mapping[str, str]) -> dict[str, ec.EllipticCurvePublicKey]:
    """Public keys of sites, from the certificates (PEM) whose fingerprints a person confirmed.

    Raises:
        UserError: a certificate with a key of another kind than a kit has.
    """
    found = {}
    for site, certificate in certificates.items():
        key = x509.load_pem_x509_certificate(certificate.encode("ascii")).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise UserError("peers.json", site, "let that site make a new key (hnfed join)")
        found[site] = key
    return found


def own_hello(asked: Asked, told: Description, keyring: Keyring) -> str:
    """What this site says of itself for a run: the same whenever it is asked."""
    with _record(keyring, asked.order.run) as record:
        plan = plan_hash(asked.plan)
        if record and (record["used"] or record["hello_plan"] != plan):
            if record["hello_plan"] != plan:
                raise MaskingError("plan: another one than when the run began")
            return str(record["hello"])
        private = _private(record) if record else X25519PrivateKey.generate()
        hello = Hello(
            site=keyring.site,
            run=asked.order.run,
            plan=plan,
            code=fingerprint(),
            key=private.public_key().public_bytes_raw().hex(),
            train=flags(told.annotated),
            val=flags(told.annotated_val),
            test=flags(told.annotated_test),
            fewest=keyring.fewest,
            counts=keyring.counts,
            scores=keyring.scores,
            evidence=keyring.agreed,
        )
        text = hello.signed(keyring.key)
        secret = private.private_bytes_raw().hex()
        record |= {"key": secret, "hello": text, "hello_plan": plan, "peers": [], "used": []}
    return text


@dataclass(frozen=True)
class Session:
    """One exchange whose other sites have all been verified."""

    own: str
    private: X25519PrivateKey = field(repr=False)
    hellos: Mapping[str, Hello]
    about: bytes

    def masked(self, words: Words, segments: Sequence[Segment], label: str) -> Words:
        """Masks a vector; each label is used once in a session."""
        publics = {s: bytes.fromhex(h.key) for s, h in self.hellos.items()}
        pairs = seeds(self.private, self.own, publics, self.about, label)
        return masked(words, segments, self.own, pairs, fewest(self.hellos))


def about_of(asked: Asked, incoming: bytes) -> bytes:
    """SHA-256 of all that the sites of a sum are told alike: the order, and the weights with it.

    Args:
        asked: the order.
        incoming: the parcel of weights that came with it.

    Raises:
        MaskingError: a number that is none.
    """
    values = {k: v for k, v in asdict(asked.order).items() if k not in TOLD_ALONE}
    values |= {"kind": asked.kind, "weights_in": hashlib.sha256(incoming).hexdigest()}
    try:
        return context(values)
    except ValueError:
        raise MaskingError("order: a number that is none") from None


def hellos_of(asked: Asked, keyring: Keyring) -> dict[str, Hello]:
    """What the sites of the sums say of themselves, verified; nothing is written down.

    Raises:
        MaskingError: in doubt.
    """
    with _record(keyring, asked.order.run) as record:
        if not record:
            raise MaskingError("run: this site was not asked who it is, or has lost its key of it")
        if record["peers"] not in ([], asked.order.peers):
            raise MaskingError("peers: other sites, or other keys, than in this run so far")
        return _verified(asked, keyring, str(record["hello"]))


@contextmanager
def session_of(asked: Asked, incoming: bytes, keyring: Keyring) -> Iterator[Session]:
    """Verifies the others, and writes down what is about to be masked before it is.

    Raises:
        MaskingError: in doubt.
    """
    about = about_of(asked, incoming)
    with _record(keyring, asked.order.run) as record:
        if not record:
            raise MaskingError("run: this site was not asked who it is, or has lost its key of it")
        hellos = _verified(asked, keyring, str(record["hello"]))
        if record["peers"] not in ([], asked.order.peers):
            raise MaskingError("peers: other sites, or other keys, than in this run so far")
        if about.hex() in record["used"]:
            raise MaskingError("order: it was answered before; masks are used once")
        if not record["peers"]:
            _remember(asked.plan, hellos, keyring)
        record["peers"] = list(asked.order.peers)
        record["used"] = [*record["used"], about.hex()]
        private = _private(record)
    yield Session(keyring.site, private, hellos, about)


def _verified(asked: Asked, keyring: Keyring, own: str) -> dict[str, Hello]:
    """The sites of the sums by name: exactly those of the plan, each known to a person here."""
    hellos: dict[str, Hello] = {}
    for text in asked.order.peers:
        try:
            hello = Hello.read(text)
        except (ValueError, TypeError):
            raise MaskingError("peers: a hello of another form") from None
        if hello.site in hellos:
            raise MaskingError(f"peers: {hello.site} comes twice")
        hellos[hello.site] = hello
        if hello.site == keyring.site:
            if text != own:
                raise MaskingError("peers: this site never said that of itself")
            continue
        if hello.site not in keyring.peers:
            raise MaskingError(f"peers: nobody here has confirmed the key of {hello.site}")
        try:
            require_signed(text, keyring.peers[hello.site])
        except ValueError:
            raise MaskingError(f"peers: {hello.site} did not sign that") from None
    if set(hellos) != set(summed_sites(asked.plan)) or keyring.site not in hellos:
        raise MaskingError("peers: other sites than the plan's")
    if len(hellos) < max(fewest(hellos), FEWEST):
        raise MaskingError(
            f"secure_aggregation_sites: {fewest(hellos)} asked for, {len(hellos)} come"
        )
    mine = hellos[keyring.site]
    for hello in hellos.values():
        if (hello.run, hello.plan, hello.code) != (asked.order.run, mine.plan, fingerprint()):
            raise MaskingError(f"peers: {hello.site} speaks of another run, plan or code")
    if mine.plan != plan_hash(asked.plan):
        raise MaskingError("plan: another one than when the run began")
    publics = [keyring.peers[s].public_numbers() for s in hellos if s != keyring.site]
    publics.append(keyring.key.public_key().public_numbers())
    if len({h.key for h in hellos.values()}) < len(hellos) or len(set(publics)) < len(hellos):
        raise MaskingError("peers: two sites with one key")
    return hellos


def _remember(plan: Plan, hellos: Mapping[str, Hello], keyring: Keyring) -> None:
    """This site is in sums over one set of sites only, whatever the run: none can be subtracted.

    Raises:
        MaskingError: they are others than before.
    """
    path = keyring.folder / SETS
    before = _kept(path)
    now = {"sites": sorted(hellos)}
    for split in SPLITS:
        for i, organ in enumerate(plan.organ_names):
            now[f"{split} {organ}"] = sorted(members(hellos, split, i))
    differs = [k for k, sites in now.items() if before.get(k, sites) != sites]
    if differs and not keyring.may_change:
        raise MaskingError(
            f"sites: not those of the sums before ({differs[0]}): the difference of two sums would "
            "tell what few sites hold. Where that is acceptable write "
            "secure_aggregation_change: true into policy.yaml for this run"
        )
    _keep(path, json.dumps(before | now, indent=1) + "\n")


@contextmanager
def _record(keyring: Keyring, run: str) -> Iterator[dict[str, Any]]:
    """What this site keeps of a run, {} before it began; written back, to the disk, at the end."""
    keyring.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = keyring.folder / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}.json"
    with FileLock(keyring.folder / ".lock", mode=0o600):
        record = _kept(path)
        before = json.dumps(record)
        yield record
        if json.dumps(record) != before:
            _keep(path, json.dumps(record))


def _kept(path: Path) -> dict[str, Any]:
    found: dict[str, Any] | None = kept_json(path)
    return {} if found is None else found


def _keep(path: Path, text: str) -> None:
    replace_file(path, text)
    path.chmod(0o600)  # its folder is closed to others all the time


def _private(record: Mapping[str, Any]) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(str(record["key"])))


def flags(counts: Sequence[int]) -> str:
    """A 1 for each organ with cases, else a 0: all that a hello says of them."""
    return "".join("1" if n > 0 else "0" for n in counts)
