"""Every number of a plan has a range, and what no machine bears is refused before it is tried."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.plan.load import load, plan_from_json, plan_json, shipped_configs
from core.plan.ranges import (
    ELSEWHERE,
    FILES,
    KEYED,
    MAX_VOXELS,
    RANGES,
    Range,
    number_of,
    numbers,
)
from core.plan.schema import Config
from hnfed.deploy.provision import Federation


def rows_of(kind: Any, key: str) -> Iterator[str]:
    """Keys of all numbers that a type of the plan can hold."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        for name, inner in typing.get_type_hints(kind).items():
            yield from rows_of(inner, f"{key}.{name}" if key else name)
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from rows_of(part, key)
    elif origin in (list, dict):
        yield from rows_of(parts[-1], f"{key}.*")
    elif kind in (int, float):
        yield key


def test_every_number_of_a_plan_has_its_row_and_no_row_is_left_over() -> None:
    found = set()
    for row in rows_of(Config, ""):
        keys = KEYED.get(row, ("*",))
        found |= {row.removesuffix("*") + key for key in keys} if row in KEYED else {row}
    assert found == set(RANGES)
    tables = (RANGES, *FILES.values())
    assert all(r.low < r.high < float("inf") for table in tables for r in table.values())


def test_every_number_of_a_federation_has_its_row() -> None:
    federation = {f"server.{k}" if "port" in k else k for k in rows_of(Federation, "")}
    assert federation == set(FILES["federation"])


@pytest.mark.parametrize("file", FILES)
@given(value=st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.none()))
def test_a_number_of_a_file_is_inside_its_range_or_refused(file: str, value: object) -> None:
    for key, row in FILES[file].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and row.holds(value):
            assert number_of(file, key, value) == value
            continue
        with pytest.raises(UserError) as caught:
            number_of(file, key, value)
        assert caught.value.field == f"{file}: {key}"
        assert caught.value.remedy.startswith("give a ")


@settings(max_examples=60, deadline=None)
@given(row=st.sampled_from(sorted(RANGES)), far=st.floats(1, 1e12))
def test_no_number_outside_its_range_passes_any_key(row: str, far: float) -> None:
    held = RANGES[row]
    assert not held.holds(held.low - far)
    assert not held.holds(held.high + far if held.high < 1e15 else held.high * 4)
    assert not held.holds(float("nan"))


@pytest.mark.parametrize("name", shipped_configs())
def test_every_number_of_a_shipped_plan_finds_its_row(name: str) -> None:
    rows = list(numbers(dataclasses.asdict(load(name)[0]), "", ""))
    assert len(rows) > 50
    assert all(rule in RANGES for rule, _, _ in rows)
    assert not any(key.startswith(ELSEWHERE) for _, key, _ in rows)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("preprocess.crop=[3000, 3000, 3000]", "preprocess.crop"),
        ("preprocess.crop=[1024, 1024, 1024]", "preprocess.crop"),
        ("preprocess.spacing_mm=[1e-9, 1, 1]", "preprocess.spacing_mm"),
        ("model.channels=[40000, 8]", "model.channels"),
        ("phases.pretrain.local_epochs=1000000000", "phases.pretrain.local_epochs"),
        ("phases.pretrain.rounds=1000000000", "phases.pretrain.rounds"),
        ("phases.pretrain.rounds=200000", "phases.pretrain.rounds"),
        ("phases.pretrain.max_cases=1000000000", "phases.pretrain.max_cases"),
        ("phases.pretrain.patience=1000000000", "phases.pretrain.patience"),
        ("train.batch=100000", "train.batch"),
        ("train.threads=100000", "train.threads"),
        ("train.lr=1000", "train.lr"),
        ("augment.elastic_spacing_mm=0.001", "augment.elastic_spacing_mm"),
        ("federation.prepare_timeout_s=1e12", "federation.prepare_timeout_s"),
        ("seed=99999999999999999999", "seed"),
        ("seed=-1", "seed"),
        ("federation.strategy.proximal_mu=-1", "federation.strategy.proximal_mu"),
        ("augment.probability=1e30", "augment.probability"),
        ("augment.probability=-0.1", "augment.probability"),
        ("loss.gamma=-1", "loss.gamma"),
        ("train.threads=-1", "train.threads"),
        ("train.weight_decay=-1", "train.weight_decay"),
        ("train.momentum=1.5", "train.momentum"),
        ("augment.rotate_deg=[-8, 8, 8]", "augment.rotate_deg"),
        ("augment.scale=1", "augment.scale"),
        ("preprocess.spacing_mm=[0.003, 0.0015, 0.00125]", "preprocess.spacing_mm"),
        ("preprocess.spacing_mm=[1e9, 1e9, 1e9]", "preprocess.spacing_mm"),
        ("simulation.phantom_spacing_mm=[0.004, 0.0025, 0.0025]", "simulation.phantom_spacing_mm"),
        ("simulation.sites.nyu.split.seed=0.5", "simulation.sites.nyu.split.seed"),
        ("simulation.sites.nyu.split.seed=-1", "simulation.sites.nyu.split.seed"),
        ("simulation.sites.nyu.split.train=-0.2", "simulation.sites.nyu.split.train"),
        ("simulation.sites.nyu.split.tset=0.2", "simulation.sites.nyu.split.tset"),
        ("simulation.sites.nyu.cases=-3", "simulation.sites.nyu.cases"),
        ("simulation.overlays=-1", "simulation.overlays"),
        ("simulation.gpus_per_site=-1", "simulation.gpus_per_site"),
    ],
)
def test_what_no_machine_bears_is_refused(override: str, field: str) -> None:
    with pytest.raises(UserError) as caught:
        load("smoke", [override])
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_plan_from_the_wire_is_held_to_the_same_ranges() -> None:
    text = plan_json(load("smoke")[0].plan)
    assert plan_from_json(text)
    wide = text.replace('"crop":[', '"crop":[3000,', 1)
    with pytest.raises(UserError):
        plan_from_json(wide)


def test_more_entries_than_anybody_needs() -> None:
    many = ", ".join(f"s{i}" for i in range(2000))
    with pytest.raises(UserError, match="at most 1000"):
        load("smoke", [f"phases.pretrain.sites=[{many}]"])


def test_ends_of_a_range() -> None:
    share = Range(0, 1, above=True, below=True)
    assert [share.holds(v) for v in (0, 0.5, 1, float("nan"), float("inf"))] == [
        False, True, False, False, False,
    ]  # fmt: skip
    assert share.words() == "above 0, below 1"
    assert Range(0, 2**63 - 1, whole=True).words() == "from 0 to 9223372036854775807"
    assert [Range(0, 9, whole=True).holds(v) for v in (0.5, 2.0, 9)] == [False, True, True]
    assert Range(1, 64).words() == "from 1 to 64"
    assert Range(0, 10, above=True).words() == "above 0, at most 10"
    assert MAX_VOXELS > 96 * 128 * 224 * 10
