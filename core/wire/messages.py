"""What travels between server and site, as dataclasses; knows nothing of Flower.

Every message is a record of scalars (`to_config`: strings and numbers) and one of numbers
(`to_metrics`), beside tensors. There is no free text and no list of layers: both ends derive the
layers from the phase.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from core.errors import UserError
from core.identifiers import digest, phase_name, round_number, run_id, site_name, word
from core.metrics.scores import SUM_FIELDS, OrganSum, of_few, pool_sites
from core.plan.schema import LOSSES

# The form of what travels: orders, replies, plans, and what a site's guard tells the bundle's code.
# Raised by one where any of them changes (tests/core/wire/test_wire_number.py); the guard reads it.
WIRE = 4
OK = "OK"
NEED_BASE = "NEED_BASE"
SETTINGS = ("plan", "run_id", "out", "resume", "tracking", "local")  # of a run, all text
TASKS = ("", "tally", "train", "validate", "test", "finish")
LONGEST_LIST = 64  # of an order: one number an organ
LARGEST = 1e15  # of any number of a reply
LEFT_OUT = re.compile(r"left_out\.[EW]_[A-Z_]{1,40}")  # in a site's description: reason -> cases
MOST_REASONS = 100

CODES = {
    OK: "the site did what it was asked",
    NEED_BASE: "the site lacks the base of the phase and asks for it",
    "E_CODE": "server and site are of versions that cannot work together; its screen names both",
    "E_SITE": "the site's settings cannot be used",
    "E_DATA": "the site has no usable case for this",
    "E_STATE": "the site lacks the personal weights that the round starts from",
    "E_NONFINITE": "training diverged: loss or weights became NaN, infinite or absurdly large",
    "E_MEMORY": "the device ran out of memory",
    "E_TIME": "the order took longer than the site's policy allows",
    "E_POLICY": "the site's policy.yaml does not allow the plan; its client.log names the key",
    "E_MASK": "the site refused to mask its reply (secure aggregation); its client.log says why",
    "E_WEIGHTS": "the site cannot derive the weights of the order from what the sites signed, and "
    "its policy asks for that (weights: agreed); its client.log says what differs",
    "E_BUNDLE": "the app bundle is not approved at the site: nothing of it was opened",
    "E_ORDER": "the order has a name, a form or a size that the site does not take",
    "E_OUTBOX": "the site's outbox stopped a reply that held what may not leave",
    "E_INTERNAL": "an error at the site; its own client.log says which",
    "E_ERROR": "Flower reported an error instead of a reply",
    "E_SCHEMA": "the reply has other names, shapes, types or sizes than asked for",
    "E_COUNT": "counts outside the possible range",
    "E_NORM": "the update is much longer than the round's median, or than training makes one",
    "E_UNCHANGED": "the update changes no weight",
    "E_STALE": "the reply belongs to another run, phase or round",
    "E_LOST": "no reply before the deadline",
}
# Asked again at once, a site would say the same again.
FINAL = frozenset(("E_BUNDLE", "E_CODE", "E_DATA", "E_NONFINITE", "E_ORDER"))
FINAL |= {"E_OUTBOX", "E_POLICY", "E_SITE", "E_WEIGHTS"}
# A simulation of the same plan and archives meets these again.
OF_THE_PLAN = frozenset(("E_DATA", "E_NONFINITE", "E_NORM", "E_ORDER", "E_OUTBOX"))


@dataclass(frozen=True)
class Order:
    """What the server asks of a site in one exchange.

    Attributes:
        run, phase, round: what it belongs to; rounds count from 1.
        task: ``tally`` (the counts, masked), ``train``, ``validate`` (the latest weights on val),
            ``test`` (the best on test) or ``finish`` (the best on val alone, where the phase leaves
            the test cases shut).
        base_hash: SHA-256 of the phase's base (D8); "" where there is none.
        base_round: round whose personal weights the site starts from (0: the start weights).
        best_round: round whose weights are asked for in ``test``.
        fingerprint: of the server's `core`.
        voxels, totals: class frequencies over the federation, per organ of the phase: organ voxels
            and crop voxels of the training cases that annotate it; empty where unknown (D9).
        organ_factors: on the static weight of each organ of the phase
            (`core.training.loss_weights`); empty for 1, and in personal phases, where the site
            follows its own scores.
        attempt: secure aggregation: at random for each try, so that no mask is used twice.
        peers: what every site of the sums said of itself (`core.secure.hello`), by site.
        weights: totals that a site's share is of: cases, and cases that annotate each organ.
        longest: length that an update must not exceed; 0 for none.
        receipt, receipt_signature, receipt_certificate: that the server has seen the site's last
            receipt (`core.wire.countersignature`); "" where there is none, as in a simulation.
    """

    run: str
    phase: str
    round: int
    task: str
    base_hash: str = ""
    base_round: int = 0
    best_round: int = 0
    fingerprint: str = ""
    voxels: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    organ_factors: list[float] = field(default_factory=list)
    attempt: str = ""
    peers: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    longest: float = 0.0
    receipt: str = ""
    receipt_signature: str = ""
    receipt_certificate: str = ""

    def to_config(self) -> dict[str, Any]:
        """Scalars and lists for a ConfigRecord (empty lists are left out: they have no type)."""
        return {k: v for k, v in asdict(self).items() if v != []}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Inverse of `to_config`; unknown keys are ignored.

        Before round 1 an order names no phase and no task: they are "".

        Raises:
            TypeError: one is missing.
            UserError: a name, hash or number that is none (`core.identifiers`).
        """
        known = {f.name for f in fields(cls)}
        order = cls(**{k: v for k, v in config.items() if k in known})
        _parsed(order.run, run_id, "run")
        _parsed(order.phase, phase_name, "phase")
        _parsed(order.base_hash, digest, "base_hash")
        word(order.fingerprint, "fingerprint")
        if order.task not in TASKS:
            raise UserError("task", repr(order.task)[:100], f"use one of {', '.join(TASKS[1:])}")
        for name in ("round", "base_round", "best_round"):
            round_number(getattr(order, name), name)
        for name in ("voxels", "totals", "organ_factors", "weights"):
            _require_numbers(getattr(order, name), name)
        word(order.attempt, "attempt")
        _require_numbers([order.longest], "longest")
        return order


