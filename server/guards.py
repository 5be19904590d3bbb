"""What the server accepts: all else is rejected by name, with a reason code; the round goes on.

Answers are judged as they come, and accepted weights wait on disk: the memory of a round does not
grow with its sites. The file of an update has no name once it is open: it is gone when nobody reads
it any more, whatever ends the process.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from core.files import private_folder
from core.metrics.scores import MEASURES, OrganSum
from core.plan.ranges import DAYS_30
from core.plan.schema import SPLITS, Federation, Guards, Phase
from core.wire.messages import CODES, LARGEST, OK, Header, Result
from core.wire.state import beyond, unpacked
from server.exchange import UNREADABLE
from server.strategy import ARRAYS, HEADER, METRICS

T = TypeVar("T")
Opener = Callable[[bytes, Mapping[str, Tensor]], dict[str, Tensor]]
AWAY = 5  # Flower's code of a node without a connection
FLOWER_WORDS = {
    0: "the site's process died (memory?)",
    1: "the site could not start the app",
    2: "the app failed at the site",
    3: "the message was not fetched in time",
    4: "the reply was not kept",
    AWAY: "the site is not connected",
    UNREADABLE: "the reply is no message that can be read",
    7: "the site could not install the app bundle",
    8: "the site's process ended: the app bundle is not approved there, or memory ran out",
}


@dataclass(frozen=True)
class Accepted:
    """A reply that passed: header, numbers and, where weights travel, the weights."""

    header: Header
    result: Result
    state: dict[str, Tensor]
    message: Message | None  # None for a sum of replies


@dataclass(frozen=True)
class Rejected:
    """A reply that did not: reason code (a key of `core.wire.messages.CODES`) and what was off."""

    code: str
    detail: str


@dataclass(frozen=True)
class Awaited:
    """Weights that must come back.

    Attributes:
        tensors: of their names, shapes and dtypes; {} where none travel.
        still: names of those that do not train in this round: they come back as they went out.
        opened: makes the tensors of a parcel, as `core.wire.state.unpacked` does.
    """

    tensors: Mapping[str, Tensor]
    still: frozenset[str] = frozenset()
    opened: Opener = unpacked


NO_REPLY = Rejected("E_LOST", "no reply before the deadline")


def inspect(
    reply: Message,
    asked: Header,
    phase: Phase,
    *,
    awaited: Awaited,
    guards: Guards,
    cases: tuple[int, int, int],
) -> Accepted | Rejected:
    """Checks one reply against what was asked.

    Args:
        reply: as Flower brought it.
        asked: site, run, phase and round of the order.
        phase: of the order.
        awaited: the weights that must come back.
        guards: bounds of the plan.
        cases: training, validation and test cases that the site described; -1 where it told none.
    """
    if reply.has_error():
        return Rejected("E_ERROR", error_words(reply))
    try:
        header = Header.from_config(_one(reply, HEADER, ConfigRecord))
        if header.code != OK:
            code = known_code(header.code)
            return Rejected(code, CODES[code])
        result = Result.from_metrics(_one(reply, METRICS, MetricRecord), phase.organs)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return Rejected("E_SCHEMA", f"header or metrics ({type(error).__name__})")
    if not header.answers(asked):
        return Rejected("E_STALE", "site, run, phase or round differ from the order")
    if not 0 <= header.best_round <= asked.round:
        return Rejected("E_COUNT", "a best round that has not been")
    wrong = _numbers(result, guards, cases)
    verdict = wrong or _with_state(reply, Accepted(header, result, {}, reply), awaited)
    if isinstance(verdict, Rejected) or not verdict.state:
        return verdict
    told = cases[0] >= 0 or result.annotated  # else the site withholds its counts
    if result.cases < 1 and told:
        return Rejected("E_COUNT", "an update from no case")
    if cases[0] >= 0 and not result.annotated:  # else all sites would weigh equally
        return Rejected("E_COUNT", "no count of annotated cases from a site that described its own")
    if _unchanged({n: t for n, t in verdict.state.items() if n not in awaited.still}, awaited):
        return Rejected("E_UNCHANGED", "the weights came back as they went out")
    return verdict


def error_words(reply: Message) -> str:
    """Flower's error code in words; its reason goes nowhere, it may quote an exception."""
    code = int(reply.error.code)
    return f"{FLOWER_WORDS.get(code, 'an error without a name')}; Flower error {code}"


def known_code(code: object) -> str:
    """The reason code if it is one of ours: a site's own words go nowhere."""
    return code if isinstance(code, str) and code in CODES else "E_INTERNAL"


