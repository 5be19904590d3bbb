"""What a plan may do at a site, whatever it says: held against ``policy.yaml`` before any data.

The rules are read in `hnfed.guard.rules`; what can be told only from the cases is held against them
in `hnfed.guard.floors`, what a reply says in `hnfed.guard.hiding`.
"""

from __future__ import annotations

import functools
import itertools
import math

from core.errors import UserError
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import LOSS_TERMS, Augment, Phase, Plan
from core.secure.layout import summed_sites
from hnfed.guard.floors import require_entries, require_order
from hnfed.guard.hiding import hidden
from hnfed.guard.outline import outline
from hnfed.guard.rules import Policy, PolicyError, read_policy

__all__ = ["Policy", "PolicyError", "hidden", "read_policy"]
__all__ += ["require_entries", "require_order", "require_plan"]
SOFT_HU = (-100.0, 200.0)  # fat to enhanced soft tissue
LOWEST_HU, HIGHEST_HU = -1100.0, 3100.0  # of a CT of 12 bits
HALF = 0.5  # of the shipped strength, what a deformation must have to count as one


def require_plan(plan: Plan, site: str, policy: Policy) -> None:
    """Requires that a plan is one that the policy allows; nothing of the site is read for it.

    The whole plan counts where the site would read data for it (organs, preprocessing, network),
    the phases of the site elsewhere.

    Raises:
        PolicyError: names the key; it stays in the site's log.
    """
    own = [phase for phase in plan.phases if site in phase.sites]
    if not own:
        raise PolicyError("phases: none of the plan's phases is for this site")
    _require_sums(plan, site, policy)
    if policy.weights == "agreed":
        _require_derivable(plan, site, own)
    _require_organs(plan, policy)
    _require_view(plan, policy)
    _require_size(plan, own, policy)
    for phase in own:
        if phase.share not in policy.share:
            raise PolicyError(f"share: {phase.share} in phase {phase.name}")
        if phase.local_epochs < policy.fewest_local_epochs:
            raise PolicyError(f"fewest_local_epochs: {phase.local_epochs} in phase {phase.name}")
        if phase.rounds * phase.local_epochs > policy.most_epochs:
            epochs = phase.rounds * phase.local_epochs
            raise PolicyError(f"most_epochs: {epochs} in phase {phase.name}")
        if phase.share != "none":
            _require_shared(plan, phase, policy)
    _require_apart(own, policy)


def _require_organs(plan: Plan, policy: Policy) -> None:
    """All organs of the plan are prepared, those of other sites' phases too."""
    if policy.organs and (wrong := [o for o in plan.organ_names if o not in policy.organs]):
        raise PolicyError(f"organs: {', '.join(wrong)}")
    widened = [o for o, told in plan.organs.items() if (told or {}).get("aliases")]
    if widened and not policy.plan_aliases:
        raise PolicyError(
            f"plan_aliases: the plan brings spellings of its own for {', '.join(map(str, widened))}"
        )


def _require_view(plan: Plan, policy: Policy) -> None:
    """What the network sees of a patient is what it sees of all: soft tissue of a head and neck."""
    seen = plan.preprocess
    low, high = seen.window_hu
    if policy.window == "soft-tissue" and not (
        LOWEST_HU <= low <= SOFT_HU[0] and SOFT_HU[1] <= high <= HIGHEST_HU
    ):
        raise PolicyError(
            f"window: {seen.window_hu} (the coordinator: preprocess.window_hu from at most "
            f"{SOFT_HU[0]:g} to at least {SOFT_HU[1]:g}, within {LOWEST_HU:g} to {HIGHEST_HU:g})"
        )
    crop_mm = [n * step for n, step in zip(seen.crop, seen.spacing_mm, strict=True)]
    if min(crop_mm) < policy.smallest_crop_mm:
        raise PolicyError(f"smallest_crop_mm: {crop_mm}")
    if max(seen.spacing_mm) > policy.largest_spacing_mm:
        raise PolicyError(f"largest_spacing_mm: {seen.spacing_mm}")


