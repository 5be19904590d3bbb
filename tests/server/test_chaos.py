"""Seeded faults at message level: the run goes on, and every committed round can be recomputed.

A few rounds run with the tests; `make chaos` runs at least 100 rounds with at least 200 faults.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Error, Message

from core.plan.schema import Phase, Plan, Weighting
from tests.server.conftest import ORGANS, Act, Fakes, Federated, drop, header, metrics
from tests.server.conftest import arrays as weights
from tests.weights import weights_in

SITES = ["a", "b", "c", "d", "e"]
ROUNDS = 10
Make = Callable[..., Federated]


def one(state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    name = sorted(state)[0]
    return state | {name: change(state[name].clone())}


def first_to(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


def error(code: int) -> Act:
    return lambda message, reply: Message(Error(code, "/data/DOE^JANE.dcm"), reply_to=message)


def unchanged(message: Message, reply: Message) -> Message:
    reply.content["arrays"] = message.content["arrays"]
    return reply


# kind -> (fault, codes that may follow; () where the update counts, shortened)
KINDS: dict[str, tuple[Callable[[], Act], tuple[str, ...]]] = {
    "NaN in a weight": (
        lambda: weights(lambda s: one(s, first_to(float("nan")))),
        ("E_NONFINITE",),
    ),
    "infinity in a weight": (
        lambda: weights(lambda s: one(s, first_to(float("inf")))),
        ("E_NONFINITE",),
    ),
    "all weights NaN": (
        lambda: weights(lambda s: {k: v * float("nan") for k, v in s.items()}),
        ("E_NONFINITE",),
    ),
    "a shape too long": (
        lambda: weights(lambda s: one(s, lambda t: torch.cat([t, t]))),
        ("E_SCHEMA",),
    ),
    "a shape that broadcasts": (
        lambda: weights(lambda s: one(s, lambda t: t.reshape(-1)[:1])),
        ("E_SCHEMA",),
    ),
    "a weight missing": (lambda: weights(lambda s: dict(list(s.items())[1:])), ("E_SCHEMA",)),
    "a weight too many": (lambda: weights(lambda s: s | {"more": torch.zeros(1)}), ("E_SCHEMA",)),
    "weights renamed": (
        lambda: weights(lambda s: {f"{k}_": v for k, v in s.items()}),
        ("E_SCHEMA",),
    ),
    "weights as float64": (
        lambda: weights(lambda s: {k: v.double() for k, v in s.items()}),
        ("E_SCHEMA",),
    ),
    "weights as int": (
        lambda: weights(lambda s: {k: v.long() for k, v in s.items()}),
        ("E_SCHEMA",),
    ),
    "the weights that went out": (lambda: unchanged, ("E_UNCHANGED",)),
    "no weights": (lambda: drop("arrays"), ("E_SCHEMA",)),
    "no metrics": (lambda: drop("metrics"), ("E_SCHEMA",)),
    "no header": (lambda: drop("header"), ("E_SCHEMA",)),
    "another round": (lambda: header(round=99), ("E_STALE",)),
    "another run": (lambda: header(run="other"), ("E_STALE",)),
    "another phase": (lambda: header(phase="other"), ("E_STALE",)),
    "another site's name": (lambda: header(site="z"), ("E_STALE",)),
    "a number as name": (lambda: header(site=3), ("E_SCHEMA",)),
    "an old reply again": (lambda: header(round=0), ("E_STALE",)),
    "a code of its own": (lambda: header(code="E_JANE_DOE"), ("E_INTERNAL",)),
    "out of memory": (lambda: header(code="E_MEMORY"), ("E_MEMORY",)),
    "disk full": (lambda: header(code="E_INTERNAL"), ("E_INTERNAL",)),
    "negative cases": (lambda: metrics(cases=-4), ("E_COUNT",)),
    "absurdly many cases": (lambda: metrics(cases=10**12), ("E_COUNT",)),
    "more cases than described": (lambda: metrics(cases=7), ("E_COUNT",)),
    "more organs than cases": (lambda: metrics(annotated=[9, 9]), ("E_COUNT",)),
    "too few counts": (lambda: metrics(annotated=[1]), ("E_SCHEMA",)),
    "NaN as loss": (lambda: metrics(loss=[float("nan")] * 5), ("E_NONFINITE",)),
    "NaN as score": (lambda: metrics(**{"val.dice": [float("nan")] * 2}), ("E_SCHEMA",)),
    "a score above one": (lambda: metrics(**{"val.dice": [50.0, 50.0]}), ("E_COUNT",)),
    "more missed than cases": (lambda: metrics(**{"val.detected": [9.0, 9.0]}), ("E_COUNT",)),
    "the process died": (lambda: error(0), ("E_ERROR",)),
    "the ClientApp raised": (lambda: error(2), ("E_ERROR",)),
    "the node is gone": (lambda: error(5), ("E_ERROR",)),
    "an update a thousand times too long": (
        lambda: weights(lambda s: {k: v + 5.0 for k, v in s.items()}),
        (),
    ),
    "an update that no training makes": (
        lambda: weights(lambda s: {k: v * 1000.0 + 1000.0 for k, v in s.items()}),
        ("E_NORM",),
    ),
}


def chaos(make: Make, seed: int, share: float) -> tuple[Counter[str], int]:
    """One run of five sites with faults in that share of the replies, checked from its journal.

    Returns:
        Faults by kind, and committed rounds.
    """
    rng = random.Random(seed)
    plan = Plan(
        **{
            **_tiny().__dict__,
            "phases": [Phase(name="p", sites=SITES, organs=ORGANS, rounds=ROUNDS)],
            "weighting": Weighting(),
        }
    )
    add = {site: 0.001 * (i + 1) for i, site in enumerate(SITES)}
    cases = {site: i + 1 for i, site in enumerate(SITES)}
    run = make(plan, folder=f"seed{seed}", add=add, cases=cases)
    arrived: dict[int, float] = {}
    planted: dict[tuple[str, int], str] = {}
    for round_ in range(1, ROUNDS + 1):
        faulty = [site for site in SITES if rng.random() < share][: len(SITES) - 2]
        for site in faulty:
            kind = rng.choice(sorted(KINDS))
            planted[(site, round_)] = kind
            run.fakes.acts[(site, "train", round_)] = [KINDS[kind][0]()]
    _watch(run.fakes, arrived)
    run.run()
    rounds = run.events("round")
    assert [e["round"] for e in rounds] == list(range(1, ROUNDS + 1)), "a committed round is lost"
    told = (run.out / "journal.jsonl").read_text()
    assert "JANE" not in told
    place = arrived[1]
    for event in rounds:
        assert arrived[event["round"]] == pytest.approx(place, abs=1e-5), event["round"]
        clipped = event.get("clipped", {})
        for site in SITES:
            kind = planted.get((site, event["round"]))
            wanted = KINDS[kind][1] if kind else ()
            if wanted:
                assert event["rejected"].get(site) in wanted, (kind, event["rejected"])
            else:
                assert site in event["accepted"], (kind, event["rejected"])
            assert (site in clipped) == (kind is not None and not wanted), (site, kind)
        if clipped:
            place = arrived.get(event["round"] + 1, place)  # bounded below, not recomputed
            continue
        total = sum(cases[s] for s in event["accepted"])
        place += sum(add[s] * cases[s] for s in event["accepted"]) / total
    last = run.weights("last")
    assert all(bool(v.isfinite().all()) for v in last.values())
    assert max(float(v.abs().max()) for v in last.values()) < 50.0, "a long update was bounded"
    return Counter(planted.values()), len(rounds)


def _tiny() -> Plan:
    from tests.server.conftest import tiny_plan

    return tiny_plan(min_sites=2)


def _watch(fakes: Fakes, arrived: dict[int, float]) -> None:
    """Notes a weight of the body as it comes in, per round: what the server committed before."""
    begin = fakes._begin

    def watching(message: Message, context: Any) -> Any:
        order = message.content["order"]
        if order["task"] == "train" and "arrays" in message.content:
            state = weights_in(message.content["arrays"])
            name = next(n for n in sorted(state) if "head" not in n)
            arrived.setdefault(int(order["round"]), float(state[name].double().mean()))
        return begin(message, context)

    fakes._begin = watching  # type: ignore[method-assign]


def test_faults_in_a_third_of_the_replies(federate: Make) -> None:
    faults, rounds = chaos(federate, seed=0, share=0.3)
    assert rounds == ROUNDS
    assert faults.total() >= 5


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_two_hundred_faults_in_a_hundred_rounds(federate: Make) -> None:
    faults: Counter[str] = Counter()
    rounds = 0
    for seed in range(1, 16):
        found, committed = chaos(federate, seed, share=0.35)
        faults += found
        rounds += committed
    print(f"{faults.total()} faults of {len(faults)} kinds in {rounds} rounds")
    assert rounds >= 100
    assert faults.total() >= 200
    assert len(faults) >= 25