def _numbers(result: Result, guards: Guards, described: tuple[int, int, int]) -> Rejected | None:
    most = {
        split: min(guards.max_cases, n) if n >= 0 else guards.max_cases
        for split, n in zip(SPLITS, described, strict=True)
    }
    counts = (result.cases, result.steps, result.skipped, *result.annotated)
    if min(counts) < 0 or max(counts) > guards.max_cases * 1000:
        return Rejected("E_COUNT", f"counts outside 0..{guards.max_cases}")
    if result.cases > most["train"]:
        return Rejected("E_COUNT", "more training cases than the site described")
    if result.annotated and max(result.annotated) > result.cases:
        return Rejected("E_COUNT", "more annotated cases than cases")
    told = [(s, most.get(k, 0)) for k, sums in result.scores.items() for s in sums.values()]
    if not all(_possible(s, n) for s, n in told):
        return Rejected("E_COUNT", "scores outside their range")
    numbers = (result.seconds, result.startup, *result.loss)
    if not all(map(math.isfinite, numbers)) or any(abs(v) > LARGEST for v in result.loss):
        return Rejected("E_NONFINITE", "loss or seconds")
    if not all(0 <= seconds <= DAYS_30 for seconds in (result.seconds, result.startup)):
        return Rejected("E_COUNT", "seconds outside 30 days")
    return None


def _possible(s: OrganSum, most: int) -> bool:
    """Sums that at most `most` cases can have; -1 cases stand for a cell that is withheld."""
    if s.n < 0:
        return s.n == -1
    return 0 <= s.detected <= s.n <= most and all(
        0 <= getattr(s, m.field) <= s.n * m.highest + 1e-6 for m in MEASURES.values()
    )


def _unchanged(trained: Mapping[str, Tensor], awaited: Awaited) -> bool:
    """True where training changed nothing of what it trains."""
    before = awaited.tensors
    return bool(trained) and all(torch.equal(tensor, before[n]) for n, tensor in trained.items())


def _with_state(reply: Message, one: Accepted, awaited: Awaited) -> Accepted | Rejected:
    """Names, shapes, types and values of the weights, which the message holds no longer then."""
    expected = awaited.tensors
    travelling = sum(isinstance(r, ArrayRecord) for r in reply.content.values())
    if not expected:
        if travelling:
            return Rejected("E_SCHEMA", "weights where none may travel")
        return one
    try:
        arrays = _one(reply, ARRAYS, ArrayRecord)
        if travelling != 1 or len(arrays) != 1:
            return Rejected("E_SCHEMA", "more than one parcel of weights")
        (array,) = arrays.values()
        state = awaited.opened(array.data, expected)
    except (KeyError, TypeError, ValueError) as error:
        return Rejected("E_SCHEMA", f"weights ({type(error).__name__})")
    del reply.content[ARRAYS], arrays, array  # from here on they are in `state` alone
    if set(state) != set(expected):
        return Rejected("E_SCHEMA", "names of the weights")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            return Rejected("E_SCHEMA", f"shape of {name}")
        if state[name].dtype != tensor.dtype:
            return Rejected("E_SCHEMA", f"dtype of {name}")
        if not bool(state[name].isfinite().all()):
            return Rejected("E_NONFINITE", f"weights of {name}")
        if name in awaited.still and not torch.equal(state[name], tensor):
            return Rejected("E_NORM", f"{name} moved, which is frozen in this round")
    if far := beyond(state, expected):
        return Rejected("E_NORM", f"{far} moved farther than training moves weights in a round")
    return replace(one, state=state)


def _one(reply: Message, key: str, kind: type[T]) -> T:
    record = reply.content[key]
    if not isinstance(record, kind):
        raise TypeError(key)
    return record


@dataclass(frozen=True)
class Verdicts:
    """Call it with each site and its answer.

    Attributes:
        asked: run, phase and round of the orders.
        phase: of the orders.
        expected: tensors whose names, shapes and dtypes must come back ({} where none travel).
        still: names of those that come back as they went out.
        federation: settings of the plan.
        cases: by site, training, validation and test cases that it described.
        folder: where the weights wait.
        found: verdict by site, of those that answered.
    """

    asked: Header
    phase: Phase
    expected: Mapping[str, Tensor]
    federation: Federation
    cases: Mapping[str, tuple[int, int, int]]
    folder: Path
    still: frozenset[str] = frozenset()
    found: dict[str, Accepted | Rejected] = field(default_factory=dict)

    def __call__(self, site: str, reply: Message) -> None:
        """Judges one answer."""
        bits = self.federation.update_bits
        load, since = partial(on_disk, folder=self.folder), self.expected
        opened = partial(unpacked, load=load, bits=bits, since=since)
        self.found[site] = inspect(
            reply,
            replace(self.asked, site=site),
            self.phase,
            awaited=Awaited(self.expected, self.still, opened),
            guards=self.federation.guards,
            cases=self.cases[site],
        )

    def of(self, site: str) -> Accepted | Rejected:
        """The verdict on a site, which may not have answered."""
        return self.found.get(site, NO_REPLY)


def on_disk(parcel: bytes, folder: Path) -> dict[str, Tensor]:
    """The tensors of a parcel, whose memory the system takes back where it needs it.

    Args:
        parcel: from `core.wire.state.packed`.
        folder: made, for this account alone, where it does not exist.
    """
    private_folder(folder)
    handle, name = tempfile.mkstemp(suffix=".safetensors", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(parcel)
        return safetensors.torch.load_file(name)
    finally:
        os.unlink(name)