@dataclass(frozen=True)
class Header:
    """Who answers which order, and how it went."""

    site: str
    run: str
    phase: str
    round: int
    code: str = OK
    stopped: bool = False
    best_round: int = 0

    def to_config(self) -> dict[str, Any]:
        """Scalars for a ConfigRecord."""
        return asdict(self)

    def answers(self, asked: Self) -> bool:
        """Whether site, run, phase and round are those of an order."""
        ours, theirs = asdict(self), asdict(asked)
        return all(ours[k] == theirs[k] for k in ("site", "run", "phase", "round"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Inverse of `to_config`.

        A refusal may name nothing: its site, run and phase are "" then.

        Raises:
            KeyError, TypeError: one is missing or of another type.
            UserError: a name or number that is none (`core.identifiers`).
        """
        values = {f.name: config[f.name] for f in fields(cls)}
        for f in fields(cls):
            kind = {"str": str, "int": int, "bool": bool}[str(f.type)]
            if type(values[f.name]) is not kind:
                raise TypeError(f"{f.name} is no {f.type}")
        header = cls(**values)
        _parsed(header.site, site_name, "site")
        _parsed(header.run, run_id, "run")
        _parsed(header.phase, phase_name, "phase")
        for name in ("round", "best_round"):
            round_number(getattr(header, name), name)
        return header


@dataclass(frozen=True)
class Result:
    """Numbers of a site's work: aggregation weights, losses, seconds, scores.

    Attributes:
        cases: training cases used; 0 where the site does not tell.
        annotated: per organ of the phase, training cases that annotate it; empty where not told.
        loss: mean of `LOSSES` over the steps; empty where nothing was trained.
        seconds: of computing at the site.
        startup: seconds that the process of this exchange took to begin; 0 where it runs on.
        scores: per split (``val``, ``test``) and organ, sums over the cases (control scores, D5).
    """

    cases: int = 0
    annotated: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0
    startup: float = 0.0
    scores: Mapping[str, Mapping[str, OrganSum]] = field(default_factory=dict)

    def to_metrics(self, organs: Sequence[str]) -> dict[str, int | float | list[int] | list[float]]:
        """Numbers for a MetricRecord."""
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "cases": self.cases,
            "steps": self.steps,
            "skipped": self.skipped,
            "seconds": float(self.seconds),
            "startup": float(self.startup),
        }
        if self.annotated:
            metrics["annotated"] = list(self.annotated)
        if self.loss:
            metrics["loss"] = [float(v) for v in self.loss]
        for split, sums in self.scores.items():
            for name in SUM_FIELDS:
                metrics[f"{split}.{name}"] = [float(getattr(sums[o], name)) for o in organs]
        return metrics

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], organs: Sequence[str]) -> Self:
        """Inverse of `to_metrics`.

        Raises:
            KeyError, TypeError, ValueError: not of this form.
        """
        scores: dict[str, dict[str, OrganSum]] = {}
        for split in ("val", "test"):
            if f"{split}.n" in metrics:
                rows = {f: _numbers(metrics[f"{split}.{f}"], len(organs)) for f in SUM_FIELDS}
                scores[split] = {o: _organ_sum(rows, i) for i, o in enumerate(organs)}
        annotated = tuple(int(v) for v in metrics.get("annotated", ()))
        loss = tuple(float(v) for v in metrics.get("loss", ()))
        if annotated and len(annotated) != len(organs):
            raise ValueError("annotated")
        if loss and (len(loss) != len(LOSSES)):
            raise ValueError("loss")
        return cls(
            cases=int(metrics["cases"]),
            annotated=annotated,
            loss=loss,
            steps=int(metrics["steps"]),
            skipped=int(metrics["skipped"]),
            seconds=float(metrics["seconds"]),
            startup=float(metrics.get("startup", 0.0)),
            scores=scores,
        )


@dataclass(frozen=True)
class Description:
    """What a site says of itself before round 1.

    Attributes:
        site, fingerprint: name and code.
        split_hash: HMAC of its split under its own secret (D17).
        cases: training, validation and test cases; -1 where the site withholds the number.
        annotated: per plan organ, training cases that annotate it; empty where the policy refuses.
        voxels, totals: class frequencies, see `Order`.
        left_out: reason code -> how many cases or organs were left out, or -1.
        annotated_val, annotated_test: as `annotated`, of the other splits; for secure aggregation
            only, and then for the site's own guard, which tells no more than whether there are any.
        hello: secure aggregation: what the site says of itself under its signature.
    """

    site: str
    fingerprint: str
    split_hash: str
    cases: tuple[int, int, int]
    annotated: tuple[int, ...]
    voxels: tuple[float, ...]
    totals: tuple[float, ...]
    left_out: Mapping[str, int]
    versions: Mapping[str, str]
    annotated_val: tuple[int, ...] = ()
    annotated_test: tuple[int, ...] = ()
    hello: str = ""

    def to_records(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(config, metrics) for the wire."""
        config: dict[str, Any] = {
            "site": self.site,
            "fingerprint": self.fingerprint,
            "split_hash": self.split_hash,
            "code": OK,
        }
        config |= {f"version.{k}": v for k, v in self.versions.items()}
        config |= {"hello": self.hello} if self.hello else {}
        metrics: dict[str, Any] = {"cases": list(self.cases)}
        for name in ("annotated", "voxels", "totals", "annotated_val", "annotated_test"):
            if getattr(self, name):
                metrics[name] = list(getattr(self, name))
        metrics |= {f"left_out.{k}": v for k, v in self.left_out.items()}
        return config, metrics

    @classmethod
    def from_records(cls, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Self:
        """Inverse of `to_records`.

        Raises:
            KeyError, IndexError, TypeError, ValueError, OverflowError: not of this form.
        """
        cases = [int(v) for v in metrics["cases"]]
        return cls(
            site=site_name(config["site"]),
            fingerprint=word(config["fingerprint"], "fingerprint"),
            split_hash=word(config["split_hash"], "split_hash"),
            cases=(cases[0], cases[1], cases[2]),
            annotated=tuple(int(v) for v in metrics.get("annotated", ())),
            voxels=tuple(float(v) for v in metrics.get("voxels", ())),
            totals=tuple(float(v) for v in metrics.get("totals", ())),
            left_out=_reasons(metrics),
            versions={
                word(k[8:], "version"): word(v, "version")
                for k, v in config.items()
                if k.startswith("version.")
            },
            annotated_val=tuple(int(v) for v in metrics.get("annotated_val", ())),
            annotated_test=tuple(int(v) for v in metrics.get("annotated_test", ())),
            hello=str(config.get("hello", "")),
        )


def _reasons(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Why cases were left out, and how many.

    Raises:
        ValueError: more reasons than there are, or one that is no reason code.
    """
    told = {k: int(v) for k, v in metrics.items() if k.startswith("left_out.")}
    if len(told) > MOST_REASONS or not all(map(LEFT_OUT.fullmatch, told)):
        raise ValueError("left_out")
    return {k.removeprefix("left_out."): n for k, n in told.items()}


def _parsed(value: object, parse: Callable[[object, str], str], field: str) -> None:
    """Requires a name, or "" where a message has none."""
    if value != "" or not isinstance(value, str):
        parse(value, field)


def _require_numbers(values: object, field: str) -> None:
    listed: list[Any] = (
        values if isinstance(values, list) and len(values) <= LONGEST_LIST else [None]
    )
    if not all(type(v) in (int, float) and math.isfinite(v) for v in listed):
        raise UserError(field, repr(values)[:100], f"give at most {LONGEST_LIST} finite numbers")


def _numbers(values: Any, length: int) -> list[float]:
    numbers = [float(v) for v in values]
    if len(numbers) != length or not all(math.isfinite(v) for v in numbers):
        raise ValueError("scores")
    return numbers


def _organ_sum(rows: Mapping[str, list[float]], i: int) -> OrganSum:
    values: dict[str, Any] = {name: row[i] for name, row in rows.items()}
    return OrganSum(**values | {name: int(values[name]) for name in ("n", "detected")})


WITHHELD = OrganSum(n=-1)


def withhold(sums: Mapping[str, OrganSum], min_cell: int) -> dict[str, OrganSum]:
    """What may leave a personal phase: a cell of few cases, or of few found, is emptied."""
    return {o: WITHHELD if of_few(s.n, s.detected, min_cell) else s for o, s in sums.items()}


def published(
    sites: Mapping[str, Mapping[str, OrganSum]], organs: Sequence[str], min_cell: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What may be written down of control scores (D5): (cells by site and organ, pooled means)."""
    cells = {s: pool_sites({s: m}, organs, min_cell)["organs"] for s, m in sites.items() if m}
    return cells, pool_sites(sites, organs, min_cell)
