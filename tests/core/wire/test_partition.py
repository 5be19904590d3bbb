from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from core.errors import UserError
from core.models.stages import head_rows, norm_parameters, stage_of, unique_state
from core.plan.schema import Model, Phase, Plan, Preprocess
from core.wire import partition as phases
from core.wire.partition import (
    apply_freeze,
    fingerprint,
    frozen_in,
    load_state,
    network,
    parts_of,
    require_same_input,
    seed_of,
    size_bytes,
    start_state,
    state_hash,
    still_at,
    thaw_rounds,
    trainable_by_round,
    weights_meta,
)

ORGANS = ["Brainstem", "Parotid_L", "Parotid_R"]


def phase(**changes: Any) -> Phase:
    return Phase(**({"name": "p", "sites": ["a"], "organs": ORGANS} | changes))


def plan(*phases: Phase) -> Plan:
    return Plan(
        preprocess=Preprocess(crop=[16, 16, 16]),
        model=Model(channels=[4, 8]),
        phases=list(phases) or [phase()],
    )


PLAN = plan()


def parts(**changes: Any) -> tuple[phases.Parts, dict[str, str], set[str]]:
    chosen = phase(**changes)
    model = network(PLAN, chosen)
    return parts_of(model, PLAN, chosen), stage_of(model, PLAN.model), set(unique_state(model))


# ----------------------------------------------------------------------------- freeze and share


@pytest.mark.parametrize(
    ("freeze", "stages"),
    [
        ("none", set()),
        ("encoder", {"encoder"}),
        ("decoder", {"decoder"}),
        ("all-but-head", {"encoder", "decoder"}),
        (["encoder", "head"], {"encoder", "head"}),
        ([], set()),
    ],
)
@pytest.mark.parametrize("share", ["all", "trainable", "none"])
def test_every_parameter_has_exactly_one_part(freeze: Any, stages: set[str], share: str) -> None:
    found, stage, names = parts(freeze=freeze, share=share)
    assert set(found.frozen) == {n for n in names if stage[n] in stages}
    trained = names - set(found.frozen)
    assert trained
    if share == "none":
        assert set(found.base) == names
        assert found.shared == ()
        assert set(found.personal) == trained
    else:
        assert found.base == found.frozen
        assert set(found.shared) == trained
        assert found.personal == ()
    for group in (found.base, found.shared, found.personal, found.frozen):
        assert list(group) == sorted(set(group))


@pytest.mark.parametrize("freeze", [["encoder", "decoder", "head"]])
def test_something_must_be_left_to_train(freeze: Any) -> None:
    with pytest.raises(UserError, match="at least one stage"):
        parts(freeze=freeze)


@pytest.mark.parametrize("share", ["all", "none"])
def test_what_thaws_trains_from_its_round_on_and_is_no_base(share: str) -> None:
    thaw = {"decoder": 2, "encoder": 4}
    chosen = phase(freeze="all-but-head", thaw=thaw, rounds=4, share=share)
    model = network(PLAN, chosen)
    stage = stage_of(model, PLAN.model)
    course = [{stage[n] for n in frozen_in(model, PLAN, chosen, r)} for r in (1, 2, 3, 4)]
    assert course == [{"encoder", "decoder"}, {"encoder"}, {"encoder"}, set()]
    found = parts_of(model, PLAN, chosen)
    assert found.frozen == ()
    assert set(found.personal if share == "none" else found.shared) == set(stage)


def test_a_module_may_be_frozen_or_thawed_by_its_name() -> None:
    chosen = phase(freeze="encoder")
    model = network(PLAN, chosen)
    inside = sorted(frozen_in(model, PLAN, chosen, 1))
    module = ".".join(inside[0].split(".")[:2])
    part = {n for n in inside if n.startswith(module + ".")}
    assert set(frozen_in(model, PLAN, phase(freeze=[module]), 1)) == part
    some = phase(freeze="encoder", thaw={module: 2}, rounds=2)
    assert set(frozen_in(model, PLAN, some, 2)) == set(inside) - part
    assert part < set(inside)


@pytest.mark.parametrize("share", ["all", "trainable", "none"])
def test_frozen_but_for_norms_trains_and_sends_norms_of_the_encoder_alone(share: str) -> None:
    found, stage, names = parts(freeze="encoder", thaw={"norm": 1}, share=share)
    norms = norm_parameters(network(PLAN, phase()))
    encoder = {n for n in names if stage[n] == "encoder"}
    assert norms & encoder
    assert encoder - norms
    assert norms - encoder  # those of the decoder are never frozen, and are not asked about
    assert set(found.frozen) == encoder - norms
    trained = (names - encoder) | (norms & encoder)
    assert set(found.personal if share == "none" else found.shared) == trained
    later = phase(freeze="encoder", thaw={"norm": 3}, rounds=3)
    model = network(PLAN, later)
    assert [set(frozen_in(model, PLAN, later, r)) for r in (2, 3)] == [encoder, encoder - norms]
    numbers = trainable_by_round(model, PLAN, phase(freeze="encoder", thaw={"norm": 1}))
    state = unique_state(model)
    assert numbers == {1: sum(state[n].numel() for n in trained)}


