from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.plan.load import load, read_yaml
from core.plan.schema import (
    Augment,
    Federation,
    Loss,
    Model,
    Phase,
    Plan,
    Preprocess,
    Strategy,
    Train,
    Weighting,
)
from hnfed.deploy.provision import Federation as Kits
from hnfed.deploy.provision import provision
from hnfed.guard.policy import Policy, PolicyError, augmentation, read_policy, require_plan
from hnfed.guard.rules import RANGES

ORGANS = ["Brainstem", "Parotid_L"]
OPEN = Policy(weights="any")  # for plans of two sites, or without sums


def plan(*phases: Phase, **changes: Any) -> Plan:
    made = Plan(
        preprocess=Preprocess(crop=[32, 16, 16], spacing_mm=[3.0, 6.0, 6.0]),
        model=Model(channels=[4, 8]),
        phases=list(phases) or [phase()],
    )
    return replace(made, **changes)


def phase(name: str = "p", **changes: Any) -> Phase:
    told: dict[str, Any] = {"name": name, "sites": ["nyu"], "organs": ORGANS, "rounds": 3}
    return Phase(**(told | changes))


def test_the_kits_template_is_the_default_and_names_every_key(tmp_path: Path) -> None:
    provision(Kits("hn", "x", 1, 2, ("nyu",), 30), tmp_path)
    path = tmp_path / "nyu" / "policy.yaml"
    assert read_policy(path) == Policy()
    assert set(read_yaml(path)) == {f.name for f in fields(Policy)}


