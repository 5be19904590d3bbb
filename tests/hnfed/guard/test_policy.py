from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.config import load
from core.errors import UserError
from hnfed.guard.policy import Policy, PolicyError, read_policy, require_allowed
from server.provision import Federation, provision


@pytest.fixture(scope="module")
def plan():  # type: ignore[no-untyped-def]
    return load("smoke", [])[0].plan


def test_the_kits_template_is_the_default(tmp_path: Path) -> None:
    provision(Federation("hn", "x", 1, 2, ("nyu",), 30), tmp_path)
    assert read_policy(tmp_path / "nyu" / "policy.yaml") == Policy()


@pytest.mark.parametrize(
    "text",
    ["organ: any", "organs: []", "organs: Larynx", "share: [some]", "min_cell: 0", "min_cell: '3'",
     "scores: 1", "fewest_local_epochs: true", "scores: no", "counts: off", "min_cell: 010",
     "min_cell: 1e9", "longest_s: 1:30", "gpu_memory_share: 0", "gpu_memory_share: 1.5"],
)  # fmt: skip
def test_a_doubtful_policy_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match="policy"):
        read_policy(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"organs": ("Larynx",)}, "organs: Brainstem"),
        ({"share": ("none",)}, "share: all"),
        ({"share": ("all",)}, "share: none"),
        ({"models": ("unetr",)}, "models: res3dunet"),
        ({"fewest_local_epochs": 2}, "fewest_local_epochs: 1"),
        ({"min_cell": 12}, "min_cell: the plan publishes scores of 11 cases"),
    ],
)
def test_what_the_site_does_not_allow(plan, change, word: str) -> None:  # type: ignore[no-untyped-def]
    require_allowed(plan, "nyu", Policy(min_cell=1))
    with pytest.raises(PolicyError, match=word):
        require_allowed(plan, "nyu", replace(Policy(min_cell=1), **change))


def test_phases_of_other_sites_do_not_count(plan) -> None:  # type: ignore[no-untyped-def]
    require_allowed(plan, "miccai", Policy())
