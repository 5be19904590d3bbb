"""Secure aggregation at the server: it hands hellos on, and adds up what it cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from core.errors import UserError
from core.files import private_folder, replace_file
from core.metrics.scores import MEASURES
from core.plan.schema import Phase, Plan
from core.secure.hello import LONGEST, Hello, fewest, members
from core.secure.layout import (
    SIGNED,
    SUMMED,
    Opened,
    Sum,
    Travelling,
    are_shares,
    closed_organs,
    counted,
    following,
    number_segments,
    summed,
    summed_sites,
    tallied,
    tally_segments,
    weight_segments,
)
from core.secure.masked_sum import (
    FEWEST,
    NUMBER_BITS,
    SIGNATURE,
    UPDATE_BITS,
    Evidence,
    Words,
    opened,
)
from core.wire.messages import CODES, OK, Description, Header, Result
from core.wire.state import unpacked
from server.guards import NO_REPLY, Rejected, error_words, known_code
from server.strategy import ARRAYS, HEADER, METRICS

State = dict[str, Tensor]
EVIDENCE_FILE = "evidence-{:05d}.safetensors"


@dataclass(frozen=True)
class Masked:
    """A reply that nobody can read alone.

    Attributes:
        header: of the reply.
        words: masked shares of the update (uint32); empty where no weights travel.
        numbers: masked counts and sums (uint64).
        signed: the site's signature under its part, for the other sites; b"" where none asks.
    """

    header: Header
    words: Words
    numbers: Words
    signed: bytes = b""


@dataclass(frozen=True)
class Secure:
    """Who takes part in the sums of a run, and the sums from before its first round.

    Attributes:
        plan: of the run.
        peers: what every site said of itself, as it came, by site.
        hellos: the same, read.
        cases: training, validation and test cases of all sites; empty where one keeps its counts.
        rows: ``annotated``, ``voxels`` and ``totals`` of all sites, per organ of the plan.
    """

    plan: Plan
    peers: tuple[str, ...]
    hellos: Mapping[str, Hello]
    cases: Sequence[float] = ()
    rows: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def told(self) -> bool:
        """Whether every site lets its counts into sums; else all sites weigh equally (D5)."""
        return all(h.counts for h in self.hellos.values())

    @property
    def evidence(self) -> frozenset[str]:
        """Sites that ask for the parts of each sum, to compute the weights themselves."""
        return frozenset(s for s, h in self.hellos.items() if h.evidence)

    @property
    def fewest(self) -> int:
        """Sites that every sum needs."""
        return max(fewest(self.hellos), FEWEST)

    def totals(self, phase: Phase) -> list[float]:
        """What a site's share is of: cases, then those that annotate each organ of the phase."""
        index = [self.plan.organ_names.index(o) for o in phase.organs]
        closed = closed_organs(self.plan, phase, self.hellos)
        if self.told:
            whole, rows = self.cases[0], [self.rows["annotated"][i] for i in index]
        else:
            whole = float(len(self.hellos))
            rows = [float(len(members(self.hellos, "train", i))) for i in index]
        kept = [0.0 if o in closed else r for o, r in zip(phase.organs, rows, strict=True)]
        return [whole, *kept]

    def frequencies(self, phase: Phase) -> tuple[list[float], list[float]]:
        """Organ and crop voxels over all sites, per organ of the phase; empty if one is silent."""
        if not self.told or not any(self.rows["totals"]):
            return [], []
        index = [self.plan.organ_names.index(o) for o in phase.organs]
        return (
            [self.rows["voxels"][i] for i in index],
            [self.rows["totals"][i] for i in index],
        )


