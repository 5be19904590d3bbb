from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.errors import UserError
from core.plan.load import load, plan_from_json, plan_json
from core.plan.schema import Config, Phase, Plan
from core.plan.validate import check, require_simulated


def fails(*overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load("smoke", overrides)
    error = caught.value
    assert error.remedy
    return error


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("model.norm=batch", "model.norm"),
        ("model.prior=0", "model.prior"),
        ("augment.mirror=1.1", "augment.mirror"),
        ("model.prior=1.0", "model.prior"),
        ("loss.form=other", "loss.form"),
        ("loss.class_weight=all", "loss.class_weight"),
        ("loss.class_weight=prediction", "loss.class_weight"),
        ("train.optimizer=lion", "train.optimizer"),
        ("train.schedule=none", "train.schedule"),
        ("train.amp=fp8", "train.amp"),
        ("federation.strategy.name=mean", "federation.strategy.name"),
        ("federation.update_bits=4", "federation.update_bits"),
        ("federation.update_bits=12", "federation.update_bits"),
        ("federation={update_bits: 8, strategy: {name: dp}}", "federation.update_bits"),
        ("federation={update_bits: 16, strategy: {name: dp}}", "federation.update_bits"),
        ("preprocess.spacing_mm=[1.0, 1.0]", "preprocess.spacing_mm"),
        ("preprocess.spacing_mm=[1.0, 0.0, 1.0]", "preprocess.spacing_mm"),
        ("preprocess.crop=[32, 32]", "preprocess.crop"),
        ("preprocess.crop=[32, 32, 4]", "preprocess.crop"),
        ("preprocess.window_hu=[300, -200]", "preprocess.window_hu"),
        ("preprocess.window_hu=[1.0]", "preprocess.window_hu"),
        ("augment.rotate_deg=[1.0]", "augment"),
        ("loss={ce: 0, focal: 0, dice: 0, gdice: 0}", "loss"),
        ("loss.ce=-1", "loss.ce"),
        ("weighting.terms=dynamic", "weighting.terms"),
        ("weighting.shift_end=0", "weighting.shift_end"),
        ("train.lr=0", "train.lr"),
        ("train.batch=0", "train.batch"),
        ("federation.min_cell=0", "federation.min_cell"),
        ("federation.round_timeout_s=-1", "federation.round_timeout_s"),
        ("weighting.organs.Larynx=2", "weighting.organs.Larynx"),
        ("weighting.organs.Brainstem=-2", "weighting.organs.Brainstem"),
        ("phases=[]", "phases"),
        ("phases.pretrain.sites=[]", "phases.pretrain.sites"),
        ("phases.pretrain.sites=[nyu, nyu]", "phases.pretrain.sites"),
        ("phases.pretrain.sites=[../x]", "phases.pretrain.sites"),
        ("phases.pretrain.organs=[]", "phases.pretrain.organs"),
        ("phases.pretrain.organs=[Larynx, Larynx]", "phases.pretrain.organs"),
        ("phases.pretrain.rounds=0", "phases.pretrain.rounds"),
        ("phases.pretrain.local_epochs=0", "phases.pretrain.local_epochs"),
        ("phases.pretrain.patience=0", "phases.pretrain.patience"),
        ("phases.pretrain.max_cases=0", "phases.pretrain.max_cases"),
        ("phases.pretrain.lr=0", "phases.pretrain.lr"),
        ("phases.pretrain.share=some", "phases.pretrain.share"),
        ("phases.pretrain.freeze=first-half", "phases.pretrain.freeze"),
        ("phases.pretrain.thaw={encoder: 1}", "phases.pretrain.thaw.encoder"),
        ("phases.personalise.thaw={encoder: 1}", "phases.personalise.thaw.encoder"),
        ("phases.personalise.thaw={norm: 0}", "phases.personalise.thaw.norm"),
        ("phases.pretrain.thaw={encoder: 999}", "phases.pretrain.thaw.encoder"),
        ("phases.personalise.keep=[norm]", "phases.personalise.keep"),
        ("phases.personalise.ditto=0.1", "phases.personalise.ditto"),
        ("phases.pretrain.average_last=0.1", "phases.pretrain.average_last"),
        ("phases.personalise.average_last=1.1", "phases.personalise.average_last"),
        ("phases.pretrain.test_rounds=[1]", "phases.pretrain.test_rounds"),
        ("phases.personalise.test_rounds=[0]", "phases.personalise.test_rounds"),
        ("phases.personalise.test_rounds=[999]", "phases.personalise.test_rounds"),
        ("phases.pretrain.ditto=-1", "phases.pretrain.ditto"),
        ("phases.pretrain.keep_epochs=1", "phases.pretrain.keep_epochs"),
        ("phases.personalise.rounds=0", "phases.personalise.rounds"),
        ("phases.personalise.head_init=zero", "phases.personalise.head_init"),
        ("phases.pretrain.head_init=mean", "phases.pretrain.head_init"),
        ("phases.pretrain.freeze=3", "phases.pretrain.freeze"),
        ("phases.pretrain.init=personalise", "phases.pretrain.init"),
        ("phases.personalise.init=pretrian", "phases.personalise.init"),
        ("phases.personalise.name=pretrain", "phases.1.name"),
        ("phases.personalise.name=../../x", "phases.1.name"),
        ("phases.pretrain.name=scratch", "phases.0.name"),
        ("simulation.engine=threads", "simulation.engine"),
        ("simulation.ray=head", "simulation.ray"),
        ("simulation.ray=head:0", "simulation.ray"),
        ("simulation.ray=head:65536", "simulation.ray"),
        ("simulation.ray=:6379", "simulation.ray"),
        ("simulation.ray='ray://head:10001'", "simulation.ray"),
        ("simulation.baseline=mixed", "simulation.baseline"),
        ("simulation.cpus_per_site=0", "simulation.cpus_per_site"),
        ("simulation.volumes=[Brainstm]", "simulation.volumes"),
        ("simulation.phantom_spacing_mm=[4.0]", "simulation.phantom_spacing_mm"),
        ("simulation.phantom_spacing_mm=[4.0, 0.0, 4.0]", "simulation.phantom_spacing_mm"),
    ],
)
def test_what_makes_no_sense_is_said_by_key(override: str, field: str) -> None:
    assert fails(override).field == field


