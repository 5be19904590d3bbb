"""The one way out of a site: what a reply may hold is rebuilt here, checked, receipted, let go.

The code that worked on the order is not believed. Who it says it is must be what was asked; what
the policy keeps back is taken out; names, types, ranges and shapes are those of `outbox`; weights
are opened, compared with what the phase shares, and packed anew, so that nothing travels beside
them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from core.errors import UserError
from core.models.stages import unique_state
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import Plan
from core.provenance import versions
from core.secure.layout import summed_sites
from core.training.optimisation import NonFiniteError, out_of_memory
from core.wire.messages import CODES, NEED_BASE, OK, Header
from core.wire.partition import parts_of
from core.wire.state import packed, unpacked
from hnfed.guard.masking import secured
from hnfed.guard.masking_session import Keyring, MaskingError
from hnfed.guard.order import Asked, OrderError
from hnfed.guard.outbox import OutboxError, require_allowed, require_form
from hnfed.guard.outline import outline_if_possible
from hnfed.guard.policy import Policy, PolicyError, hidden
from hnfed.guard.receipts import Chain, write_receipt
from hnfed.guard.weights import WeightsError

FOR_MASKING = ("annotated_val", "annotated_test")
DESCRIBED = ("site", "code", "fingerprint", "split_hash")  # beside versions
NOTHING = {"cases": 0, "steps": 0, "skipped": 0, "seconds": 0.0}  # metrics of a refusal
State = dict[str, Tensor]


@dataclass(frozen=True)
class Reply:
    """Records of a reply: settings, numbers, and a parcel of weights or b""."""

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    parcel: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Known:
    """What the guard knows of an order that the code which works on it need not be asked.

    Attributes:
        split: keyed hash of the split; "" where a simulation has no pin.
        incoming: the parcel of weights that came; b"" where none did.
        near: see `hnfed.guard.hiding.hidden`.
    """

    split: str = ""
    incoming: bytes = field(default=b"", repr=False)
    near: frozenset[tuple[str, str]] = frozenset()


NOTHING_KNOWN = Known()


def release(
    reply: Reply,
    asked: Asked,
    policy: Policy | None,
    known: Known = NOTHING_KNOWN,
    *,
    receipts: Chain | None = None,
    keyring: Keyring | None = None,
) -> Reply:
    """What of a reply leaves.

    Args:
        reply: what the code that worked on the order says.
        asked: the order.
        policy: of the site; a simulated site has none.
        known: what the guard itself knows of it.
        receipts: of the site; they grow by a line before the reply goes.
        keyring: of the site; what leaves is masked where the plan asks for sums only.

    Returns:
        The reply that may go, made anew.

    Raises:
        OutboxError: something was about to leave that is not on the list.
        NonFiniteError: a weight is NaN or infinite.
        MaskingError: the plan asks for sums only, and this reply would not be one.
    """
    sums, bits = asked.plan.federation.secure_aggregation, asked.plan.federation.update_bits
    if policy is not None and sums:  # what it keeps back enters no sum, see `Keyring`
        policy = replace(policy, counts=True, scores=True)
    config, metrics = dict(reply.config), dict(reply.metrics)
    code = config.get("code")
    if isinstance(code, str) and code in CODES and code not in (OK, NEED_BASE) and not reply.parcel:
        return refusal(code, asked.site, asked, receipts=receipts)  # a word; nothing of its own
    _require_own_words(config, asked, known.split)
    require_form(asked.kind, asked.plan, asked.phase, metrics)
    if policy is not None:
        metrics = hidden(policy, asked, metrics, known.near)
    expected: Mapping[str, Tensor] = {}
    if asked.kind == "train" and asked.phase is not None and code == OK:
        expected = shared_shapes(plan_json(asked.plan), asked.phase.name)
    if reply.parcel and not expected:
        raise OutboxError("weights: nothing of this phase leaves")
    try:
        state = unpacked(reply.parcel, expected, bits=bits) if reply.parcel else {}
    except ValueError as error:
        raise OutboxError(f"weights: {error}") from error
    parcel = packed(state, bits) if state else b""
    leaves = state if bits == 32 or not parcel else unpacked(parcel, bits=bits)
    require_allowed(config, metrics, leaves, expected)
    if not sums:  # the guard alone needs these, and only then
        metrics = {k: v for k, v in metrics.items() if k not in FOR_MASKING}
    else:
        if keyring is None:
            raise MaskingError("there is no key of this site to mask with")
        config, metrics, parcel = secured(asked, known.incoming, config, metrics, state, keyring)
    released = Reply(config, metrics, parcel)
    if receipts is None:
        return released
    leaves = unpacked(parcel) if parcel else {}  # masked, or of fewer bits than `state`
    return _receipted(receipts, asked.run, asked.kind, released, leaves)


def refusal(
    code: str, site: str, asked: Asked | None, *, receipts: Chain | None = None, run: str = ""
) -> Reply:
    """The reply that tells the server a code, and nothing else; a receipt says so.

    Args:
        code: a key of `core.wire.messages.CODES`.
        site: this site's name.
        asked: the order, where it came so far that it was read.
        receipts: as for `release`.
        run: checked name of the run, where there is no order.
    """
    assert code in CODES
    order = asked.order if asked is not None else None
    header = Header(
        site=site,
        run=order.run if order is not None else run,
        phase=order.phase if order is not None else "",
        round=order.round if order is not None else 0,
        code=code,
    )
    reply = Reply(header.to_config(), NOTHING)
    return reply if receipts is None else _receipted(receipts, header.run, "error", reply, {})


def code_of(error: BaseException) -> str:
    """The code for an error on this side of the wall."""
    if isinstance(error, PolicyError):
        return "E_POLICY"
    if isinstance(error, OutboxError):
        return "E_OUTBOX"
    if isinstance(error, MaskingError):
        return "E_MASK"
    if isinstance(error, WeightsError):
        return "E_WEIGHTS"
    if isinstance(error, OrderError):
        return "E_ORDER"
    if isinstance(error, NonFiniteError):
        return "E_NONFINITE"
    if out_of_memory(error):
        return "E_MEMORY"
    if isinstance(error, UserError):
        return "E_DATA" if error.field in ("entries", "root") else "E_SITE"
    return "E_INTERNAL"


@functools.lru_cache(16)
def shared_shapes(plan: str, phase: str) -> Mapping[str, Tensor]:
    """What of a phase's weights travels, as tensors without memory.

    Args:
        plan: as JSON, one that was checked.
        phase: name of one of its phases.
    """
    made = plan_from_json(plan)
    model = outline_if_possible(made, made.phase(phase))
    shared = set(parts_of(model, made, made.phase(phase)).shared)
    return {n: t.detach().to("meta") for n, t in unique_state(model).items() if n in shared}


@functools.lru_cache(16)
def most_bytes(plan: str) -> int:
    """That the weights of a message of this plan can take, with what is said about them."""
    made = plan_from_json(plan)
    largest = 0
    for phase in made.phases:
        state = unique_state(outline_if_possible(made, phase))
        size = sum(t.numel() * t.element_size() + 6 * len(n) + 400 for n, t in state.items())
        largest = max(largest, size)
    return 2 * largest + 4 * 2**20


def _require_own_words(config: Mapping[str, Any], asked: Asked, split: str) -> None:
    """A reply says who this site is and what it was asked; it has no words of its own.

    Raises:
        OutboxError: it says something else.
    """
    code = config.get("code")
    if asked.kind == "query" and code == OK:
        expected: dict[str, Any] = {"site": asked.site}
        if split:
            expected["split_hash"] = split
        _require_description(config)
    else:
        order = asked.order
        expected = {"run": order.run, "phase": order.phase, "round": order.round}
        if asked.site:
            expected["site"] = asked.site
        if set(config) != set(Header("", "", "", 0).to_config()):
            raise OutboxError(f"config: {sorted(config)[:12]}")
        most = asked.phase.rounds if asked.phase is not None else 0
        best = config["best_round"]
        if type(config["stopped"]) is not bool or type(best) is not int or not 0 <= best <= most:
            raise OutboxError("config: stopped or best_round")
    if code == NEED_BASE and not asked.order.base_hash:
        raise OutboxError("code: asks for a base that the order does not name")
    for key, value in expected.items():
        if config.get(key) != value or type(config.get(key)) is not type(value):
            raise OutboxError(f"config: {key} is not what was asked")


def _require_description(config: Mapping[str, Any]) -> None:
    """What a site says of itself has no room for words: versions are those of this machine.

    Raises:
        OutboxError: another key, or a version that is not what is installed here.
    """
    here = {f"version.{name}": told for name, told in versions().items()}
    for key, value in config.items():
        if key not in DESCRIBED and here.get(key) != value:
            raise OutboxError(f"config: {key!r}")


def plan_bytes(plan: Plan) -> int:
    """`most_bytes` of a plan."""
    return most_bytes(plan_json(plan))


def incoming_bytes(plan: Plan, keyring: Keyring | None = None) -> int:
    """`plan_bytes` and, where this site looks at the parts of sums, room for each site's.

    A plan may name a thousand sites: what they would send has room only if all of them were
    confirmed here; no sum of others is ever opened.

    Args:
        plan: of the run.
        keyring: of this site; None where the plan asks for no sums.
    """
    sites = summed_sites(plan)
    looks = keyring is not None and keyring.agreed and keyring.site in sites
    known = looks and set(sites) <= {*keyring.peers, keyring.site} if keyring else False
    return plan_bytes(plan) + (len(sites) * (plan_bytes(plan) // 2) if known else 0)


def _receipted(chain: Chain, run: str, kind: str, reply: Reply, state: State) -> Reply:
    """The reply with the name of its receipt, which is written first."""
    receipt = write_receipt(chain, run, kind, reply.config, reply.metrics, state)
    return Reply({**reply.config, "receipt": receipt}, reply.metrics, reply.parcel)
