"""Every number of a plan has a range, and what no machine bears is refused before it is tried."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from core.config import load, plan_from_json, plan_json, shipped_configs
from core.errors import UserError
from core.plan import Config
from core.ranges import ELSEWHERE, MAX_VOXELS, RANGES, Range, numbers


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
    found = set(rows_of(Config, ""))
    assert found == set(RANGES)
    assert all(r.low < r.high < float("inf") for r in RANGES.values())


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
        ("phases.pretrain.local_epochs=1000000000", "phases.pretrain.rounds"),
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
    assert Range(1, 64).words() == "from 1 to 64"
    assert Range(0, 10, above=True).words() == "above 0, at most 10"
    assert MAX_VOXELS > 96 * 128 * 224 * 10
