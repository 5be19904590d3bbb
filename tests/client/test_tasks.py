from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from client import local_epochs as fitting
from client import scoring
from client import tasks as work
from client.local_epochs import Task
from client.personal_weights import Personal, Stamp
from core.archives.preparing import count_codes
from core.data.site import Site
from core.errors import UserError
from core.metrics.scores import OrganSum
from core.models.stages import norm_parameters, stage_of
from core.plan.schema import Federation, Loss, Phase, Plan, Preprocess, Strategy, Weighting
from core.wire.checkpoint import load
from core.wire.messages import WITHHELD, Description
from core.wire.partition import frozen_in, network, parts_of, state_hash
from tests.client.conftest import filled, order, start, watched

MakePlan = Callable[..., Plan]
MakePhase = Callable[..., Phase]

# --------------------------------------------------------------------------------- description


def stored(site: Site, plan: Plan) -> Personal:
    phase = plan.phases[0]
    return Personal(site.phase_folder(phase.name), Stamp.of("run", plan, phase))


def described(site: Site, plan: Plan) -> Description:
    """What the site says of itself, once it is prepared."""
    _, findings = filled(site, plan)
    return work.describe(replace(site, left_out=count_codes(findings)), plan, "f")


def test_a_site_says_counts_of_its_training_cases_only(site: Site, make_plan: MakePlan) -> None:
    plan = make_plan(loss=Loss(class_weight="paper"))
    told = described(site, plan)
    assert (told.site, told.fingerprint) == ("north", "f")
    assert told.cases == (3, 1, 1)
    assert told.annotated == (3, 2)
    assert told.totals == (3 * 16.0**3, 2 * 16.0**3)
    assert all(0 < v < t for v, t in zip(told.voxels, told.totals, strict=True))
    entries = site.entries(plan)
    brainstem = sum(e.voxels["Brainstem"] for e in entries if e.split == "train")
    assert told.voxels[0] == brainstem
    assert "DOE" not in json.dumps(told.to_records())


OUTSIDE = Preprocess(spacing_mm=[0.05, 0.05, 0.05], crop=[8, 8, 8])  # 0.4 mm: metres, cm, a slip


@pytest.mark.parametrize("weight", ["paper", "none"])
def test_an_organ_outside_every_crop_is_as_one_that_nobody_draws(
    site: Site, make_plan: MakePlan, make_phase: MakePhase, weight: str
) -> None:
    plan = replace(make_plan(loss=Loss(class_weight=weight)), preprocess=OUTSIDE)
    told = described(site, plan)
    entries = [e for e in site.entries(plan) if e.split == "train"]
    seen = [any(e.voxels.get(o, 0) for e in entries) for o in plan.organ_names]
    assert not all(seen)
    assert [n > 0 for n in told.annotated] == seen
    rows = zip(told.voxels, told.totals, seen, strict=False)  # none are told without weights
    assert all(v == t == 0 for v, t, s in rows if not s)
    own = replace(plan, phases=[make_phase(share="none")])
    with pytest.raises(UserError) as caught:
        described(site, own)
    outside = [o for o, inside in zip(plan.organ_names, seen, strict=True) if not inside]
    assert (caught.value.field, caught.value.value) == ("entries", ", ".join(outside))
    assert "8 x 8 x 8 voxels, 0.4 x 0.4 x 0.4 mm" in caught.value.problem
    assert "millimetres" in caught.value.remedy


def test_frequencies_that_nobody_uses_do_not_leave(site: Site, make_plan: MakePlan) -> None:
    for loss in (Loss(class_weight="none"), Loss("one_vs_rest", class_weight="prediction")):
        told = described(site, make_plan(loss=loss))
        assert (told.voxels, told.totals) == ((), ())


