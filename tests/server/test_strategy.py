"""Aggregation by Flower's other strategies: what a wrong site can do, and what travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from torch import Tensor

from core.errors import UserError
from core.models.stages import head_rows
from core.plan import schema
from core.plan.schema import Guards, Phase, Strategy
from core.plan.validate import check
from core.wire.checkpoint import load, save
from core.wire.messages import Header, Result
from core.wire.partition import network, start_state
from core.wire.state import packed, unpacked
from server.aggregate import average
from server.dispatch import RunFailed, deadline
from server.guards import Accepted
from server.strategy import (
    COMMON,
    STRATEGIES,
    Moments,
    Row,
    build_strategy,
    joined,
    moments_of,
    separated,
    trimmed,
)
from tests.server.conftest import ORGANS, Federated

SITES = ["a", "b", "c", "d", "e"]
Make = Callable[..., Federated]
MOMENTS = [name for name, row in STRATEGIES.items() if row.moments]


def moved(federate: Make, make_plan: Callable[..., Any], **strategy: Any) -> float:
    """How far one round moves a weight where one of five sites sends nonsense."""
    plan = make_plan(
        Phase(name="p", sites=SITES, organs=ORGANS, rounds=1),
        strategy=Strategy(**strategy),
        guards=Guards(norm="off"),
    )
    add = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0, "e": 9.0}  # within the bound of one update
    name = f"{strategy['name']}"
    run = federate(plan, folder=name, add=add, cases=dict.fromkeys(SITES, 2))
    run.run()
    start = start_state(plan, plan.phases[0], None)
    last = run.weights("last")
    change = torch.cat([(last[n] - start[n]).flatten() for n in start])
    return float(change.abs().max())


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum"])
def test_one_wrong_site_of_five_does_not_decide(
    federate: Make, make_plan: Callable[..., Any], name: str
) -> None:
    assert moved(federate, make_plan, name=name) < 2.0


def test_the_mean_is_decided_by_it(federate: Make, make_plan: Callable[..., Any]) -> None:
    assert moved(federate, make_plan, name="fedavg") > 2.0


def test_noise_is_that_of_the_clipped_sum_over_the_replies(
    federate: Make, make_plan: Callable[..., Any]
) -> None:
    phase = Phase(name="p", sites=SITES, organs=ORGANS, rounds=1)
    kept = {}
    for multiplier in (0.0, 2.0):
        settings = Strategy(name="dp", clip_norm=1.0, noise_multiplier=multiplier)
        plan = make_plan(phase, strategy=settings)
        run = federate(
            plan,
            folder=f"dp{multiplier}",
            add=dict.fromkeys(SITES, 1e-3),
            cases=dict.fromkeys(SITES, 2),
        )
        run.run()
        kept[multiplier] = run.weights("last")
        assert "strategy dp: all sites weigh equally" in run.notes()
    noise = torch.cat([(kept[2.0][n] - kept[0.0][n]).flatten() for n in kept[0.0]])
    assert float(noise.std()) == pytest.approx(2.0 * 1.0 / len(SITES), rel=0.1)


def test_flowers_own_classes_do_it() -> None:
    before = {"w": torch.zeros(2)}
    kinds = {type(build_strategy(Strategy(name=n), 5, before)).__name__ for n in STRATEGIES}
    assert len(kinds) == len(STRATEGIES)


def test_a_plan_may_name_what_the_table_has() -> None:
    assert list(STRATEGIES) == list(schema.STRATEGIES)


@pytest.mark.parametrize(
    "change",
    [{"name": "mean"}, {"trim": 0.5}, {"malicious": -1}, {"clip_norm": 0.0},
     {"noise_multiplier": -1.0}, {"eta": 0.0}, {"beta_1": 1.0}, {"beta_2": -0.1}, {"tau": 0.0},
     {"server_learning_rate": 0.0}, {"server_momentum": 1.0}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_work(make_plan: Callable[..., Any], change: dict[str, Any]) -> None:
    (key,) = change
    with pytest.raises(UserError, match=f"federation.strategy.{key}"):
        check(make_plan(strategy=replace(Strategy(), **change)))


def test_a_deadline_is_learned_from_the_fourth_round_on(make_plan: Callable[..., Any]) -> None:
    federation = make_plan(round_timeout_s=1000.0, round_timeout_factor=3.0).federation
    assert deadline(federation, [10.0, 20.0]) == 1000.0
    assert deadline(federation, [10.0, 20.0, 90.0]) == 3 * 20.0 + 30.0
    assert deadline(federation, [500.0] * 3) == 1000.0
    off = make_plan(round_timeout_s=1000.0).federation
    assert deadline(off, [1.0] * 9) == 1000.0


def test_only_training_has_a_learned_deadline(
    federate: Make, make_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.dispatch

    asked: list[tuple[str, float]] = []
    real = server.dispatch.exchange

    def noting(*arguments: Any, **options: Any) -> Any:
        call = arguments[3]
        asked.append((call.kind, call.timeout_s))
        return real(*arguments, **options)

    monkeypatch.setattr(server.dispatch, "exchange", noting)
    phase = Phase(name="p", sites=SITES, organs=ORGANS, rounds=5)
    plan = make_plan(phase, round_timeout_s=1000.0, round_timeout_factor=2.0)
    federate(plan, add=dict.fromkeys(SITES, 0.1), cases=dict.fromkeys(SITES, 2)).run()
    trained = [timeout for kind, timeout in asked if kind == "train"]
    assert trained[:3] == [1000.0] * 3
    assert max(trained[3:]) < 100.0
    assert {timeout for kind, timeout in asked if kind == "evaluate"} == {1000.0}


@pytest.mark.parametrize(
    ("trim", "replies", "cut"),
    [(0.2, 5, 1), (0.2, 4, 1), (0.2, 3, 1), (0.2, 2, 0), (0.2, 6, 2), (0.4, 5, 2), (0.0, 5, 0)],
)
def test_the_trimmed_mean_trims_whenever_it_can(trim: float, replies: int, cut: int) -> None:
    settings = Strategy(name="trimmed-mean", trim=trim)
    assert trimmed(settings, replies) == cut
    assert int(build_strategy(settings, replies).beta * replies) == cut  # type: ignore[union-attr]


# ------------------------------------------------------------------- what goes on between rounds


class OneNode:
    """Flower's Grid, as far as its own loop asks it."""

    def get_node_ids(self) -> list[int]:
        return [1]