def test_a_cluster_is_joined_by_ray_alone() -> None:
    for address in ("auto", "head:6379", "10.0.0.1:6379"):
        assert load("smoke", [f"simulation.ray={address}"])[0].simulation.ray == address
        with pytest.raises(UserError, match="the engine is inline"):
            load("smoke", [f"simulation.ray={address}", "simulation.engine=inline"])


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("simulation.sites.nyu.splits={trian: ['1']}", "simulation.sites.nyu.splits"),
        ("simulation.sites.nyu.splits={Test: ['1']}", "simulation.sites.nyu.splits"),
        ("simulation.sites.nyu.absent=no", "simulation.sites.nyu.absent"),
    ],
)
def test_lists_of_cases_stand_under_their_split(override: str, field: str) -> None:
    with pytest.raises(UserError) as caught:
        load("smoke", [override])
    assert caught.value.field == field


def test_an_unknown_organ_gets_a_suggestion() -> None:
    error = fails("phases.pretrain.organs=[Brainstm]")
    assert error.field == "phases.pretrain.organs"
    assert "Brainstem" in error.remedy


def test_an_own_organ_is_known_by_its_definition() -> None:
    assert fails("phases.pretrain.organs=[Lens_L]").field == "phases.pretrain.organs"
    overrides = ["organs.Lens_L.aliases=[lens left]", "phases.pretrain.organs=[Lens_L]"]
    assert load("smoke", overrides)[0].organ_names[0] == "Lens_L"


def test_volumes_are_asked_of_organs_that_a_phase_contours() -> None:
    assert "Brainstem" in fails("simulation.volumes=[Brainstm]").remedy
    error = fails("simulation.volumes=[Brainstem, Larynx]")
    assert (error.field, error.value) == ("simulation.volumes", "Larynx")
    assert "Brainstem" in error.remedy
    assert load("smoke", ["simulation.volumes=[Brainstem]"])[0].simulation.volumes == ["Brainstem"]


def test_a_site_that_the_simulation_does_not_have() -> None:
    config, _ = load("smoke", ["phases.pretrain.sites=[nyu, elsewhere]"])  # a federation may
    with pytest.raises(UserError) as caught:
        require_simulated(config)
    assert caught.value.value == "elsewhere"
    assert "miccai" in caught.value.remedy
    require_simulated(load("smoke")[0])


@pytest.mark.parametrize("site", ["{}", "{root: x, phantom: nyu}"])
def test_a_site_is_an_archive_or_a_phantom(site: str) -> None:
    assert fails(f"simulation.sites.nyu={site}").field == "simulation.sites.nyu"


def test_a_site_has_folders_as_texts() -> None:
    for root in ("{a: b}", "[x, [z]]", "3"):
        assert fails(f"simulation.sites.nyu={{root: {root}}}").field == "simulation.sites.nyu.root"


def plan(*phases: dict[str, Any]) -> Plan:
    common: dict[str, Any] = {"sites": ["a"], "organs": ["Brainstem"]}
    return Plan(phases=[Phase(**(common | p)) for p in phases])


def test_personal_weights_start_phases_at_their_own_site_only() -> None:
    first = {"name": "p", "share": "none"}
    check(plan(first, {"name": "q", "init": "p", "share": "none"}))
    with pytest.raises(UserError, match="only at"):
        check(plan(first, {"name": "q", "init": "p", "share": "none", "sites": ["a", "b"]}))
    with pytest.raises(UserError, match="never leave"):
        check(plan(first, {"name": "q", "init": "p", "share": "all"}))


@pytest.mark.parametrize("init", ["sha256:" + "0" * 64, "somewhere/best.safetensors", "scratch"])
def test_files_are_allowed_to_start_from(init: str) -> None:
    check(plan({"name": "p", "init": init}))


def test_sites_are_checked_only_where_they_are_simulated() -> None:
    config, _ = load("smoke")
    elsewhere = replace(config, phases=[replace(config.phases[0], sites=["real"])])
    check(plan_from_json(plan_json(elsewhere)))
    check(elsewhere)
    with pytest.raises(UserError, match="no such site"):
        require_simulated(elsewhere)


def test_the_pooled_site_of_a_runs_own_config_is_known() -> None:
    config, _ = load("smoke", ["simulation.baseline=pooled"])
    rewritten = replace(config, phases=[replace(p, sites=["pooled"]) for p in config.phases])
    assert isinstance(rewritten, Config)
    require_simulated(rewritten)


def test_a_mirrored_average_needs_both_sides_of_an_organ() -> None:
    one_side = "phases.pretrain.organs=[Brainstem, Parotid_L]"
    error = fails(one_side, "phases.pretrain.average_mirrored=true")
    assert error.field == "phases.pretrain.average_mirrored"
    assert "Parotid_L" in str(error)
    assert "Brainstem" not in str(error)
