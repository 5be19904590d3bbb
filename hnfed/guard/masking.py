"""Secure aggregation at a site: its key of the run, the others' keys, and what it ever masked.

Called with a reply that has passed everything else; what it returns may leave, and nothing of it
tells this site's part. Where anything about the others is in doubt nothing is masked and nothing
leaves: the error names what, and stays at the site.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from filelock import FileLock
from torch import Tensor

from core.config import plan_hash
from core.errors import UserError
from core.files import replace_file
from core.parcel import packed, unpacked
from core.phases import fingerprint
from core.plan import Phase, Plan
from core.protocol import OK, Description, Result
from core.secure_hello import SPLITS, Hello, fewest, members, require_signed
from core.secure_layout import (
    HELLO,
    SCORED,
    SUMMED,
    Travelling,
    flat,
    number_segments,
    numbers,
    summed_sites,
    tally,
    tally_segments,
    travelling,
    weight_segments,
)
from core.secure_sum import (
    FEWEST,
    NUMBER_BITS,
    UPDATE_BITS,
    UPDATE_LIMIT,
    Floats,
    Segment,
    Words,
    context,
    fixed,
    masked,
    seeds,
)
from hnfed.guard.order import Asked

SETS = "sets.json"
# Of an order, what may differ between the sites: their own rounds, and their own receipts.
TOLD_ALONE = ("base_round", "best_round", "receipt", "receipt_signature", "receipt_certificate")
Config = dict[str, Any]


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
    """

    site: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    peers: Mapping[str, ec.EllipticCurvePublicKey]
    folder: Path
    fewest: int = FEWEST
    may_change: bool = False
    counts: bool = True
    scores: bool = True


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


def secured(
    asked: Asked,
    incoming: bytes,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    state: Mapping[str, Tensor],
    keyring: Keyring,
) -> tuple[Config, Config, bytes]:
    """The reply as it may leave under secure aggregation: a hello, masked numbers, or a code.

    Args:
        asked: what it answers; its plan asks for secure aggregation.
        incoming: the parcel of weights that came with it, as it came; b"" where none did.
        config: text and numbers of the reply's head.
        metrics: its numbers, with what the policy keeps back: the keyring says what that is.
        state: the weights that are to travel.
        keyring: of this site.

    Returns:
        Scalars, numbers, and the parcel of masked weights (b"" where no weights travel).

    Raises:
        MaskingError: another site, the order or this site's own cases are not as agreed.
    """
    if config.get("code") != OK:
        return dict(config), _bare(metrics), b""
    if asked.kind == "query":
        return _described(asked, incoming, config, metrics, keyring)
    phase = asked.plan.phase(asked.order.phase)
    if phase.share == "none":  # its scores are the site's alone: there may be no sum to hide in
        return dict(config), _bare(metrics), b""
    plan, task = asked.plan, asked.order.task
    with _session(asked, incoming, keyring) as session:
        hellos = session.hellos
        result = _own(asked, phase, Result.from_metrics(metrics, phase.organs), session)
        parcel, square, shortened = b"", 0.0, False
        if asked.kind == "train":
            what = travelling(plan, phase)
            update, square, shortened = _update(asked, incoming, state, what)
            segments = weight_segments(plan, phase, hellos, what)
            _weigh(update, segments, result, asked.order.weights)
            vector = session.masked(_fixed(update, UPDATE_BITS, 1, 32), segments, "weights")
            parcel = packed({SUMMED: torch.from_numpy(vector.view(np.int32))})
        values = _fixed(numbers(phase, task, result, square, shortened), NUMBER_BITS, len(hellos))
        vector = session.masked(values, number_segments(plan, phase, hellos, task), "numbers")
    return dict(config), _bare(metrics) | {SUMMED: _signed(vector)}, parcel


def _described(
    asked: Asked,
    incoming: bytes,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    keyring: Keyring,
) -> tuple[Config, Config, bytes]:
    """Before the first round: who this site is, or, once all have said so, the masked counts."""
    told = Description.from_records(config, metrics)
    untold = {k: -1 for k in metrics if k.startswith("left_out.")} | {"cases": [-1, -1, -1]}
    if not asked.order.peers:
        return dict(config) | {HELLO: _hello(asked, told, keyring)}, untold, b""
    with _session(asked, incoming, keyring) as session:
        hellos = session.hellos
        if not all(h.counts for h in hellos.values()):
            raise MaskingError("counts: a site does not let its numbers into sums")
        if _flags(told.annotated) != hellos[keyring.site].train:
            raise MaskingError("cases: other organs are annotated than when the run began")
        values = tally(told.cases, told.annotated, told.voxels, told.totals)
        segments = tally_segments(asked.plan, hellos)
        words = _fixed(values, NUMBER_BITS, len(hellos))
        vector = session.masked(words, segments, "numbers")
    return dict(config), untold | {SUMMED: _signed(vector)}, b""