def updates(state: dict[str, Tensor], seed: int) -> dict[str, Accepted]:
    """Three sites' weights after a round, the tensors in another order at each."""
    draw = torch.Generator().manual_seed(seed)
    good = {}
    for nth, site in enumerate("abc"):
        names = list(state) if nth % 2 else list(reversed(state))
        made = {n: state[n] + 0.01 * torch.randn(state[n].shape, generator=draw) for n in names}
        message = Message(RecordDict(), dst_node_id=1, message_type="train")
        good[site] = Accepted(Header(site, "r", "p", 1), Result(cases=2), made, message)
    return good


def reply(one: Accepted) -> Message:
    """As Flower's own object needs it: momentum by place takes one order for all rounds."""
    arrays = ArrayRecord({n: one.state[n] for n in sorted(one.state)})
    content = {"arrays": arrays, "metrics": MetricRecord({"weight": 1.0})}
    return Message(RecordDict(content), dst_node_id=1, message_type="train")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "flowers"),
    [
        (Strategy(name="fedadam"), FedAdam(eta=0.01, **COMMON)),
        (
            Strategy(name="fedadam", eta=0.3, beta_1=0.5, beta_2=0.7, tau=0.1),
            FedAdam(eta=0.3, beta_1=0.5, beta_2=0.7, tau=0.1, **COMMON),
        ),
        (Strategy(name="fedavgm"), FedAvgM(server_momentum=0.9, **COMMON)),
        (
            Strategy(name="fedavgm", server_learning_rate=0.5, server_momentum=0.3),
            FedAvgM(server_learning_rate=0.5, server_momentum=0.3, **COMMON),
        ),
        (
            Strategy(name="fedavgm", server_learning_rate=0.5, server_momentum=0.0),
            FedAvgM(server_learning_rate=0.5, **COMMON),
        ),
    ],
    ids=["fedadam", "fedadam-2", "fedavgm", "fedavgm-2", "fedavgm-without-momentum"],
)
def test_rounds_that_are_committed_between_equal_flowers_own_object(
    task_identity: None, settings: Strategy, flowers: FedAdam | FedAvgM
) -> None:
    """The oracle is one object of Flower's that lives through three rounds, by its own calls."""
    state = {
        "z": torch.linspace(-1, 1, 6).reshape(2, 3),
        "a.b": torch.ones(4),
        "one": torch.ones(1),
    }
    expected, moments = dict(state), {}
    first = dict(state)
    for round_ in (1, 2, 3):
        good = updates(state, round_)
        flowers.configure_train(
            round_,
            ArrayRecord({n: expected[n] for n in sorted(expected)}),
            ConfigRecord(),
            OneNode(),  # type: ignore[arg-type]
        )
        averaged, _ = flowers.aggregate_train(round_, [reply(good[s]) for s in "abc"])
        assert averaged is not None
        expected = {n: t.float() for n, t in averaged.to_torch_state_dict().items()}
        state, carried = average(settings, round_, state, moments, good, equal=True)
        assert all(torch.equal(state[n], expected[n]) for n in expected), round_
        state, moments = separated(unpacked(packed(joined(state, carried))))
        assert set(state) == set(expected)
    assert all(float((state[n] - first[n]).abs().min()) > 0 for n in first)