def test_counts_of_organs_of_personal_phases_do_not_leave(
    site: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    own = make_phase("q", organs=["Parotid_L"], share="none")
    plan = make_plan(make_phase(organs=["Brainstem"]), own, loss=Loss(class_weight="paper"))
    told = described(site, plan)
    assert told.annotated == (3, 0)
    assert told.voxels[1] == told.totals[1] == 0


def test_a_site_of_personal_phases_only_tells_no_small_count(
    site: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(share="none"), federation=Federation(min_cell=3))
    told = described(site, plan)
    assert told.cases == (3, -1, -1)
    assert all(n == -1 or n >= 3 for n in told.left_out.values())


def test_an_organ_that_only_a_personal_phase_lacks_is_told_before_any_round(
    site: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(), make_phase("q", organs=["Larynx"], share="none"))
    with pytest.raises(UserError) as caught:
        described(site, plan)
    assert (caught.value.field, caught.value.value) == ("entries", "Larynx")


def test_an_organ_that_no_training_case_annotates_is_an_error_of_the_data(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(organs=["Brainstem", "Larynx"], share="none"))
    filled(prepared, plan)
    with pytest.raises(UserError) as caught:
        work.train_personal(Task(prepared, plan, plan.phases[0], order()), start(plan))
    assert (caught.value.field, caught.value.value) == ("entries", "Larynx")


# ------------------------------------------------------------------------------- shared rounds


def test_a_shared_round_scores_what_comes_in_and_then_trains(
    prepared: Site, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, steps = make_plan(), []
    train, score = fitting.train, scoring.score
    monkeypatch.setattr(fitting, "train", lambda *a, **k: steps.append("train") or train(*a, **k))
    monkeypatch.setattr(scoring, "score", lambda *a, **k: steps.append(a[-1]) or score(*a, **k))
    state, result = work.train_shared(Task(prepared, plan, plan.phases[0], order()), start(plan))
    assert steps == ["val", "train"]
    assert set(state) == set(start(plan))
    assert state_hash(state) != state_hash(start(plan))
    assert (result.cases, result.annotated, result.steps) == (3, (3, 2), 3)
    assert len(result.loss) == 5
    assert result.loss[0] > 0
    assert {o: s.n for o, s in result.scores["val"].items()} == {"Brainstem": 1, "Parotid_L": 1}


def test_rounds_repeat_and_differ_by_their_number(prepared: Site, make_plan: MakePlan) -> None:
    plan = make_plan()
    hashes = [
        state_hash(
            work.train_shared(Task(prepared, plan, plan.phases[0], order(r)), start(plan))[0]
        )
        for r in (1, 1, 2)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("freeze", ["encoder", "all-but-head"])
def test_what_is_frozen_stays_to_the_bit(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, freeze: str
) -> None:
    plan = make_plan(make_phase(freeze=freeze))
    phase = plan.phases[0]
    parts = parts_of(network(plan, phase), plan, phase)
    state, _ = work.train_shared(Task(prepared, plan, phase, order()), start(plan))
    for name, tensor in start(plan).items():
        if name in parts.frozen:
            assert torch.equal(state[name], tensor), name
    assert state_hash(state, parts.shared) != state_hash(start(plan), parts.shared)


@pytest.mark.parametrize("share", ["all", "none"])
def test_what_thaws_changes_from_its_round_on(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, share: str
) -> None:
    plan = make_plan(make_phase(freeze="encoder", thaw={"encoder": 2}, share=share))
    phase, before = plan.phases[0], start(plan)
    encoder = frozen_in(network(plan, phase), plan, phase, 1)
    changed = []
    for round_ in (1, 2):
        if share == "none":
            work.train_personal(
                Task(prepared, plan, phase, order(round_, base_round=round_ - 1)), before
            )
            after = before | stored(prepared, plan).load(round_).state
        else:
            after, _ = work.train_shared(Task(prepared, plan, phase, order(round_)), before)
        changed.append({n for n in encoder if not torch.equal(before[n], after[n])})
    assert changed[0] == set()
    assert any(n.endswith("weight") for n in changed[1])


@pytest.mark.parametrize("share", ["all", "none"])
def test_frozen_but_for_norms_changes_norms_of_the_encoder_and_the_rest(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, share: str
) -> None:
    plan = make_plan(make_phase(freeze="encoder", thaw={"norm": 1}, share=share))
    phase, before = plan.phases[0], start(plan)
    model = network(plan, phase)
    stage, norms = stage_of(model, plan.model), norm_parameters(model)
    if share == "none":
        work.train_personal(Task(prepared, plan, phase, order(base_round=0)), before)
        after = before | stored(prepared, plan).load(1).state
    else:
        after, _ = work.train_shared(Task(prepared, plan, phase, order()), before)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    encoder = {n for n in before if stage[n] == "encoder"}
    assert changed & encoder == norms & encoder != set()
    assert {n for n in before if stage[n] in ("decoder", "head")} <= changed


def test_fedprox_pulls_towards_what_came_in(prepared: Site, make_plan: MakePlan) -> None:
    def moved(strategy: Strategy) -> float:
        plan = make_plan(federation=Federation(strategy=strategy, min_cell=1))
        phase = replace(plan.phases[0], local_epochs=2)
        state, _ = work.train_shared(Task(prepared, plan, phase, order()), start(plan))
        return sum(float((state[k] - v).pow(2).sum()) for k, v in start(plan).items())

    free = moved(Strategy("fedavg"))
    assert moved(Strategy("fedprox", 1000.0)) < 0.9 * free
    assert moved(Strategy("fedprox", 0.0)) == pytest.approx(free, rel=1e-5)


# ----------------------------------------------------------------------------- personal rounds


def personal_plan(make_plan: MakePlan, make_phase: MakePhase, **changes: Any) -> Plan:
    return make_plan(make_phase(**({"freeze": "encoder", "share": "none"} | changes)))


def rounds(
    site: Site,
    plan: Plan,
    dice: Mapping[int, float],
    monkeypatch: pytest.MonkeyPatch,
    last: int,
    spread: float = 0.0,
) -> list[Any]:
    """Personal rounds 1..last, val Dice as given less `spread` an organ: (header, result) each."""
    now = {"round": 0}
    monkeypatch.setattr(scoring, "score", lambda *a, **k: [])
    monkeypatch.setattr(
        scoring,
        "organ_sums",
        lambda s, organs: {
            o: OrganSum(1, 1, dice[now["round"]] - i * spread, 0.0, 0.0)
            for i, o in enumerate(organs)
        },
    )
    done = []
    for round_ in range(1, last + 1):
        now["round"] = round_
        asked = order(round_, base_round=round_ - 1)
        done.append(work.train_personal(Task(site, plan, plan.phases[0], asked), start(plan)))
    return done


def test_personal_weights_stay_and_the_best_is_a_whole_model(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = personal_plan(make_plan, make_phase)
    done = rounds(prepared, plan, {1: 0.3, 2: 0.5, 3: 0.4}, monkeypatch, 3)
    assert [h.best_round for h, _ in done] == [1, 2, 2]
    assert [(r.cases, r.annotated) for _, r in done] == [(0, ())] * 3
    folder = prepared.phase_folder("p")
    state, meta = load(folder / "best.safetensors")
    assert set(state) == set(start(plan))
    assert (meta["round"], meta["site"], meta["organs"]) == (2, "north", plan.phases[0].organs)
    kept = stored(prepared, plan)
    assert kept.store.rounds() == [2, 3]
    parts = parts_of(network(plan, plan.phases[0]), plan, plan.phases[0])
    assert set(kept.load(3).state) == set(parts.personal)
    assert state_hash(kept.load(2).state) == state_hash(state, parts.personal)
    assert state_hash(kept.load(3).state) != state_hash(kept.load(2).state)
    for name in parts.frozen:
        assert torch.equal(state[name], start(plan)[name])


def test_round_1_again_does_not_take_away_what_a_site_has_trained(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the coordinator's machine could send it, and the finished model was gone."""
    plan = personal_plan(make_plan, make_phase)
    rounds(prepared, plan, {1: 0.3}, monkeypatch, 1)
    rounds(prepared, plan, {1: 0.3, 2: 0.5, 3: 0.4}, monkeypatch, 3)  # a lost reply: again from 1
    best = (prepared.phase_folder("p") / "best.safetensors").read_bytes()
    with pytest.raises(UserError, match="base_round"):
        rounds(prepared, plan, {1: 0.6}, monkeypatch, 1)
    assert stored(prepared, plan).store.rounds() == [2, 3]
    assert (prepared.phase_folder("p") / "best.safetensors").read_bytes() == best


def test_a_round_whose_reply_was_lost_stays_the_best(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that builds on the round before it wrote over the best and let it be pruned."""
    plan = personal_plan(make_plan, make_phase)
    rounds(prepared, plan, {1: 0.3, 2: 0.4, 3: 0.6}, monkeypatch, 3)
    best = (prepared.phase_folder("p") / "best.safetensors").read_bytes()
    worse = {o: OrganSum(1, 1, 0.5, 0.0, 0.0) for o in plan.phases[0].organs}
    monkeypatch.setattr(scoring, "organ_sums", lambda scores, organs: worse)
    for round_, base_round in ((4, 2), (5, 4), (6, 4)):
        asked = order(round_, base_round=base_round)
        header, _ = work.train_personal(Task(prepared, plan, plan.phases[0], asked), start(plan))
        assert header.best_round == 3
        assert (prepared.phase_folder("p") / "best.safetensors").read_bytes() == best
    assert stored(prepared, plan).store.rounds() == [3, 4, 5, 6]


@pytest.mark.parametrize("base_round", [0, 1, 2])
def test_nor_does_any_earlier_round(
    prepared: Site,
    make_plan: MakePlan,
    make_phase: MakePhase,
    monkeypatch: pytest.MonkeyPatch,
    base_round: int,
) -> None:
    """`round: 2, base_round: 0` left round 2 alone, and another best."""
    plan = personal_plan(make_plan, make_phase)
    rounds(prepared, plan, {1: 0.3, 2: 0.6, 3: 0.4, 4: 0.5}, monkeypatch, 4)
    best = (prepared.phase_folder("p") / "best.safetensors").read_bytes()
    for round_ in (2, 3):
        task = Task(prepared, plan, plan.phases[0], order(round_, base_round=base_round))
        with pytest.raises(UserError, match="has come further here"):
            work.train_personal(task, start(plan))
    assert stored(prepared, plan).store.rounds() == [2, 3, 4]
    assert (prepared.phase_folder("p") / "best.safetensors").read_bytes() == best
    again = order(4, base_round=3)  # a reply was lost, or the run was resumed
    work.train_personal(Task(prepared, plan, plan.phases[0], again), start(plan))
    assert stored(prepared, plan).store.rounds() == [2, 3, 4]


def test_nor_of_what_stays_beside_a_shared_phase(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(ditto=0.5, rounds=9))
    phase = plan.phases[0]
    for round_ in (1, 2, 3):
        asked = order(round_, base_round=round_ - 1)
        work.train_shared(Task(prepared, plan, phase, asked), start(plan))
    with pytest.raises(UserError, match="has come further here"):
        work.train_shared(Task(prepared, plan, phase, order(2)), start(plan))
    assert stored(prepared, plan).store.rounds() == [2, 3]


def test_a_round_trains_with_the_term_weights_of_the_plan(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = watched(monkeypatch, fitting, "train", lambda *a: a[-1].weights.terms)
    plan = personal_plan(make_plan, make_phase)
    plan = replace(plan, weighting=Weighting(terms="shift", shift_end=1.0))
    rounds(prepared, plan, {1: 0.3, 2: 0.2}, monkeypatch, 2)
    share = 1 / plan.phases[0].rounds
    assert given == [{"ce": 1.0, "focal": 0.0}, {"ce": 1 - share, "focal": share}]


def test_organ_weights_follow_the_server_in_shared_rounds_and_the_site_in_personal_ones(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = watched(monkeypatch, fitting, "train", lambda *a: a[-1].weights.organs)
    plan = make_plan()
    organs = plan.phases[0].organs
    plan = replace(plan, weighting=Weighting(by="dice", organs={organs[0]: 2.0}))
    phase = plan.phases[0]
    factors = [float(i + 1) for i in range(len(organs))]
    work.train_shared(Task(prepared, plan, phase, order(organ_factors=factors)), start(plan))
    assert given == [[2.0, *factors[1:]]]

    given.clear()
    plan = personal_plan(make_plan, make_phase)
    plan = replace(plan, weighting=Weighting(by="dice", smoothing=0.0))
    rounds(prepared, plan, {1: 0.7, 2: 0.2}, monkeypatch, 2, spread=0.2)
    kept = stored(prepared, plan).load(1).organ_factors
    assert kept == pytest.approx([0.3 / 0.4, 0.5 / 0.4])
    assert given == [[1.0, 1.0], kept]


def test_a_personal_phase_goes_on_with_its_optimiser(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = personal_plan(make_plan, make_phase)
    given = watched(monkeypatch, fitting, "train", lambda *a: a[-1].optimiser_state)
    rounds(prepared, plan, {1: 0.3, 2: 0.2}, monkeypatch, 2)
    assert given[0] is None
    saved = stored(prepared, plan).load(1).optimiser
    assert given[1].keys() == saved.keys()
    assert given[1]


def test_a_site_stops_itself_after_patience(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = personal_plan(make_plan, make_phase, patience=4, local_epochs=2)
    done = rounds(prepared, plan, {1: 0.5, 2: 0.4, 3: 0.5}, monkeypatch, 3)
    assert [h.stopped for h, _ in done] == [False, False, True]
    assert done[-1][0].best_round == 1


def test_without_val_cases_the_latest_personal_weights_are_the_best(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = personal_plan(make_plan, make_phase, patience=1)
    monkeypatch.setattr(work, "mean_dice", lambda *a: -1.0)
    done = rounds(prepared, plan, {1: 0.5, 2: 0.4}, monkeypatch, 2)
    assert [(h.best_round, h.stopped) for h, _ in done] == [(1, False), (2, False)]


def test_small_cells_are_emptied_before_they_leave(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = personal_plan(make_plan, make_phase)
    plan = replace(plan, federation=Federation(min_cell=2))
    _, result = work.train_personal(Task(prepared, plan, plan.phases[0], order()), start(plan))
    assert result.scores["val"] == {"Brainstem": WITHHELD, "Parotid_L": WITHHELD}
    asked = order(1, "test", best_round=1)
    result = work.evaluate(Task(prepared, plan, plan.phases[0], asked), start(plan))
    assert set(result.scores) == {"val", "test"}
    assert all(s == WITHHELD for m in result.scores.values() for s in m.values())


def test_a_personal_loss_over_few_cases_stays_at_the_site(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    for cell, told in ((3, True), (4, False)):  # three training cases
        plan = replace(personal_plan(make_plan, make_phase), federation=Federation(min_cell=cell))
        _, result = work.train_personal(Task(prepared, plan, plan.phases[0], order()), start(plan))
        assert bool(result.loss) == told
        assert (result.cases, result.annotated, result.steps) == (0, (), 0)


# ----------------------------------------------------------- what stays in a phase that is shared


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {n for n in before if not torch.equal(before[n], after[n].cpu())}


def test_kept_norms_stay_and_join_the_next_round(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(keep=["norm"]))
    phase, first = plan.phases[0], start(plan)
    parts = parts_of(network(plan, phase), plan, phase)
    assert parts.personal
    trained, _ = work.train_shared(Task(prepared, plan, phase, order()), first)
    own = stored(prepared, plan).load(1).state
    assert set(own) == set(parts.personal)
    assert moved(first, own | {n: first[n] for n in parts.shared}) <= set(parts.personal)
    shared = {n: trained[n].detach().clone() for n in parts.shared}
    told = order(2, "validate", base_round=1)
    with_own = work.evaluate(Task(prepared, plan, phase, told), first | shared)
    whole = work.loaded(plan, phase, first | shared | own)
    expected = scoring.score(Task(prepared, plan, phase, told), whole, "val")
    assert with_own.scores["val"]["Brainstem"].dice == pytest.approx(
        sum(s.dice for s in expected if s.organ == "Brainstem")
    )


def test_the_best_round_of_a_phase_with_kept_parts_is_a_whole_model_at_the_site(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = make_plan(make_phase(keep=["head"]))
    phase, first = plan.phases[0], start(plan)
    work.train_shared(Task(prepared, plan, phase, order()), first)
    work.train_shared(Task(prepared, plan, phase, order(2, base_round=1)), first)
    work.evaluate(Task(prepared, plan, phase, order(2, "test", base_round=2, best_round=1)), first)
    state, meta = load(prepared.phase_folder("p") / "best.safetensors")
    own = stored(prepared, plan).load(1).state
    assert meta["round"] == 1
    assert set(state) == set(first)
    assert not moved(own, {n: state[n] for n in own})


def test_what_a_phase_keeps_trains_first_and_alone(
    prepared: Site,
    make_plan: MakePlan,
    make_phase: MakePhase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(make_phase(keep=["head"], local_epochs=3, keep_epochs=1))
    phase = plan.phases[0]
    parts = parts_of(network(plan, phase), plan, phase)
    seen: list[tuple[set[str], int, int]] = []
    real = fitting.train

    def watch(model: Any, *args: Any, **options: Any) -> Any:
        free = {n for n, p in model.named_parameters() if p.requires_grad}
        seen.append((free, args[-1].first, args[-1].count))
        return real(model, *args, **options)

    monkeypatch.setattr(fitting, "train", watch)
    _, result = work.train_shared(Task(prepared, plan, phase, order()), start(plan))
    assert seen == [(set(parts.personal), 0, 1), (set(parts.shared), 1, 2)]
    assert result.steps == 3 * 3


def test_ditto_trains_a_network_beside_the_shared_one(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    far: dict[float, float] = {}
    for pull in (0.0, 50.0):
        plan = make_plan(make_phase(ditto=pull))
        phase, first = plan.phases[0], start(plan)
        plain, _ = work.train_shared(Task(prepared, make_plan(), make_phase(), order()), first)
        trained, _ = work.train_shared(Task(prepared, plan, phase, order()), first)
        assert not moved(plain, trained)  # what is shared knows nothing of it
        own = stored(prepared, plan).load(1).state
        far[pull] = float(sum(((own[n] - first[n]) ** 2).sum() for n in own))
    assert 0 < far[50.0] < 0.5 * far[0.0]
    told = order(1, "test", base_round=1, best_round=1)
    result = work.evaluate(Task(prepared, plan, phase, told), first)
    state, _ = load(prepared.phase_folder("p") / "best.safetensors")
    assert not moved(own, state)
    assert result.scores["test"]["Brainstem"].n == 1


def test_fedprox_does_not_pull_what_stays(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = watched(monkeypatch, fitting, "train", lambda *a: a[-1].proximal)
    federation = Federation(min_cell=1, strategy=Strategy(name="fedprox"))
    plan = make_plan(make_phase(keep=["norm"]), federation=federation)
    work.train_shared(Task(prepared, plan, plan.phases[0], order()), start(plan))
    parts = parts_of(network(plan, plan.phases[0]), plan, plan.phases[0])
    assert set(given[0][1]) == set(parts.shared)


def test_rows_of_organs_that_no_case_annotates_go_back_as_they_came() -> None:
    before = {"head": torch.zeros(3, 2), "body": torch.zeros(2)}
    trained = {"head": torch.ones(3, 2), "body": torch.ones(2)}
    made = work.returned(trained, before, [0, 4], ["head"])
    assert made["head"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert torch.equal(made["body"], trained["body"])


def test_an_update_leaves_no_longer_than_the_plan_says() -> None:
    incoming = {"w": torch.zeros(4)}
    made = work.clipped({"w": torch.full((4,), 3.0), "own": torch.ones(1)}, incoming, 1.5)
    assert float(made["w"].norm()) == pytest.approx(1.5)
    assert float(made["own"]) == 1.0
    short = {"w": torch.full((4,), 0.1)}
    assert work.clipped(short, incoming, 1.5) is short


@pytest.mark.parametrize("name", ["median", "dp"])
def test_a_site_trains_for_another_strategy(
    site: Site, make_plan: MakePlan, make_phase: MakePhase, name: str
) -> None:
    plan = replace(
        make_plan(make_phase()),
        federation=Federation(strategy=Strategy(name=name, clip_norm=0.01)),
    )
    state = start(plan)
    filled(site, plan)
    trained, _ = work.train_shared(Task(site, plan, plan.phases[0], order()), state)
    moved = torch.cat([(trained[n].cpu() - state[n]).flatten() for n in state])
    assert float(moved.norm()) > 0
    assert (float(moved.norm()) <= 0.0101) == (name == "dp")


def test_an_averaging_phase_scores_and_keeps_the_mean_and_trains_on_without_it(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = personal_plan(make_plan, make_phase)
    rounds(prepared, plain, {1: 0.3, 2: 0.5}, monkeypatch, 2)
    last = stored(prepared, plain).load(2)
    assert last.scored == last.state
    stored(prepared, plain).store.clear()
    averaging = personal_plan(make_plan, make_phase, average_last=0.5)
    rounds(prepared, averaging, {1: 0.3, 2: 0.5}, monkeypatch, 2)
    kept = stored(prepared, averaging).load(2)
    assert state_hash(kept.state) == state_hash(last.state)
    assert kept.steps == 2 * averaging.phases[0].local_epochs * 3  # training cases
    assert set(kept.average) == set(kept.state)
    exported, _ = load(prepared.phase_folder("p") / "best.safetensors")
    assert all(torch.equal(exported[n], t) for n, t in kept.average.items())
    assert any(not torch.equal(t, kept.state[n]) for n, t in kept.average.items())


def test_rounds_that_are_not_scored_leave_the_last_as_the_best(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = personal_plan(make_plan, make_phase, rounds=3, validate_every=2, patience=9)

    def sums(scores: object, organs: list[str]) -> dict[str, OrganSum]:
        return {o: OrganSum(0, 0, 0.0, 0.0, 0.0) for o in organs}

    monkeypatch.setattr(work, "organ_sums", sums)
    done = rounds(prepared, plan, {1: 0.9, 2: 0.5, 3: 0.6}, monkeypatch, 3)
    assert [h.best_round for h, _ in done] == [1, 2, 3]
    assert [s.n for _, r in done for s in r.scores["val"].values()][::2] == [0, 1, 1]


def test_dice_by_round_stays_in_a_file_of_the_site(
    prepared: Site, make_plan: MakePlan, make_phase: MakePhase
) -> None:
    plan = personal_plan(make_plan, make_phase, rounds=3, test_rounds=[1, 3])
    path = prepared.phase_folder("p") / scoring.ROUND_CASES

    def train(round_: int) -> Any:
        asked = order(round_, base_round=round_ - 1)
        return work.train_personal(Task(prepared, plan, plan.phases[0], asked), start(plan))

    results = [train(r)[1] for r in (1, 2, 3)]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["round"] for r in rows] == ["1", "1", "3", "3"]  # two organs of one test case
    assert {r["case"] for r in rows} == {"DOE_Jane_1950_4"}
    assert all(0 <= float(r["dice"]) <= 1 for r in rows)
    assert all(set(r.scores) == {"val"} for r in results)  # nothing of it is sent
    train(3)  # again, as after a lost reply
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
