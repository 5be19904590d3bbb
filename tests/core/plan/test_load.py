from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.plan import load as plan_load
from core.plan.load import (
    CONFIGS,
    find_config,
    load,
    plan_from_json,
    plan_hash,
    plan_json,
    read_yaml,
    shipped_configs,
    to_yaml,
)
from core.plan.schema import Config, Plan, Simulation, Tracking

SHIPPED = shipped_configs()


def fails(*overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load("smoke", overrides)
    return caught.value


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_plan_loads_and_survives_its_own_yaml(name: str, tmp_path: Path) -> None:
    config, sources = load(name)
    assert config.phases
    assert config.organ_names
    assert set(sources.values()) <= {"default", f"{Path(name).name}.yaml"}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again, _ = load(str(path))
    assert again == config


def test_every_shipped_plan_survives_its_journey_to_the_sites() -> None:
    for name in SHIPPED:
        config, _ = load(name)
        text = plan_json(config)
        assert text.isascii()
        assert plan_from_json(text) == config.plan
        assert type(plan_from_json(text)) is Plan
        assert plan_json(plan_from_json(text)) == text
        assert not {"tracking", "simulation"} & set(json.loads(text))


def test_the_hash_is_of_what_decides_the_weights_only() -> None:
    config, _ = load("smoke")
    elsewhere = dataclasses.replace(
        config, tracking=Tracking(project="x"), simulation=Simulation(engine="inline")
    )
    assert plan_hash(config) == plan_hash(elsewhere) == plan_hash(config.plan)
    assert len(plan_hash(config)) == 64
    for change in ("seed=1", "train.lr=0.003", "phases.0.rounds=9", "model.channels=[4, 8]"):
        assert plan_hash(load("smoke", [change])[0]) != plan_hash(config), change
    on_cluster = ("simulation.ray=head:6379", "simulation.ray_insecure=true")
    elsewhere_too = ("tracking.mode=online", "simulation.overlays=0", "simulation.engine=inline")
    for change in (*elsewhere_too, *on_cluster):
        assert plan_hash(load("smoke", [change])[0]) == plan_hash(config), change


def test_an_unknown_key_like_no_other_fails_with_those_that_exist() -> None:
    with pytest.raises(UserError) as caught:
        load("smoke", ["train.learning_rate=0.1"])
    assert "use one of optimizer, lr," in caught.value.remedy


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("train.lrr=1", "lrr", "lr"),
        ("trian.lr=1", "trian", "train"),
        ("phases.pretrain.rouds=3", "rouds", "rounds"),
        ("federation.guards.max_case=3", "max_case", "max_cases"),
        ("federation.strategy.nam=fedavg", "nam", "name"),
    ],
)
def test_an_unknown_key_fails_with_a_suggestion(override: str, key: str, suggestion: str) -> None:
    text = str(fails(override))
    assert f"'{key}'" in text
    assert f"'{suggestion}'" in text
    assert "remedy: correct the key" in text


@pytest.mark.parametrize(
    ("override", "key", "remedy"),
    [
        ("train.lr=fast", "train.lr", "right type"),
        ("train.batch=1.5", "train.batch", "right type"),
        ("train.deterministic=perhaps", "train.deterministic", "right type"),
        ("train.lr=null", "train.lr", "right type"),
        ("seed={x: 1}", "seed", "right type"),
        ("preprocess.crop=7", "preprocess.crop", "crop=[...]"),
        ("phases.pretrain.sites=nyu", "sites", "sites=[...]"),
    ],
)
def test_a_value_of_another_type_is_named(override: str, key: str, remedy: str) -> None:
    error = fails(override)
    assert key in error.field
    assert remedy in error.remedy