@pytest.mark.parametrize("name", MOMENTS)
def test_what_no_site_moves_stays_whatever_the_momentum(task_identity: None, name: str) -> None:
    state = {"head": torch.tensor([[0.1, 0.7], [0.3, 1 / 3]]), "frozen": torch.full((5,), 0.1)}
    settings, moments = Strategy(name=name, tau=1e-9), {}
    for round_ in (1, 2, 3):
        good = updates(state, round_)
        for one in good.values():
            one.state["frozen"] = state["frozen"]
            if round_ == 3:
                one.state["head"][1] = state["head"][1]
        new, moments = average(settings, round_, state, moments, good, equal=True)
        assert torch.equal(new["frozen"], state["frozen"])
        assert torch.equal(new["head"][1], state["head"][1]) == (round_ == 3)
        assert not torch.equal(new["head"][0], state["head"][0])
        state = new


@pytest.mark.parametrize("name", MOMENTS)
def test_rows_have_no_weights_of_their_own_which_is_said_once(
    federate: Make, make_plan: Callable[..., Any], name: str
) -> None:
    plan = make_plan(Phase(name="p", sites=["a", "b"], organs=ORGANS, rounds=2))
    plan = replace(plan, federation=replace(plan.federation, strategy=Strategy(name=name)))
    run = federate(plan, cases={"a": 9, "b": 1}, annotated={"a": [9, 0], "b": [1, 1]})
    run.run()
    assert run.notes().count(f"strategy {name}: all sites weigh equally, head rows too") == 1
    start, last = start_state(plan, plan.phases[0], None), run.weights("last")
    for head in head_rows(network(plan, plan.phases[0])):
        change = (last[head] - start[head]).reshape(3, -1)
        assert torch.allclose(change[1], change[2], atol=1e-4)


def interrupted(
    federate: Make, name: str, bits: int = 32, **settings: Any
) -> tuple[Federated, Federated]:
    """A run of four rounds, and the same one that was ended in its third; (0.1 and 0.4 a round)."""
    plan = planned(name, bits, **settings)
    whole = federate(plan, folder="whole", add={"a": 0.1, "b": 0.4})
    whole.run()
    run = federate(plan, folder="run", add={"a": 0.1, "b": 0.4})

    def fails(message: Message, reply: Message) -> Message:
        del reply.content["header"]
        return reply

    run.fakes.acts = {(s, "train", 3): [fails] for s in "ab"}
    with pytest.raises(RunFailed):
        run.run()
    assert [e["round"] for e in run.events("round")] == [1, 2]
    return whole, run


def planned(name: str, bits: int = 32, **settings: Any) -> Any:
    from tests.server.conftest import tiny_plan

    phase = Phase(name="p", sites=["a", "b"], organs=ORGANS, rounds=4)
    strategy = Strategy(name=name, **settings)
    return tiny_plan(phase, strategy=strategy, update_bits=bits, round_retries=0)


def same(one: Federated, other: Federated) -> bool:
    return all(
        torch.equal(tensor, other.weights(stem)[name])
        for stem in ("best", "last")
        for name, tensor in one.weights(stem).items()
    )


@pytest.mark.parametrize(
    ("name", "bits"), [*((name, 32) for name in MOMENTS), ("fedavg", 8), ("fedavgm", 8)]
)
def test_a_resumed_run_has_the_weights_of_an_undisturbed_one(
    federate: Make, name: str, bits: int
) -> None:
    whole, run = interrupted(federate, name, bits)
    exported = load(run.out / "checkpoints" / "p" / "last.safetensors")[0]
    assert not [n for n in exported if "::" in n]
    run.run(resume=True)
    assert same(whole, run)