def _require_size(plan: Plan, own: list[Phase], policy: Policy) -> None:
    model = plan.model
    if policy.models and model.name not in policy.models:
        raise PolicyError(f"models: {model.name}")
    if math.prod(plan.preprocess.crop) > policy.most_crop_voxels:
        raise PolicyError(f"most_crop_voxels: {plan.preprocess.crop}")
    if max(model.channels, default=0) > policy.most_channels or len(model.channels) > 16:
        raise PolicyError(f"most_channels: {model.channels}")
    steps = [step for level in model.strides or [] for step in level]
    if max(steps, default=1) > policy.largest_stride:
        raise PolicyError(f"largest_stride: {model.strides}")
    if plan.train.batch > policy.largest_batch:
        raise PolicyError(f"largest_batch: {plan.train.batch}")
    if plan.train.threads > 1024:
        raise PolicyError(f"threads: {plan.train.threads}")
    for phase in own:
        if (size := parameters_of(plan, phase)) > policy.most_parameters:
            raise PolicyError(f"most_parameters: {size} in phase {phase.name}")


def parameters_of(plan: Plan, phase: Phase) -> int:
    """Numbers that the network of a phase has; `PolicyError` where it cannot be made."""
    return _parameters(plan_json(plan), phase.name)


@functools.lru_cache(32)
def _parameters(plan: str, phase: str) -> int:
    try:
        made = plan_from_json(plan)
        model = outline(made, made.phase(phase))
    except UserError as error:
        raise PolicyError(f"model: {error}") from error
    return sum(p.numel() for p in model.parameters())


def _require_shared(plan: Plan, phase: Phase, policy: Policy) -> None:
    """What an update that leaves must be made with, as far as the plan tells."""
    settings, name = plan.train, phase.name
    if plan.federation.min_cell < policy.min_cell:
        raise PolicyError(
            f"min_cell: the plan publishes scores of {plan.federation.min_cell} cases or more, "
            f"policy.yaml asks for at least {policy.min_cell} (the coordinator: "
            f"federation.min_cell={policy.min_cell})"
        )
    if phase.rounds == 0:
        return
    if settings.optimizer not in policy.optimizers:
        raise PolicyError(f"optimizers: {settings.optimizer}")
    rate = settings.lr if phase.lr is None else phase.lr
    if not policy.smallest_lr <= rate <= policy.largest_lr:
        raise PolicyError(f"smallest_lr, largest_lr: {rate} in phase {name}")
    if 2 * settings.warmup_epochs > (epochs := phase.rounds * phase.local_epochs):
        raise PolicyError(
            f"smallest_lr: phase {name} has {epochs} epochs and a warm-up of "
            f"{settings.warmup_epochs:g}, so the rate stays below it (the coordinator: "
            f"train.warmup_epochs={epochs / 2:g} or less)"
        )
    _require_steps_count(plan, policy)
    if settings.optimizer == "sgd" and settings.momentum > policy.largest_momentum:
        raise PolicyError(f"largest_momentum: {settings.momentum}")
    if 0 < settings.clip_norm < policy.smallest_clip_norm:
        raise PolicyError(f"smallest_clip_norm: {settings.clip_norm}")
    if (weight := loss_weight(plan)) < policy.smallest_loss_weight:
        raise PolicyError(f"smallest_loss_weight: {weight:.3g}")
    if not 0 < settings.clip_norm <= policy.largest_clip_norm:
        raise PolicyError(f"largest_clip_norm: {settings.clip_norm} (0 clips nothing)")
    if (share := augmentation(plan.augment)) < policy.least_augmentation:
        raise PolicyError(
            f"least_augmentation: {share} (the coordinator: "
            f"augment.probability={policy.least_augmentation} or more)"
        )
    if (strongest := strength(plan.augment)) > policy.largest_augmentation:
        raise PolicyError(
            f"largest_augmentation: {strongest:.3g} times the shipped strength: what is moved out "
            "of the crop, or bleached, leaves the others alone"
        )
    widest = max(plan.model.channels, default=1)
    if math.prod(plan.preprocess.crop) < policy.fewest_voxels_channel * widest:
        raise PolicyError(
            f"fewest_voxels_channel: a crop of {plan.preprocess.crop} for {widest} channels"
        )
    weights = [1.0, *(plan.weighting.organs.get(o, 1.0) for o in phase.organs)]
    bound = plan.weighting.bound if plan.weighting.by == "dice" else 1.0
    if min(weights) <= 0 or max(weights) / min(weights) * bound > policy.largest_organ_ratio:
        raise PolicyError(f"largest_organ_ratio: {weights}, times {bound}, in phase {name}")
    if phase.max_cases is not None and phase.max_cases < policy.fewest_cases:
        raise PolicyError(f"fewest_cases: max_cases is {phase.max_cases} in phase {name}")