def test_a_misfit_is_named_by_key_value_and_place(tmp_path: Path) -> None:
    error = fails("phases.pretrain.rounds=many")
    assert (error.field, error.value) == ("phases.pretrain.rounds", "many")
    assert "yaml" not in error.remedy
    path = tmp_path / "mine.yaml"
    path.write_text("phases: [{name: a}, {name: b, round: 3}]\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(str(path), ["train.lr=0.5"])
    assert (caught.value.field, caught.value.value) == ("phases.b.round", 3)
    assert str(path) in caught.value.remedy
    path.write_text("phases: [{round: 3}]\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert caught.value.field == "phases.0.round", "of a phase without a name"


@pytest.mark.parametrize(
    ("override", "field"),
    [("train=3", "train"), ("phases={a: 1}", "phases"), ("phases=[3]", "phases[0]")],
)
def test_a_section_of_the_wrong_kind_is_named(override: str, field: str) -> None:
    assert fails(override).field == field


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["train.lr", "weighting.organs.Brainstem", "augment.noise"])
def test_no_number_is_not_a_number(key: str, number: str) -> None:
    error = fails(f"{key}={number}")
    assert error.field == key
    assert error.remedy.startswith("give a number ")


def test_overrides_by_dotted_key_phase_name_index_and_list() -> None:
    config, sources = load(
        "smoke",
        [
            "train.lr=0.5",
            "preprocess.crop=[16, 24, 32]",
            "phases.personalise.rounds=7",
            "phases.0.local_epochs=3",
            "phases.pretrain.organs=[Brainstem]",
            "weighting.organs.Brainstem=2",
            "model.args.feature_size=8",
            "tracking.tags=[a, b]",
        ],
    )
    assert config.train.lr == 0.5
    assert config.preprocess.crop == [16, 24, 32]
    assert config.phase("personalise").rounds == 7
    assert config.phase("pretrain").local_epochs == 3
    assert config.phase("pretrain").organs == ["Brainstem"]
    assert config.weighting.organs == {"Brainstem": 2.0}
    assert config.model.args == {"feature_size": 8}
    assert config.tracking.tags == ["a", "b"]
    assert sources["train.lr"] == "override"
    assert sources["phases.1.rounds"] == "override"
    assert sources["phases.1.freeze"] == "smoke.yaml"
    assert sources["train.weight_decay"] == "default"
    assert sources["preprocess.crop"] == "override"


def test_the_last_override_wins_and_a_whole_section_replaces_its_keys() -> None:
    config, sources = load("smoke", ["train.lr=1", "train.lr=2", "model={channels: [4, 8]}"])
    assert config.train.lr == 2.0
    assert config.model.channels == [4, 8]
    assert sources["model.channels"] == "override"
    assert sources["model.stages"] == "default"


@pytest.mark.parametrize("item", ["train.lr", "=3", "train.lr 3", ""])
def test_an_override_without_key_or_value(item: str) -> None:
    assert "KEY=VALUE" in fails(item).remedy


@pytest.mark.parametrize(
    ("items", "form"),
    [
        (["phases[0].rounds=2"], "phases.0.rounds=2"),
        (["phases[pretrain].rounds=2"], "phases.pretrain.rounds=2"),
        (['phases["pretrain"].rounds=2'], "phases.pretrain.rounds=2"),
        (["phases.[0].rounds=2"], "phases.0.rounds=2"),
        (["train.lr = 0.1"], "train.lr=0.1"),
        (["train.lr =0.1"], "train.lr=0.1"),
        ([" train.lr=0.1"], "train.lr=0.1"),
        (["train.lr", "=", "0.1"], "train.lr=0.1"),
        (["train.lr", "=0.1"], "train.lr=0.1"),
        (["phases[0].rounds", "=", "2"], "phases.0.rounds=2"),
    ],
)
def test_the_right_form_of_an_override_is_said(items: list[str], form: str) -> None:
    assert form in fails(*items).remedy


@pytest.mark.parametrize(
    "item",
    ["phases.0.rounds=010", "phases.0.rounds=1:30", "train.batch=0x2", "seed=1_000",
     "simulation.sites.nyu.exclude=[010]", "simulation.sites.nyu.splits={train: [001, 010]}"],
)  # fmt: skip
def test_an_override_is_read_as_strictly_as_a_file(item: str, tmp_path: Path) -> None:
    key, _, text = item.partition("=")
    error = fails(item)
    assert error.field == key
    assert "in quotes" in error.remedy
    path = tmp_path / "plan.yaml"
    path.write_text(f"{key.split('.')[-1]}: {text}\n")
    with pytest.raises(UserError, match=r"plan\.yaml, line 1"):
        load(str(path))


def test_an_override_is_one_value() -> None:
    for item in ("train.lr=0.1\nseed: 3", "train.lr=0.1\n---\n"):
        assert fails(item).field == "train.lr"


def test_names_that_look_like_values_stay_names(tmp_path: Path) -> None:
    config, _ = load("smoke", ["tracking.tags=[no, 'on', '010', 7]", "tracking.project=2026-01-31"])
    assert config.tracking.tags == ["no", "on", "010", "7"]
    assert config.tracking.project == "2026-01-31"
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(str(path))[0] == config


@pytest.mark.parametrize("item", ["train.lr=[1", "train.lr={a", "train.lr=${seed}"])
def test_an_override_that_is_no_plain_yaml(item: str) -> None:
    assert fails(item).field == "train.lr"


def test_an_override_below_a_value() -> None:
    assert fails("seed.x=1").field == "seed"
    assert fails("train.lr.x=1").field == "train.lr"
    assert "no keys below" in fails("seed=3", "seed.x=1").remedy


@pytest.mark.parametrize("part", ["nobody", "2", "-1"])
def test_a_phase_that_is_not_there(part: str) -> None:
    error = fails(f"phases.{part}.rounds=3")
    assert "'pretrain'" in error.remedy


def test_a_name_that_is_no_plan_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        find_config("smok")
    assert "did you mean smoke?" in caught.value.remedy
    assert find_config("demo") == CONFIGS / "demo.yaml"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("phases: [", "mend the YAML"),
        ("- a\n- b\n", "top level"),
        ("seed: ${oc.env:HOME}\n", "interpolation"),
        ("seed: 1\nseed: 2\n", "mend the YAML"),
        ("!!python/object/apply:os.getcwd []\n", "mend the YAML"),
        ("", "at least one phase"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word):
        load(str(path))


def test_a_file_that_cannot_be_read_is_told_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nosuch\.yaml: no such file .*\n.*give the path"):
        read_yaml(tmp_path / "nosuch.yaml")
    with pytest.raises(UserError, match="is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: K\xf6ln")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


def test_a_plan_of_other_code_fails_by_the_name_of_its_key() -> None:
    values = json.loads(plan_json(load("smoke")[0])) | {"privacy": {"epsilon": 1}}
    with pytest.raises(UserError, match="privacy"):
        plan_from_json(json.dumps(values))


def test_names_in_order_of_first_appearance() -> None:
    config, _ = load("demo")
    assert config.organ_names[:2] == ("Brainstem", "Bone_Mandible")
    assert config.organ_names[-3:] == ("Musc_Constrict_S", "Musc_Constrict_M", "Musc_Constrict_I")
    assert config.site_names == ("miccai", "nyu")


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_typed_is_a_config_or_a_user_error(key: str, value: str) -> None:
    try:
        config, _ = load("smoke", [f"{key}={value}"])
    except UserError:
        return
    assert isinstance(config, Config)


SMUGGLED = "${oc.env:HOME}"


@pytest.mark.parametrize(
    "place",
    [
        lambda plan: plan["model"].update(name=SMUGGLED),
        lambda plan: plan["model"].update(args={"norm": ["instance", {"eps": SMUGGLED}]}),
        lambda plan: plan["model"].update(args={SMUGGLED: 1}),
        lambda plan: plan["phases"][0].update(organs=["Brainstem", SMUGGLED]),
        lambda plan: plan["phases"][0].update(freeze=[SMUGGLED]),
        lambda plan: plan.update(seed="${oc.decode:${oc.env:SECRET}}"),
        lambda plan: plan["train"].update(lr="${train.weight_decay}"),
        lambda plan: plan["organs"].update({SMUGGLED: {}}),
        lambda plan: plan.update({SMUGGLED: 1}),
    ],
)
def test_a_plan_from_the_wire_reads_nothing_of_the_site(
    place: Callable[[dict[str, Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "7")
    values = json.loads(plan_json(load("smoke")[0].plan))
    place(values)
    for text in (json.dumps(values), json.dumps(values).replace("$", "\\u0024")):
        with pytest.raises(UserError, match="interpolation is not allowed"):
            plan_from_json(text)


@pytest.mark.parametrize(
    "line", ['seed: "\\x24{oc.env:HOME}"', 'train: {lr: "$\\x7boc.env:HOME}"}', '"\\x24{a}": 1']
)
def test_no_spelling_of_an_interpolation_passes_in_a_file(tmp_path: Path, line: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match="interpolation is not allowed"):
        load(str(path))
    with pytest.raises(UserError, match="interpolation is not allowed"):
        load("smoke", ['model.name="\\x24{oc.env:HOME}"'])


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"a": ' * 5000, "[" * 100_000, '{"seed": NaN}', " " * 1_000_001]
)
def test_what_is_no_plan_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError):
        plan_from_json(text)


def test_the_same_text_is_read_once_and_nobody_changes_what_it_gives() -> None:
    text = plan_json(load("smoke", [])[0].plan)
    first = plan_from_json(text)
    assert plan_from_json(text) is first
    assert plan_json(first) == text
    wrong = text.replace('"seed":0', '"seed":"no"')
    for _ in range(2):  # an error is not remembered as a plan
        with pytest.raises(UserError, match="seed"):
            plan_from_json(wrong)


def test_a_section_that_is_known_is_no_other_and_belongs_to_each_alone() -> None:
    first, _ = load("demo", ["simulation.cpus_per_site=1"])
    sites = first.simulation.sites
    sites.clear()  # whatever is done with one configuration
    again, _ = load("demo", ["simulation.cpus_per_site=1"])
    assert again.simulation.sites != sites
    other, _ = load("demo", ["simulation.cpus_per_site=2"])
    assert (again.simulation.cpus_per_site, other.simulation.cpus_per_site) == (1, 2)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            load("demo", ["simulation.cpus_per_sit=1"])
        assert "simulation.cpus_per_sit" in str(caught.value)


def test_a_study_fits_its_simulation_once_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of patients take most of the time of a plan, and a study reads hundreds of plans."""
    fitted: list[list[str]] = []
    real = plan_load._merged

    def spy(schema: type, values: Mapping[str, Any]) -> object:
        fitted.append(sorted(values))
        return real(schema, values)

    monkeypatch.setattr(plan_load, "_merged", spy)
    monkeypatch.setattr(plan_load, "_SIMULATIONS", {})
    for seed in range(5):
        load("openkbp", [f"seed={seed}"])
    assert fitted.count(["simulation"]) == 1
    assert len(fitted) == 6