def secure_set(plan: Plan, described: Mapping[str, Description]) -> Secure:
    """The sites of the run's sums: all that the plan names, or none.

    Raises:
        UserError: one did not come, or asks for sums over more sites than there are.
    """
    key, wanted = "federation.secure_aggregation", summed_sites(plan)
    missing = [s for s in wanted if s not in described]
    if missing:
        raise UserError(
            "phases.sites",
            ", ".join(missing),
            "wait until they are back and start again, or write a plan without them",
            problem="they did not come or could not take part (see the journal), and a sum is over "
            "all sites of the plan or not opened",
        )
    hellos: dict[str, Hello] = {}
    for site in wanted:
        try:
            hellos[site] = Hello.read(described[site].hello[: LONGEST + 1])
        except (ValueError, TypeError):
            raise UserError(
                key,
                site,
                "this site needs a version of hnfed and a kit with which it can mask",
                problem="it said nothing of itself that other sites could verify",
            ) from None
    secure = Secure(plan, tuple(described[s].hello for s in wanted), hellos)
    needed = secure.fewest
    if len(hellos) < needed:
        careful = [s for s, h in hellos.items() if h.fewest >= needed]
        raise UserError(
            "phases.sites",
            ", ".join(wanted),
            f"add sites to the plan until there are {needed}",
            problem=f"{', '.join(careful)} asks for sums over {needed} sites "
            "(secure_aggregation_sites of its policy)",
        )
    return secure


def inspect_masked(
    reply: Message | None, asked: Header, *, words: int, numbers: int
) -> Masked | Rejected:
    """Checks the form of one masked reply; what it holds nobody can check.

    Args:
        reply: as Flower brought it; None where none came.
        asked: site, run, phase ("" before the first) and round of the order.
        words: length of the masked update; 0 where no weights travel.
        numbers: length of the masked numbers.
    """
    if reply is None:
        return NO_REPLY
    if reply.has_error():
        return Rejected("E_ERROR", error_words(reply))
    try:
        config, metrics = reply.content[HEADER], reply.content[METRICS]
        if not isinstance(config, ConfigRecord) or not isinstance(metrics, MetricRecord):
            return Rejected("E_SCHEMA", "header or metrics")
        if config.get("code") != OK:
            code = known_code(config.get("code"))
            return Rejected(code, CODES[code])
        of_no_phase = {"run": asked.run, "phase": "", "round": 0}  # as the tally's
        about = {k: config.get(k, v) for k, v in of_no_phase.items()}
        if about | {"site": config["site"]} != {k: getattr(asked, k) for k in ("site", *about)}:
            return Rejected("E_STALE", "site, run, phase or round differ from the order")
        told = metrics[SUMMED]
        if not isinstance(told, list) or len(told) != numbers:
            return Rejected("E_SCHEMA", "masked numbers of another length")
        vector = np.asarray([int(v) for v in told], dtype=np.int64).view(np.uint64)
        update = _words(reply, words)
        signed = bytes.fromhex(str(config.get(SIGNED, ""))[: 2 * SIGNATURE])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return Rejected("E_SCHEMA", f"masked reply ({type(error).__name__})")
    if len(signed) >= SIGNATURE:
        return Rejected("E_SCHEMA", "a longer signature")
    return Masked(asked, update, vector, signed)


def _words(reply: Message, length: int) -> Words:
    """The masked update.

    Raises:
        KeyError, TypeError, ValueError: another form.
    """
    if not length:
        if reply.content.array_records:
            raise ValueError("weights where none may travel")
        return np.zeros(0, np.uint32)
    record = reply.content[ARRAYS]
    if not isinstance(record, ArrayRecord) or len(record) != 1:
        raise TypeError("weights")
    (array,) = record.values()
    if len(array.data) > 4 * length + 4096:
        raise ValueError("a larger parcel")
    state = unpacked(array.data)
    tensor = state[SUMMED]
    if len(state) != 1 or tuple(tensor.shape) != (length,):
        raise ValueError("weights")
    vector = tensor.numpy()
    if vector.dtype != np.int32:
        raise TypeError("weights")
    update: Words = vector.view(np.uint32)
    return update


def add_tally(secure: Secure, replies: Sequence[Masked]) -> Secure:
    """The set with the sums from before the first round.

    Raises:
        ValueError: the masks do not cancel.
    """
    cases, rows = tallied(opened([r.numbers for r in replies], NUMBER_BITS))
    values = [*cases, *(v for row in rows.values() for v in row)]
    if min(values) < 0 or cases[0] < len(secure.hellos):
        raise ValueError("masks")
    return Secure(secure.plan, secure.peers, secure.hellos, tuple(cases), rows)