def _own(asked: Asked, phase: Phase, result: Result, session: _Session) -> Result:
    """The result as it weighs: by cases, or every site alike where one keeps its counts (D5).

    Raises:
        MaskingError: it has cases of other organs than it told the others: an organ's sum would
            be over fewer sites than they agreed to.
    """
    own, plan = session.hellos[session.own], asked.plan
    organs = [plan.organ_names.index(o) for o in phase.organs]
    split = SCORED[asked.order.task]
    if own.scores:
        sums = result.scores.get(split, {})
        for organ, i in zip(phase.organs, organs, strict=True):
            if (organ in sums and sums[organ].n > 0) != own.has(split, i):
                raise MaskingError(f"cases: {split} cases of {organ} are not as told before")
    if asked.kind != "train":
        return result
    flags = tuple(int(own.has("train", i)) for i in organs)
    if own.counts and tuple(min(n, 1) for n in result.annotated) != flags:
        raise MaskingError("cases: other organs are annotated than when the run began")
    if not all(h.counts for h in session.hellos.values()):
        return replace(result, cases=1, annotated=flags)
    return result


def _update(
    asked: Asked, incoming: bytes, state: Mapping[str, Tensor], what: Travelling
) -> tuple[Floats, float, bool]:
    """What training added, within the plan's bound: the guard that the server cannot be.

    Returns:
        The update, the square of its length, and whether it was made shorter.
    """
    before = unpacked(incoming)
    for tensors in (state, before):
        if {n: tuple(t.shape) for n, t in tensors.items()} != dict(what.shapes):
            raise MaskingError("weights: other tensors than those that travel")
    if not all(t.is_floating_point() for t in state.values()):
        raise MaskingError("weights: a tensor of whole numbers cannot be masked")
    update = flat(state, what) - flat(before, what)
    long, largest = float(np.linalg.norm(update)), float(np.abs(update).max(initial=0.0))
    factor = 1.0 if largest <= UPDATE_LIMIT else UPDATE_LIMIT / largest
    if 0 < asked.order.longest < long * factor:
        factor = asked.order.longest / long
    if factor < 1.0:
        update *= factor
    return update, (long * factor) ** 2, factor < 1.0


def _weigh(
    update: Floats, segments: Sequence[Segment], result: Result, totals: Sequence[float]
) -> None:
    """Makes an update this site's share of the sum: body by cases, rows by those that annotate."""
    own = (result.cases, *result.annotated)
    if not len(own) == len(totals) == len(segments):
        raise MaskingError("weights: totals of another phase")
    at = 0
    for count, total, segment in zip(own, totals, segments, strict=True):
        if total > 0 and not 0 <= count <= total:
            raise MaskingError(f"weights: {count} cases here of {total:g} at all sites")
        update[at : at + segment.length] *= count / total if total > 0 else 0.0
        at += segment.length


def _hello(asked: Asked, told: Description, keyring: Keyring) -> str:
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
            train=_flags(told.annotated),
            val=_flags(told.annotated_val),
            test=_flags(told.annotated_test),
            fewest=keyring.fewest,
            counts=keyring.counts,
            scores=keyring.scores,
        )
        text = hello.signed(keyring.key)
        secret = private.private_bytes_raw().hex()
        record |= {"key": secret, "hello": text, "hello_plan": plan, "peers": [], "used": []}
    return text


@dataclass(frozen=True)
class _Session:
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


@contextmanager
def _session(asked: Asked, incoming: bytes, keyring: Keyring) -> Iterator[_Session]:
    """Verifies the others, and writes down what is about to be masked before it is.

    Raises:
        MaskingError: in doubt.
    """
    values = {k: v for k, v in asdict(asked.order).items() if k not in TOLD_ALONE}
    values |= {"kind": asked.kind, "weights_in": hashlib.sha256(incoming).hexdigest()}
    try:
        about = context(values)
    except ValueError:
        raise MaskingError("order: a number that is none") from None
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
    yield _Session(keyring.site, private, hellos, about)


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
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        before = json.dumps(record)
        yield record
        if json.dumps(record) != before:
            _keep(path, json.dumps(record))


def _keep(path: Path, text: str) -> None:
    replace_file(path, text)
    path.chmod(0o600)  # its folder is closed to others all the time


def _private(record: Mapping[str, Any]) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(str(record["key"])))


def _bare(metrics: Mapping[str, Any]) -> Config:
    """What every reply says. How long a site took tells how many cases it has: that is summed."""
    startup = float(metrics.get("startup", 0.0))
    return {"cases": 0, "steps": 0, "skipped": 0, "seconds": 0.0, "startup": startup}


def _fixed(values: Floats, bits: int, sites: int, width: int = 64) -> Words:
    try:
        return fixed(values, bits, sites, width)
    except ValueError as error:
        raise MaskingError(f"numbers: {error}") from None


def _signed(vector: Words) -> list[int]:
    """As a MetricRecord carries it."""
    whole: list[int] = vector.view(np.int64).tolist()
    return whole


def _flags(counts: Sequence[int]) -> str:
    return "".join("1" if n > 0 else "0" for n in counts)
