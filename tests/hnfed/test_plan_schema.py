"""The JSON schema takes what is a plan, and refuses what no plan may hold, key by key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from core.errors import UserError
from core.plan.load import CONFIGS, find_config, load, read_yaml, shipped_configs
from core.plan.ranges import RANGES
from core.plan.validate import CHOICES
from hnfed.plan_schema import plan_schema

SCHEMA = plan_schema()
VALID = Draft202012Validator(SCHEMA)
PLAN: dict[str, Any] = {"phases": [{"name": "one", "sites": ["a"], "organs": ["Brainstem"]}]}
WRONG = {
    "an unknown section": {"modle": {}},
    "an unknown key": {"train": {"learning_rate": 0.1}},
    "a text for a number": {"train": {"lr": "0.1"}},
    "a text for a truth": {"train": {"deterministic": "yes"}},
    "no list": {"phases": {"name": "one"}},
    "a phase without a name": {"phases": [{"sites": ["a"]}]},
    "none of the choices": {"model": {"norm": "batch"}},
    "no stage": {"phases": [PLAN["phases"][0] | {"freeze": "half"}]},
    "a key of another mapping": {"simulation": {"sites": {"a": {"split": {"trian": 0.5}}}}},
    "a split of another name": {"simulation": {"sites": {"a": {"splits": {"trian": ["1"]}}}}},
}


def at(rule: str) -> dict[str, Any]:
    """The part of the schema for a row of `RANGES` or `CHOICES`."""
    found: dict[str, Any] = SCHEMA
    for part in rule.split("."):
        if part in found.get("properties", {}):
            found = found["properties"][part]
        else:
            assert part == "*", rule
            found = found["items"] if "items" in found else found["additionalProperties"]
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_plan_is_valid(name: str) -> None:
    assert [e.message for e in VALID.iter_errors(read_yaml(find_config(name)))] == []


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_as_it_is_read_is_refused_by_the_schema(what: str, tmp_path: Path) -> None:
    values = copy.deepcopy(PLAN) | WRONG[what]
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError):
        load(str(file))
    assert VALID.is_valid(PLAN)
    assert not VALID.is_valid(values)


@pytest.mark.parametrize("rule", [rule for rule in RANGES if rule not in CHOICES])
def test_numbers_have_the_ranges_of_the_table(rule: str) -> None:
    row, found = RANGES[rule], Draft202012Validator(at(rule))
    whole = "integer" in found.schema["type"]
    step = 1 if whole else 1e-3
    for value in (row.low - step, row.low, row.low + step, row.high - step, row.high, 2 * row.high):
        value = int(value) if whole else value
        assert found.is_valid(value) == row.holds(value), (rule, value)
    assert not found.is_valid("1")


@pytest.mark.parametrize("rule", CHOICES)
def test_choices_are_those_of_the_table(rule: str) -> None:
    assert f"'enum': {list(CHOICES[rule])}" in str(at(rule))


def test_studies_are_other_files() -> None:
    study = read_yaml(next((CONFIGS / "studies").glob("*.yaml")))
    assert not VALID.is_valid(study)