def tally_length(secure: Secure) -> int:
    """How many numbers a site's masked counts are."""
    return sum(s.length for s in tally_segments(secure.plan, secure.hellos))


def number_length(secure: Secure, phase: Phase, task: str) -> int:
    """How many masked numbers answer a task."""
    return sum(s.length for s in number_segments(secure.plan, phase, secure.hellos, task))


def add_up(secure: Secure, phase: Phase, task: str, replies: Sequence[Masked], most: int) -> Sum:
    """The sums in the second vector.

    Args:
        secure: who takes part.
        phase: of the order.
        task: of the order.
        replies: of all sites.
        most: cases that all sites can have together.

    Raises:
        ValueError: the masks do not cancel: a site was told something else, or sent noise.
    """
    found = summed(phase, task, opened([r.numbers for r in replies], NUMBER_BITS))
    result = found.result
    counts = [result.cases, result.steps, result.skipped, *result.annotated, found.shortened]
    cells = [c for sums in result.scores.values() for c in sums.values()]
    counts += [n for c in cells for n in (c.n, c.detected)]
    sums = [getattr(c, m.field) for c in cells for m in MEASURES.values()]
    if min([*counts, *sums, found.square]) < -1e-3 or max([*result.annotated, 0]) > result.cases:
        raise ValueError("masks")
    if result.cases > most or any(c.dice > c.n + 1e-3 or c.n > most for c in cells):
        raise ValueError("masks")
    told = (result.cases, *result.annotated)
    if task == "train" and not are_shares(secure.totals(phase), told):
        raise ValueError("masks")  # once committed, no site could go on from it
    if task == "train" and result.cases < 1:
        raise ValueError("masks")
    return found


def evidence_of(secure: Secure, phase: Phase, replies: Sequence[Masked]) -> bytes:
    """The parts of a round's sum, for the sites that ask for them; b"" where none does.

    Args:
        secure: who takes part.
        phase: of the round.
        replies: of all sites.
    """
    if not secure.evidence:
        return b""
    ordered = sorted(replies, key=lambda r: r.header.site)
    places = counted(len(phase.organs))
    return Evidence(
        np.stack([r.words for r in ordered]),
        np.stack([r.numbers[places] for r in ordered]),
        tuple(r.signed for r in ordered),
    ).to_parcel()


def keep_evidence(folder: Path, round_: int, parcel: bytes) -> None:
    """Keeps the evidence of a round beside its weights, before these are committed.

    A server that starts again needs it to go on; of earlier rounds the last stays, in case that
    this one is not committed.
    """
    private_folder(folder)
    if parcel:
        replace_file(folder / EVIDENCE_FILE.format(round_), parcel)
    kept = {EVIDENCE_FILE.format(r) for r in (round_, round_ - 1)}
    for path in folder.glob(EVIDENCE_FILE.format(0).replace("00000", "*")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def kept_evidence(folder: Path, round_: int) -> bytes:
    """The evidence of a round; b"" where none is kept."""
    path = folder / EVIDENCE_FILE.format(round_)
    return path.read_bytes() if path.is_file() else b""


def averaged(
    secure: Secure,
    phase: Phase,
    what: Travelling,
    state: Mapping[str, Tensor],
    replies: Sequence[Masked],
    result: Result,
) -> tuple[State, list[str]]:
    """The next weights, and organs whose rows are kept: too few sites have cases of them.

    Args:
        secure: who takes part.
        phase: of the round.
        what: travels.
        state: all weights before the round.
        replies: of all sites.
        result: the round's counts, summed.
    """
    segments = weight_segments(secure.plan, phase, secure.hellos, what)
    update = opened([r.words for r in replies], UPDATE_BITS)
    counts = (result.cases, *result.annotated)
    found = Opened(update, secure.totals(phase), counts)
    new, kept = following(replies[0].header.round, state, what, segments, found)
    return dict(state) | new, [phase.organs[i] for i in kept]