def test_what_is_left_out_has_the_kits_value(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("organs: [Larynx]\nmodels: any\nfewest_cases: 20\nlargest_lr: 1\n")
    expected = Policy(organs=("Larynx",), models=(), fewest_cases=20, largest_lr=1.0)
    assert read_policy(path) == expected


@pytest.mark.parametrize(
    "text",
    ["organ: any", "organs: []", "organs: Larynx", "share: [some]", "min_cell: 0", "min_cell: '3'",
     "scores: 1", "gpu_memory_share: 1.5", "longest_s: 0", "plans: some", "approvers: 3",
     "sandbox: off", "secure_aggregation: true", "secure_aggregation_sites: 2", "fewest_cases: 8.5",
     "fewest_cases: true", "largest_lr: .nan", "largest_lr: -1", "optimizers: [lion]",
     "smallest_lr: 0.5", "plan_aliases: 0", "least_augmentation: 2", "models: [1]",
     "weights: yes", "scores: no", "counts: off", "min_cell: 1e9", "gpu_memory_share: 0"],
)  # fmt: skip
def test_nothing_runs_under_a_doubtful_policy(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=r"^policy: "):
        read_policy(tmp_path / "policy.yaml")


def test_every_number_has_a_range() -> None:
    numbers = {f.name for f in fields(Policy) if type(getattr(Policy(), f.name)) in (int, float)}
    assert numbers == set(RANGES)
    for name in numbers:
        low, high = RANGES[name]
        assert low <= getattr(Policy(), name) <= high


def test_a_plan_of_the_shipped_kind_passes() -> None:
    require_plan(plan(), "nyu", OPEN)


def test_the_policy_comes_before_everything() -> None:
    """M1: a plan none of whose phases names the site had its organs prepared and counted."""
    others = plan(phase(sites=["miccai"]))
    with pytest.raises(PolicyError, match="phases: none"):
        require_plan(others, "nyu", OPEN)
    mixed = plan(phase("a", organs=["Larynx"]), phase("b", sites=["miccai"]))
    with pytest.raises(PolicyError, match="organs: Brainstem, Parotid_L"):
        require_plan(mixed, "nyu", Policy(weights="any", organs=("Larynx",)))


def test_a_plans_own_spellings_are_refused() -> None:
    """They would widen `organs`, and tell which structure names exist."""
    wide = plan(organs={"Brainstem": {"aliases": ["Secret study ROI"]}})
    with pytest.raises(PolicyError, match=r"plan_aliases: .*Brainstem"):
        require_plan(wide, "nyu", Policy(weights="any", organs=tuple(ORGANS)))
    require_plan(wide, "nyu", Policy(weights="any", plan_aliases=True))
    require_plan(plan(organs={"Brainstem": {"colour": [1, 2, 3]}}), "nyu", OPEN)


def test_a_network_that_computes_numbers_as_it_is_made_is_counted_without_memory() -> None:
    """MONAI's SwinUNETR reads its rates of dropout, which a device without memory lacks."""
    args = {"feature_size": 12, "depths": [1, 1, 1, 1]}
    swin = plan(
        model=Model(name="SwinUNETR", args=args),
        preprocess=Preprocess(crop=[64, 64, 64], spacing_mm=[4.0, 4.0, 4.0]),
    )
    require_plan(swin, "nyu", replace(OPEN, models=()))
    with pytest.raises(PolicyError, match="most_parameters"):
        require_plan(swin, "nyu", replace(OPEN, models=(), most_parameters=1000))


BAD: dict[str, Callable[[], Plan]] = {
    "models": lambda: plan(model=Model(name="unetr")),
    "share": lambda: plan(phase(share="all")),
    "window": lambda: plan(preprocess=Preprocess(window_hu=[2900.0, 3000.0])),
    "smallest_crop_mm": lambda: plan(preprocess=Preprocess(spacing_mm=[3.0, 0.1, 1.0])),
    "largest_spacing_mm": lambda: plan(preprocess=Preprocess(spacing_mm=[40.0, 1.5, 1.5])),
    "most_crop_voxels": lambda: plan(preprocess=Preprocess(crop=[3000, 3000, 3000])),
    "most_channels": lambda: plan(model=Model(channels=[40_000, 8])),
    "most_parameters": lambda: plan(model=Model(channels=[512] * 6), preprocess=Preprocess()),
    "largest_stride": lambda: plan(model=Model(channels=[4, 8], strides=[[8, 8, 8]])),
    "fewest_voxels_channel": lambda: plan(model=Model(channels=[4, 16])),
    "largest_batch": lambda: plan(train=Train(batch=5)),
    "most_epochs": lambda: plan(phase(local_epochs=1000)),
    "fewest_local_epochs": lambda: plan(phase(local_epochs=1)),
    "optimizers": lambda: plan(train=Train(optimizer="sgd")),
    "smallest_lr": lambda: plan(phase(lr=1e-30)),
    "smallest_lr: phase p has 3 epochs": lambda: plan(train=Train(warmup_epochs=1e6)),
    "largest_proximal_mu": lambda: plan(
        federation=Federation(strategy=Strategy("fedprox", proximal_mu=10.0))
    ),
    "smallest_prior": lambda: plan(model=Model(channels=[4, 8], prior=1e-9)),
    "largest_lr": lambda: plan(train=Train(lr=0.5)),
    "smallest_clip_norm": lambda: plan(train=Train(clip_norm=1e-9)),
    "smallest_loss_weight: 1e-09": lambda: plan(
        loss=Loss(ce=1e-9, focal=1e-9, dice=1e-9, gdice=1e-9)
    ),
    "smallest_loss_weight: 0": lambda: plan(
        loss=Loss(ce=1.0, focal=0.0, dice=0.0, gdice=0.0), weighting=Weighting(terms="shift")
    ),
    "largest_clip_norm: 0": lambda: plan(train=Train(clip_norm=0.0)),
    "largest_clip_norm: 1000": lambda: plan(train=Train(clip_norm=1e6)),
    "least_augmentation": lambda: plan(augment=Augment(enabled=False)),
    "largest_augmentation: 41": lambda: plan(augment=Augment(translate_mm=[500.0, 8.0, 8.0])),
    "largest_augmentation: 125": lambda: plan(augment=Augment(brightness=10.0)),
    "largest_organ_ratio": lambda: plan(weighting=Weighting(organs={"Brainstem": 1e-9})),
    "largest_organ_ratio: ": lambda: plan(weighting=Weighting(by="dice", bound=1e6)),
    "fewest_cases": lambda: plan(phase(max_cases=1)),
    "fewest_cases: phases": lambda: plan(phase("a", max_cases=8), phase("b", max_cases=9)),
    "min_cell": lambda: plan(federation=Federation(min_cell=1)),
}


@pytest.mark.parametrize("key", BAD)
def test_what_goes_beyond_the_policy_is_refused_by_its_key(key: str) -> None:
    stricter: dict[str, dict[str, Any]] = {
        "share": {"share": ("none",)},
        "fewest_local_epochs": {"fewest_local_epochs": 2},
    }
    with pytest.raises(PolicyError, match=f"^({key}|smallest_lr, {key})"):
        require_plan(BAD[key](), "nyu", replace(OPEN, **stricter.get(key, {})))


def test_momentum_is_bounded_where_sgd_is_allowed() -> None:
    policy = Policy(weights="any", optimizers=("sgd",), largest_momentum=0.9)
    with pytest.raises(PolicyError, match="largest_momentum"):
        require_plan(plan(train=Train(optimizer="sgd", momentum=0.99)), "nyu", policy)
    require_plan(plan(train=Train(optimizer="sgd", momentum=0.9)), "nyu", policy)


@pytest.mark.parametrize(
    "changes",
    [{"max_cases": 1}, {"lr": 1e-30}],
)
def test_what_sends_no_weights_needs_no_floor(changes: dict[str, Any]) -> None:
    own = phase(share="none", **changes)
    made = plan(own, train=Train(optimizer="sgd", clip_norm=0.0), augment=Augment(enabled=False))
    require_plan(replace(made, federation=Federation(min_cell=1)), "nyu", OPEN)


def test_a_weak_deformation_is_none() -> None:
    assert augmentation(Augment()) == 0.9
    assert augmentation(Augment(enabled=False)) == 0
    assert augmentation(Augment(rotate_deg=[8.0, 8.0, 0.0])) == 0
    assert augmentation(Augment(elastic_mm=0.1)) == 0
    assert augmentation(Augment(scale=0.05, probability=0.3)) == 0.3


def sites_of(name: str) -> list[tuple[Plan, str]]:
    made = replace(load(name)[0].plan, federation=Federation())
    return [(made, site) for site in made.site_names]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("openkbp", {"weights": "any"}),
        ("smoke", {"weights": "any"}),
        ("demo", {"weights": "any", "least_augmentation": 0.05}),
    ],
)
def test_shipped_plans_pass_with_the_line_that_the_docs_name(
    name: str, line: dict[str, Any]
) -> None:
    for made, site in sites_of(name):
        require_plan(made, site, replace(Policy(), **line))
        for key in line:
            others = {k: v for k, v in line.items() if k != key}
            with pytest.raises(PolicyError, match=f"^{key}"):
                require_plan(made, site, replace(Policy(), **others))
    text = Path("docs/privacy.md").read_text(encoding="utf-8")
    for key, value in line.items():
        assert f"`{key}: {value}`" in text