def _require_steps_count(plan: Plan, policy: Policy) -> None:
    """No setting may undo that an update is made of several steps, none of them linear."""
    strategy = plan.federation.strategy
    if strategy.name == "fedprox" and strategy.proximal_mu > policy.largest_proximal_mu:
        raise PolicyError(
            f"largest_proximal_mu: {strategy.proximal_mu:g}: so strong a pull leaves of a round's "
            "steps the first alone"
        )
    if plan.model.prior < policy.smallest_prior:
        raise PolicyError(
            f"smallest_prior: {plan.model.prior:g}: gradients of Dice terms are then below Adam's "
            "epsilon"
        )


def _require_apart(own: list[Phase], policy: Policy) -> None:
    """Two updates over nearly the same cases would tell of those that only one of them has."""
    most = sorted({p.max_cases for p in own if p.share != "none" and p.max_cases is not None})
    for fewer, more in itertools.pairwise(most):
        if more - fewer < policy.fewest_cases:
            raise PolicyError(
                f"fewest_cases: phases with max_cases {fewer} and {more} differ by fewer cases"
            )


def _require_sums(plan: Plan, site: str, policy: Policy) -> None:
    """Sums over sites where the policy requires them, and sums over enough of them."""
    if not plan.federation.secure_aggregation:
        if policy.secure_aggregation == "required":
            raise PolicyError(
                "secure_aggregation: required, and the plan does not ask for it (the coordinator: "
                "federation.secure_aggregation=true)"
            )
        return
    sites = summed_sites(plan)
    if site in sites and len(sites) < policy.secure_aggregation_sites:
        raise PolicyError(
            f"secure_aggregation_sites: {policy.secure_aggregation_sites}, and the plan has "
            f"{len(sites)} sites (the coordinator: add sites to the plan's phases; or write a "
            "smaller number into policy.yaml)"
        )


def _require_derivable(plan: Plan, site: str, own: list[Phase]) -> None:
    """Weights that a site is to derive itself follow from the seed, sums, and phases it was in."""
    known = {phase.name: phase for phase in plan.phases}
    for phase in own:
        if phase.share != "none" and not plan.federation.secure_aggregation:
            raise PolicyError(
                f"weights: agreed, and phase {phase.name} has share: {phase.share} without sums, "
                "so nothing shows here how its weights were made (the coordinator: "
                "federation.secure_aggregation=true, with three sites or more; or this site writes "
                "weights: any into policy.yaml: whoever takes over the coordinator's machine can "
                "then send weights that make a reply show one CT)"
            )
        before = known.get(phase.init)
        if phase.init == "scratch" or (before is not None and site in before.sites):
            continue
        origin = "a file of weights" if before is None else "a phase that this site has no part in"
        raise PolicyError(
            f"weights: agreed, and phase {phase.name} has init: {phase.init[:24]}, {origin}, so "
            "this site cannot tell what made them (the coordinator: begin with scratch, or with a "
            "phase of this site; or this site writes weights: any into policy.yaml)"
        )


def loss_weight(plan: Plan) -> float:
    """Weight of the heaviest loss term, in the round in which that is the least."""
    weights = {term: float(getattr(plan.loss, term)) for term in LOSS_TERMS}
    if plan.weighting.terms == "static":
        return max(weights.values())
    moving = min(weights.pop("ce"), weights.pop("focal"))  # from one to the other
    return max(*weights.values(), moving / 2)


def augmentation(settings: Augment) -> float:
    """Probability with which a case is deformed; 0 where the deformation is a weak one.

    That of other intensities is a plan's own: they hide no case.
    """
    strong = all(share >= HALF for share in _deformations(settings))
    return settings.probability if settings.enabled and strong else 0.0


def strength(settings: Augment) -> float:
    """How many times as strong as the shipped one the augmentation is, where that is the most."""
    shipped = Augment()
    names = ("noise", "brightness", "contrast", "gamma")
    intensities = [getattr(settings, name) / getattr(shipped, name) for name in names]
    return max(*_deformations(settings), *intensities) if settings.enabled else 0.0


def _deformations(settings: Augment) -> list[float]:
    shipped = Augment()
    pairs = [
        *zip(settings.rotate_deg, shipped.rotate_deg, strict=True),
        *zip(settings.translate_mm, shipped.translate_mm, strict=True),
        (settings.scale, shipped.scale),
        (settings.elastic_mm, shipped.elastic_mm),
    ]
    return [ours / theirs for ours, theirs in pairs]
