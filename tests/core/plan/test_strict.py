"""A value of another type than the plan's is named, never bent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.plan.load import load, typed
from core.plan.schema import Augment, Config, Train
from core.plan.strict import require_types


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"augment": {"enabled": 2}}, "augment.enabled"),
        ({"augment": {"enabled": "yes"}}, "augment.enabled"),
        ({"augment": {"enabled": 1}}, "augment.enabled"),
        ({"augment": {"enabled": "true"}}, "augment.enabled"),
        ({"train": {"lr": "0.01"}}, "train.lr"),
        ({"train": {"lr": True}}, "train.lr"),
        ({"train": {"batch": 1.0}}, "train.batch"),
        ({"train": {"batch": "010"}}, "train.batch"),
        ({"train": {"batch": "1_0"}}, "train.batch"),
        ({"model": {"strides": [[1, "2"]]}}, "model.strides.0.1"),
        ({"model": {"name": True}}, "model.name"),
        ({"model": {"args": {"res_block": "off"}}}, "model.args.res_block"),
        ({"model": {"args": {"a": [{"b": "No"}]}}}, "model.args.a.0.b"),
        ({"phases": [{"name": "a"}, {"lr": "1e-3"}]}, "phases.1.lr"),
        ({"phases": [{"thaw": {"encoder": True}}]}, "phases.0.thaw.encoder"),
        ({"simulation": {"sites": {"s": {"splits": {"train": [1.5]}}}}},
         "simulation.sites.s.splits.train.0"),
        ({"simulation": {"sites": {"s": {"exclude": [True]}}}}, "simulation.sites.s.exclude.0"),
        ({"simulation": {"sites": {"s": {"split": {"seed": "1"}}}}},
         "simulation.sites.s.split.seed"),
    ],
)  # fmt: skip
def test_nothing_is_bent(values: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        require_types(Config, values)
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_whole_number_may_stand_for_a_name_and_for_a_fraction() -> None:
    require_types(Config, {"simulation": {"sites": {"s": {"splits": {"train": [4, "04"]}}}}})
    require_types(Config, {"train": {"lr": 1}, "phases": [{"max_cases": None, "lr": None}]})
    require_types(Config, {"organs": {"Organ": {"aliases": ["on", "no"]}}})
    assert typed(Train, {"lr": 1}, "train").lr == 1.0
    with pytest.raises(UserError, match="true or false"):
        typed(Augment, {"enabled": 2}, "augment")


def test_a_file_names_the_key_and_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("augment: {enabled: 2}\n")
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        load(str(path))
    assert (caught.value.field, caught.value.value) == ("augment.enabled", 2)