def test_twelve_cases_of_the_constrictors_pass() -> None:
    organs = [f"Musc_Constrict_{level}" for level in "SMI"]
    own = phase("pcm", organs=organs, freeze="encoder", share="none", max_cases=12)
    require_plan(plan(phase("first"), own), "nyu", OPEN)


def test_weights_that_a_site_cannot_derive_are_refused_with_the_remedy() -> None:
    sites = ["a", "b", "nyu"]
    shared, sums = phase(sites=sites), Federation(secure_aggregation=True)
    require_plan(plan(shared, federation=sums), "nyu", Policy())
    with pytest.raises(PolicyError, match=r"^weights: .*secure_aggregation=true.*weights: any"):
        require_plan(plan(shared), "nyu", Policy())
    own = {"name": "own", "share": "none"}
    require_plan(plan(shared, phase(init="p", **own), federation=sums), "nyu", Policy())
    require_plan(plan(phase(**own)), "nyu", Policy())
    file = phase(init="sha256:" + "0" * 64, **own)
    with pytest.raises(PolicyError, match=r"^weights: .*init: sha256:0.*a file of weights"):
        require_plan(plan(file), "nyu", Policy())
    elsewhere = [phase(sites=["a", "b", "c"]), phase(init="p", **own)]
    with pytest.raises(PolicyError, match=r"^weights: .*init: p, a phase that this site has no"):
        require_plan(plan(*elsewhere, federation=sums), "nyu", Policy())
    require_plan(plan(*elsewhere, federation=sums), "nyu", OPEN)


@pytest.mark.parametrize(
    "window_hu",
    [[-1000.0, -200.0], [-200.0, 32_000.0], [-20_000.0, 300.0], [20.0, 80.0], [300.0, 3000.0]],
)
def test_a_window_that_shows_one_patient_alone_is_refused(window_hu: list[float]) -> None:
    """All who have nothing in such a window are one constant image: no gate of weights needed."""
    seen = plan(preprocess=replace(plan().preprocess, window_hu=window_hu))
    with pytest.raises(PolicyError, match=r"^window: .*preprocess.window_hu"):
        require_plan(seen, "nyu", OPEN)
    require_plan(seen, "nyu", replace(OPEN, window="any"))


@pytest.mark.parametrize("window_hu", [[-200.0, 300.0], [-100.0, 200.0], [-1024.0, 3071.0]])
def test_windows_for_soft_tissue_pass(window_hu: list[float]) -> None:
    require_plan(plan(preprocess=replace(plan().preprocess, window_hu=window_hu)), "nyu", OPEN)