def test_a_damaged_round_is_not_used_and_the_one_before_brings_its_own_moments(
    federate: Make,
) -> None:
    whole, run = interrupted(federate, "fedadam")
    path = run.out / "state" / "p" / "round-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    run.run(resume=True)
    assert "round 2 is damaged on disk" in run.notes()
    assert same(whole, run)


def without(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    for name in [n for n in tensors if n.endswith("::v_t")]:
        del tensors[name]


def without_a_note(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    del meta["moments"]


def without_all(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    for name in [n for n in tensors if "::" in n]:
        del tensors[name]


def of_another(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    for name in [n for n in tensors if n.endswith("::v_t")]:
        tensors[name.replace("v_t", "momentum_vector")] = tensors.pop(name)
    meta["moments"] = ["m_t", "momentum_vector"]


def of_another_shape(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    name = next(n for n in tensors if n.endswith("::m_t"))
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def test_what_rounding_to_8_bits_took_is_missed_where_it_is_missing(federate: Make) -> None:
    _, run = interrupted(federate, "fedavg", 8)
    folder: Path = run.out / "state" / "p"
    tensors, meta = load(folder / "round-00002.safetensors")
    without_all(tensors, meta)
    save(folder, "round-00002", tensors, meta)
    with pytest.raises(UserError, match="not those that were committed"):
        run.run(resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, "not those that were committed"),
        (without_a_note, "not those that were committed"),
        (without_all, "not those that were committed"),
        (of_another, "another strategy's"),
        (of_another_shape, "(m_t) are not of the tensors that travel"),
    ],
)
def test_moments_that_are_missing_or_wrong_are_no_fresh_start(
    federate: Make, change: Callable[[Any, Any], None], words: str
) -> None:
    _, run = interrupted(federate, "fedadam")
    folder: Path = run.out / "state" / "p"
    tensors, meta = load(folder / "round-00002.safetensors")
    change(tensors, meta)
    save(folder, "round-00002", tensors, meta)
    with pytest.raises(UserError) as caught:
        run.run(resume=True)
    assert (caught.value.field, caught.value.value) == ("--resume", "p, round 2")
    assert words in caught.value.problem
    assert "the moments of fedadam" in caught.value.problem
    assert caught.value.remedy.startswith("restore the run's folder state/ from a copy")


def test_an_average_that_is_unusable_leaves_the_moments_too(
    federate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import rounds

    real, seen = rounds.aggregate, []

    def aggregate(about: Any, state: Any, moments: Moments, good: Any, round_: int) -> Any:
        seen.append(moments)
        made = real(about, state, moments, good, round_)
        if round_ == 2:
            made = replace(made, state={n: t * float("nan") for n, t in made.state.items()})
        return made

    monkeypatch.setattr(rounds, "aggregate", aggregate)
    federate(planned("fedavgm")).run()
    first, second, third, fourth = seen
    assert first == {}
    assert second is third
    assert fourth is not third


def test_an_average_that_is_unusable_leaves_what_rounding_took(
    federate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import rounds

    real = rounds.aggregate

    def aggregate(about: Any, state: Any, moments: Moments, good: Any, round_: int) -> Any:
        made = real(about, state, moments, good, round_)
        spoilt = {n: t * float("nan") for n, t in made.state.items()}
        return replace(made, state=spoilt) if round_ == 2 else made

    monkeypatch.setattr(rounds, "aggregate", aggregate)
    run = federate(planned("fedavg", 8))
    run.run()
    assert all(t.isfinite().all() for t in run.weights("last").values())
    assert run.notes().count("is unusable") == 1


def test_a_strategy_with_moments_is_one_row_and_a_name(
    federate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe for one more: nothing else knows of it."""
    monkeypatch.setitem(schema.STRATEGIES, "fedyogi", False)

    def build(settings: Strategy, _: int) -> Any:
        return FedYogi(eta=settings.eta, tau=settings.tau, **COMMON)

    monkeypatch.setitem(STRATEGIES, "fedyogi", Row(build, moments=("m_t", "v_t")))
    whole, run = interrupted(federate, "fedyogi")
    run.run(resume=True)
    assert same(whole, run)


def test_moments_come_back_by_name(task_identity: None) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    settings = Strategy(name="fedavgm")
    moments = {"momentum_vector": {"b": torch.full((3,), 2.0), "a": torch.full((2,), 1.0)}}
    found = moments_of(build_strategy(settings, 2, state, moments), settings, state)
    assert list(found["momentum_vector"]) == ["a", "b"]
    assert all(
        torch.equal(found["momentum_vector"][n], t) for n, t in moments["momentum_vector"].items()
    )