def test_norms_thaw_only_where_some_are_frozen() -> None:
    chosen = phase(freeze=["head"], thaw={"norm": 1})
    with pytest.raises(UserError, match="thaw what is frozen"):
        frozen_in(network(PLAN, chosen), PLAN, chosen, 1)


@pytest.mark.parametrize(("freeze", "part"), [("encoder", "decoder"), ("encoder", "neck")])
def test_only_what_is_frozen_can_thaw(freeze: str, part: str) -> None:
    chosen = phase(freeze=freeze, thaw={part: 2}, rounds=2)
    with pytest.raises(UserError) as caught:
        frozen_in(network(PLAN, chosen), PLAN, chosen, 1)
    assert caught.value.field.endswith(".thaw")
    assert caught.value.value == part


def test_a_stage_that_the_network_does_not_have() -> None:
    with pytest.raises(UserError) as caught:
        parts(freeze=["neck"])
    assert caught.value.value == "neck"
    assert "encoder" in caught.value.remedy


def test_frozen_parameters_do_not_change_in_training_and_the_others_do() -> None:
    chosen = phase(freeze="encoder")
    model = network(PLAN, chosen)
    found = parts_of(model, PLAN, chosen)
    apply_freeze(model, found.frozen)
    before = {k: v.clone() for k, v in unique_state(model).items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (model(torch.randn(1, 1, 16, 16, 16)) ** 2).mean().backward()
        optimiser.step()
    after = unique_state(model)
    same = {n for n in before if torch.equal(before[n], after[n])}
    assert set(found.frozen) <= same
    assert not same & {n for n in found.shared if n.endswith("weight")}
    apply_freeze(model, [])
    assert all(p.requires_grad for p in model.parameters())


# -------------------------------------------------------------------------------- start weights


def state(value: float, organs: int) -> dict[str, Tensor]:
    model = network(PLAN, phase(organs=ORGANS[:organs]))
    return {k: torch.full_like(v, value) for k, v in unique_state(model).items()}


def test_scratch_is_the_seeded_network_at_both_ends() -> None:
    first, second = start_state(PLAN, phase(), None), start_state(PLAN, phase(), None)
    assert state_hash(first) == state_hash(second)
    assert state_hash(first) != state_hash(start_state(PLAN, phase(name="q"), None))
    assert state_hash(first) != state_hash(start_state(replace(PLAN, seed=1), phase(), None))


def test_building_a_network_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    network(PLAN, phase())
    assert torch.equal(torch.rand(3), expected)


def test_all_but_new_head_rows_is_copied() -> None:
    old = state(0.0, 2)
    heads = set(head_rows(network(PLAN, phase())))
    for name in heads:
        for row in range(3):
            old[name][row] = row + 1.0  # background, Brainstem, Parotid_L
    after = phase(name="q", organs=["Parotid_L", "Larynx", "Brainstem"])
    fresh = start_state(PLAN, after, None)
    new = start_state(PLAN, after, (old, ORGANS[:2]))
    assert set(new) == set(fresh)
    for name, tensor in new.items():
        if name not in heads:
            assert torch.equal(tensor, old[name])
            continue
        assert bool((tensor[0] == 1).all())
        assert bool((tensor[1] == 3).all())
        assert torch.equal(tensor[2], fresh[name][2])
        assert bool((tensor[3] == 2).all())


def test_the_weights_that_a_phase_starts_from_stay_their_own() -> None:
    old = state(1.0, 3)
    new = start_state(PLAN, phase(), (old, ORGANS))
    for tensor in new.values():
        tensor.add_(1)
    assert all(bool((v == 1).all()) for v in old.values())


def test_weights_of_another_network_are_refused() -> None:
    wider = replace(PLAN, model=Model(channels=[8, 8]))
    old = start_state(wider, phase(), None)
    with pytest.raises(UserError, match="same network"):
        start_state(PLAN, phase(init="x.safetensors"), (old, ORGANS))
    with pytest.raises(UserError, match="is missing"):
        start_state(PLAN, phase(), ({}, []))
    with pytest.raises(UserError, match="4 rows for 2 organs"):
        start_state(PLAN, phase(), (state(0.0, 3), ORGANS[:2]))


def test_weights_of_another_type_become_the_networks() -> None:
    old = {name: tensor.double() for name, tensor in state(1.0, 3).items()}
    new = start_state(PLAN, phase(), (old, ORGANS))
    assert {tensor.dtype for tensor in new.values()} == {torch.float32}


def test_weights_without_a_number_of_16_bits_start_no_phase_that_sends_these() -> None:
    old = state(70_000.0, 3)
    start_state(PLAN, phase(), (old, ORGANS))
    narrow = replace(PLAN, federation=replace(PLAN.federation, update_bits=16))
    with pytest.raises(UserError, match="update_bits: 32"):
        start_state(narrow, phase(), (old, ORGANS))


def test_what_thaws_later_is_still_until_then() -> None:
    thawing = phase(freeze="encoder", thaw={"encoder": 3}, rounds=4)
    model = network(PLAN, thawing)
    thaws = thaw_rounds(model, PLAN, thawing)
    early = still_at(thaws, 2)
    assert early
    assert early < set(parts_of(model, PLAN, thawing).shared)
    assert early == set(frozen_in(model, PLAN, thawing, 2))
    assert still_at(thaws, 3) == set()
    assert thaw_rounds(model, PLAN, phase(freeze="encoder")) == {}, "it does not travel at all"


def test_what_thaws_by_parts_trains_each_from_its_round() -> None:
    by_parts = phase(freeze="encoder", thaw={"norm": 2, "encoder": 4}, rounds=4)
    model = network(PLAN, by_parts)
    thaws = thaw_rounds(model, PLAN, by_parts)
    assert set(thaws.values()) == {2, 4}
    for round_ in (1, 2, 3, 4):
        assert still_at(thaws, round_) == set(frozen_in(model, PLAN, by_parts, round_))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("preprocess", "spacing_mm", [2.0, 1.0, 1.0]),
        ("preprocess", "window_hu", [-100.0, 300.0]),
        ("preprocess", "crop", [16, 16, 32]),
        ("model", "norm", "group"),
        ("model", "strides", [[1, 2, 2]]),
    ],
)
def test_weights_of_other_voxels_or_another_network_are_refused_by_name(
    section: str, key: str, value: Any
) -> None:
    ours = plan()
    theirs = weights_meta("r", ours, ours.phases[0], {})
    require_same_input(theirs, ours, "init", "x")
    assert theirs["amp"] == ours.train.amp
    theirs["model"]["channels_last"] = not ours.model.channels_last
    require_same_input(theirs, ours, "init", "x")
    theirs[section][key] = value
    with pytest.raises(UserError, match=f"{section}.{key}") as caught:
        require_same_input(theirs, ours, "init", "x")
    assert caught.value.field == "init"


