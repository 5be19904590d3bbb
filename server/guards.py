"""What the server accepts: everything else is rejected by name, with a reason code, and the round goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from core.config import Guards, Phase
from core.protocol import CODES, OK, Header, Result
from server.strategy import ARRAYS, HEADER, METRICS

T = TypeVar("T")


@dataclass(frozen=True)
class Accepted:
    """A reply that passed: header, numbers and, where weights travel, the weights."""

    header: Header
    result: Result
    state: dict[str, Tensor]
    message: Message


@dataclass(frozen=True)
class Rejected:
    """A reply that did not: reason code (a key of `core.protocol.CODES`) and what was off."""

    code: str
    detail: str


def inspect(
    reply: Message,
    *,
    site: str,
    run: str,
    phase: Phase,
    round_: int,
    expected: Mapping[str, Tensor],
    guards: Guards,
) -> Accepted | Rejected:
    """Checks one reply against what was asked.

    Args:
        reply: as Flower brought it.
        site, run, phase, round_: what the order said.
        expected: tensors of the names, shapes and dtypes that must come back ({} where none travel).
        guards: bounds of the plan.
    """
    if reply.has_error():
        return Rejected("E_ERROR", f"Flower error {int(reply.error.code)}")
    try:
        header = Header.from_config(_one(reply, HEADER, ConfigRecord))
        if header.code != OK:
            code = header.code if header.code in CODES else "E_INTERNAL"
            return Rejected(code, CODES[code])
        result = Result.from_metrics(_one(reply, METRICS, MetricRecord), phase.organs)
    except (KeyError, TypeError, ValueError) as error:
        return Rejected("E_SCHEMA", f"header or metrics ({type(error).__name__})")
    if (header.site, header.run, header.phase, header.round) != (site, run, phase.name, round_):
        return Rejected("E_STALE", "site, run, phase or round differ from the order")
    counts = (result.cases, result.steps, result.skipped, *result.annotated)
    if any(c < 0 or c > guards.max_cases * 1000 for c in counts) or result.cases > guards.max_cases:
        return Rejected("E_COUNT", f"counts outside 0..{guards.max_cases}")
    if result.annotated and max(result.annotated) > result.cases:
        return Rejected("E_COUNT", "more annotated cases than cases")
    for sums in result.scores.values():
        for s in sums.values():
            if s.n >= 0 and not (0 <= s.detected <= s.n <= guards.max_cases and 0 <= s.dice <= s.n + 1e-6):
                return Rejected("E_COUNT", "scores outside their range")
    if not all(torch.isfinite(torch.tensor(v)) for v in (result.seconds, *result.loss)):
        return Rejected("E_NONFINITE", "loss or seconds")
    return _with_state(reply, header, result, expected)


def _with_state(
    reply: Message, header: Header, result: Result, expected: Mapping[str, Tensor]
) -> Accepted | Rejected:
    records = reply.content.array_records
    if not expected:
        if records:
            return Rejected("E_SCHEMA", "weights where none may travel")
        return Accepted(header, result, {}, reply)
    try:
        arrays = _one(reply, ARRAYS, ArrayRecord)
        if len(records) != 1 or set(arrays) != set(expected):
            return Rejected("E_SCHEMA", "names of the weights")
        for name, tensor in expected.items():
            if tuple(arrays[name].shape) != tuple(tensor.shape):
                return Rejected("E_SCHEMA", f"shape of {name}")
        state = dict(arrays.to_torch_state_dict())
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        return Rejected("E_SCHEMA", f"weights ({type(error).__name__})")
    for name, tensor in expected.items():
        if state[name].dtype != tensor.dtype:
            return Rejected("E_SCHEMA", f"dtype of {name}")
        if not bool(torch.isfinite(state[name]).all()):
            return Rejected("E_NONFINITE", f"weights of {name}")
    if result.cases < 1:
        return Rejected("E_COUNT", "an update from no case")
    return Accepted(header, result, state, reply)


def _one(reply: Message, key: str, kind: type[T]) -> T:
    record = reply.content[key]
    if not isinstance(record, kind):
        raise TypeError(key)
    return record