def test_weights_without_a_description_are_refused() -> None:
    with pytest.raises(UserError):
        require_same_input({}, plan(), "init", "x")


def test_load_state_puts_weights_into_the_network() -> None:
    model = network(PLAN, phase())
    load_state(model, state(0.25, 3))
    assert all(bool((p == 0.25).all()) for p in model.parameters())


# -------------------------------------------------------------------------------------- hashes


def test_seeds_are_the_same_everywhere_and_for_ever() -> None:
    assert seed_of(0, "pretrain", 1, "nyu") == 8118952604461935894
    assert seed_of("a", "b") != seed_of("ab")
    assert seed_of("a", "b") != seed_of("b", "a")


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_a_seed_fits_every_generator(parts: list[Any]) -> None:
    assert 0 <= seed_of(*parts) < 2**63


def test_the_hash_of_a_state_sees_every_bit() -> None:
    base = {"w": torch.arange(6.0).reshape(2, 3), "s": torch.tensor(1.0)}
    digest = state_hash(base)
    assert state_hash({"s": base["s"], "w": base["w"]}) == digest
    assert state_hash({k: v.clone() for k, v in base.items()}) == digest
    assert state_hash({"w": base["w"].t().contiguous().t(), "s": base["s"]}) == digest
    tiny = base["w"].clone()
    tiny[1, 2] = torch.nextafter(tiny[1, 2], torch.tensor(9.0))
    others: list[dict[str, Tensor]] = [
        {"w": tiny, "s": base["s"]},
        {"w": base["w"].reshape(3, 2), "s": base["s"]},
        {"w": base["w"].double(), "s": base["s"]},
        {"v": base["w"], "s": base["s"]},
        {"w": base["w"]},
        {"w": base["w"], "s": base["s"].reshape(1)},
        base | {"x": torch.zeros(0)},
    ]
    hashes = [state_hash(o) for o in others]
    assert digest not in hashes
    assert len(set(hashes)) == len(hashes)
    assert state_hash(base, ["w"]) == state_hash({"w": base["w"]})


def test_size_in_bytes() -> None:
    tensors = {"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.float64)}
    assert size_bytes(tensors, ["a", "b"]) == 24 + 40
    assert size_bytes(tensors, []) == 0


@pytest.mark.parametrize(
    ("model", "changes", "bits", "fewer"),
    [
        (Model(), {}, 32, 1),
        (Model(), {}, 16, 2),
        (Model(), {}, 8, 3.95),
        (Model(name="unetr"), {"freeze": "encoder"}, 16, 40),
    ],
)
def test_bytes_a_round_against_all_weights_in_32_bits(
    model: Model, changes: dict[str, Any], bits: int, fewer: float
) -> None:
    """Each way: what of a phase travels in every round; what is frozen went once, before."""
    made = replace(plan(phase(**changes)), model=model, preprocess=Preprocess())
    with torch.device("meta"):
        net = network(made, made.phases[0])
        shared = parts_of(net, made, made.phases[0]).shared
        state = unique_state(net)
    assert size_bytes(state, list(state)) / size_bytes(state, shared, bits) >= fewer


def test_the_fingerprint_is_of_the_code_of_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 64
    (tmp_path / "core" / "archives").mkdir(parents=True)
    monkeypatch.setattr(phases, "__file__", str(tmp_path / "core" / "wire" / "partition.py"))
    compute = fingerprint.__wrapped__
    one = tmp_path / "core" / "one.py"
    one.write_text("x = 1\n")
    first = compute()
    assert compute() == first
    (tmp_path / "core" / "archives" / "dicom.py").write_text("y = 1\n")
    assert compute() == first
    one.write_text("x = 2\n")
    assert compute() != first
    one.rename(tmp_path / "core" / "two.py")
    (tmp_path / "core" / "two.py").write_text("x = 1\n")
    assert compute() != first


def test_a_network_is_a_module() -> None:
    assert isinstance(network(PLAN, phase()), nn.Module)


# ------------------------------------------------------------------- what a shared phase keeps


def test_kept_norms_are_all_norms_and_travel_once() -> None:
    kept, _, names = parts(keep=["norm"])
    model = network(PLAN, phase())
    norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if type(module).__name__.startswith(("InstanceNorm", "GroupNorm", "LayerNorm"))
        for own, _ in module.named_parameters()
    }
    assert norms
    assert set(kept.personal) == norms == set(kept.base)
    assert set(kept.shared) == names - norms


def test_a_kept_stage_beside_a_frozen_one() -> None:
    kept, stages, _ = parts(keep=["head"], freeze="encoder")
    assert {stages[n] for n in kept.personal} == {"head"}
    assert {stages[n] for n in kept.shared} == {"decoder"}
    assert {stages[n] for n in kept.base} == {"encoder", "head"}


def test_ditto_keeps_a_second_copy_of_what_is_shared() -> None:
    kept, stages, _ = parts(ditto=0.1, freeze="encoder")
    assert kept.personal == kept.shared
    assert {stages[n] for n in kept.base} == {"encoder"}


@pytest.mark.parametrize("keep", [["encoder", "decoder", "head"], ["nothing"]])
def test_what_cannot_be_kept_is_named(keep: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parts(keep=keep)
    assert caught.value.field == "phases.p.keep"


# --------------------------------------------------------------------------- rows of new organs


@pytest.mark.parametrize("how", ["random", "background", "mean"])
def test_rows_of_new_organs_begin_as_asked(how: str) -> None:
    old_phase = phase(name="old", organs=["Brainstem", "Parotid_L"])
    grown = phase(organs=["Parotid_L", "Larynx"], init="old", head_init=how)
    settings = plan(old_phase, grown)
    old = {n: torch.randn_like(t) for n, t in unique_state(network(settings, old_phase)).items()}
    state = start_state(settings, grown, (old, old_phase.organs))
    weight, bias = sorted(head_rows(network(settings, grown)), key=lambda n: n.endswith("bias"))
    for name in (weight, bias):
        assert torch.equal(state[name][0], old[name][0])
        assert torch.equal(state[name][1], old[name][2])
    fresh = start_state(settings, grown, None)
    drop = torch.log(torch.tensor(settings.model.prior))
    expected = {
        "random": (fresh[weight][2], fresh[bias][2]),
        "background": (old[weight][0], old[bias][0] + drop),
        "mean": (old[weight][1:].mean(0), old[bias][1:].mean()),
    }[how]
    assert torch.allclose(state[weight][2], expected[0])
    assert torch.allclose(state[bias][2], expected[1])
