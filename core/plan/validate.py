"""What makes no sense in a plan is said before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from core.errors import UserError
from core.identifiers import organ_name, phase_name, site_name
from core.organs.vocabulary import one_sided, require_known, vocabulary
from core.plan.candidates import KINDS
from core.plan.ranges import MAX_EPOCHS, MAX_PHASES, PORT, require_in_range
from core.plan.schema import LOSS_TERMS, SHARES, SPLITS, STRATEGIES, Config, Phase, Plan, Simulation
from core.plan.secure import check_secure

MAX_ORGANS = 32  # bits of a cache entry
PUBLISHED = tuple(f"table{i}" for i in range(1, 9))  # tables of the paper, by `hnfed.report`
FREEZE = ("none", "encoder", "decoder", "all-but-head")
# Values that are one of a few, as `core.plan.ranges.RANGES` names numbers; of a list each entry, of
# a mapping each key.
CHOICES: Mapping[str, Collection[Any]] = {
    "model.norm": ("instance", "group"),
    "loss.form": ("categorical", "one_vs_rest"),
    "loss.class_weight": ("paper", "sqrt", "prediction", "none"),
    "train.optimizer": ("adamw", "sgd"),
    "train.schedule": ("poly", "cosine", "constant"),
    "train.amp": ("off", "bf16", "fp16", "auto"),
    "train.matmul": ("highest", "high", "medium"),
    "augment.device": ("cpu", "site"),
    "weighting.terms": ("static", "shift"),
    "weighting.by": ("static", "dice"),
    "phases.*.share": SHARES,
    "phases.*.freeze": FREEZE,
    "phases.*.head_init": ("random", "background", "mean"),
    "phases.*.candidates": KINDS,
    "federation.strategy.name": STRATEGIES,
    "federation.update_bits": (8, 16, 32),
    "federation.guards.norm": ("clip", "reject", "off"),
    "simulation.engine": ("ray", "inline"),
    "simulation.baseline": ("", "local-only", "pooled"),
    "simulation.published": PUBLISHED,
    "simulation.sites.*.splits": SPLITS,
    "simulation.sites.*.absent": ("refuse", "count"),
}


def check(plan: Plan) -> None:
    """Raises `UserError` naming key, value and remedy for the first thing that cannot work."""
    _require_choices(plan, "", "")
    require_in_range(plan)
    _check_sections(plan)
    if not plan.phases:
        raise UserError("phases", "[]", "write at least one phase with name, sites and organs")
    if len(plan.phases) > MAX_PHASES:
        raise UserError("phases", len(plan.phases), f"write at most {MAX_PHASES}")
    known = vocabulary(plan.organs)
    for i, phase in enumerate(plan.phases):
        _check_phase(plan, i, phase)
        require_known(phase.organs, known, f"phases.{phase.name}.organs")
    check_secure(plan)
    if isinstance(plan, Config):
        _check_simulation(plan, plan.simulation)


def _check_sections(plan: Plan) -> None:
    pre = plan.preprocess
    if len(pre.spacing_mm) != 3:
        raise UserError("preprocess.spacing_mm", pre.spacing_mm, "give three mm: [z, y, x]")
    if len(pre.crop) != 3:
        raise UserError("preprocess.crop", pre.crop, "give three sizes: [z, y, x]")
    if len(pre.window_hu) != 2 or pre.window_hu[0] >= pre.window_hu[1]:
        raise UserError("preprocess.window_hu", pre.window_hu, "give [low, high] with low < high")
    if len(plan.augment.rotate_deg) != 3 or len(plan.augment.translate_mm) != 3:
        raise UserError("augment", "rotate_deg, translate_mm", "give three numbers each: [z, y, x]")
    if not any(getattr(plan.loss, term) for term in LOSS_TERMS):
        raise UserError("loss", ", ".join(LOSS_TERMS), "give at least one a weight above 0")
    if plan.loss.class_weight == "prediction" and plan.loss.form != "one_vs_rest":
        raise UserError(
            "loss.class_weight",
            "prediction",
            "write loss.form: one_vs_rest, or paper, sqrt or none",
            problem="weights from the prediction belong to the paper's form",
        )
    bits = plan.federation.update_bits
    if bits != 32 and plan.federation.strategy.name == "dp":
        problem = "a rounded update may be longer than clip_norm, to which the noise is measured"
        remedy = "write 32 for strategy dp"
        raise UserError("federation.update_bits", bits, remedy, problem=problem)
    factor = plan.federation.round_timeout_factor
    if factor != 0 and factor < 1:
        remedy = "give 0 (off), or a number of at least 1"
        raise UserError("federation.round_timeout_factor", factor, remedy)
    if len(plan.organ_names) > MAX_ORGANS:
        raise UserError(
            "phases.organs", len(plan.organ_names), f"use at most {MAX_ORGANS} organs in one plan"
        )
    for organ, weight in plan.weighting.organs.items():
        if organ not in plan.organ_names:
            remedy = f"name one of {plan.organ_names}"
            raise UserError(f"weighting.organs.{organ}", weight, remedy)


def _check_phase(plan: Plan, index: int, phase: Phase) -> None:
    key = f"phases.{phase.name}"
    earlier = [p.name for p in plan.phases[:index]]
    phase_name(phase.name, f"phases.{index}.name")
    if phase.name in earlier:
        raise UserError(f"phases.{index}.name", phase.name, "give each phase its own name")
    if not phase.organs or len(set(phase.organs)) != len(phase.organs):
        raise UserError(f"{key}.organs", phase.organs, "list each organ once, at least one")
    if not phase.sites or len(set(phase.sites)) != len(phase.sites):
        raise UserError(f"{key}.sites", phase.sites, "list each site once, at least one")
    for site in phase.sites:
        site_name(site, f"{key}.sites")
    for organ in phase.organs:
        organ_name(organ, f"{key}.organs")
    applied = phase.init != "scratch" and phase.share != "none"
    if phase.rounds < 1 and not applied:
        raise UserError(f"{key}.rounds", phase.rounds, "give a whole number >= 1")
    epochs = phase.rounds * phase.local_epochs
    if epochs > MAX_EPOCHS:
        raise UserError(
            f"{key}.rounds",
            phase.rounds,
            f"choose rounds x local_epochs of at most {MAX_EPOCHS}",
            problem=f"{epochs} epochs at each site",
        )
    alone = one_sided(phase.organs)
    if phase.average_mirrored and alone:
        raise UserError(
            f"{key}.average_mirrored",
            True,
            f"add the other side to {key}.organs, or set it to false",
            problem=f"of {', '.join(alone)} the phase has one side only",
        )
    whole = [phase.freeze] if isinstance(phase.freeze, str) else list(phase.freeze)
    if "all-but-head" in whole:
        whole += ["encoder", "decoder"]
    for part, start in phase.thaw.items():
        if start > phase.rounds:
            raise UserError(f"{key}.thaw.{part}", start, f"give a round up to {phase.rounds}")
        if start == 1 and (part in whole or "none" in whole):
            raise UserError(
                f"{key}.thaw.{part}",
                start,
                f"give a later round, up to {phase.rounds}, or do not freeze {part}",
                problem="what trains from the first round on is not frozen",
            )
    _check_kept(key, phase)
    for name in ("average_last", "test_rounds"):
        if getattr(phase, name) and phase.share != "none":
            raise UserError(
                f"{key}.{name}",
                getattr(phase, name),
                "leave it out, or write share: none",
                problem="it is for phases whose weights stay at their site",
            )
    if any(r > phase.rounds for r in phase.test_rounds):
        remedy = f"list rounds from 1 to {phase.rounds}"
        raise UserError(f"{key}.test_rounds", phase.test_rounds, remedy)
    if phase.head_init != "random" and phase.init == "scratch":
        raise UserError(
            f"{key}.head_init",
            phase.head_init,
            "write random, or start from an earlier phase",
            problem="from scratch there is no head to take rows from",
        )
    is_file = phase.init.startswith("sha256:") or phase.init.endswith(".safetensors")
    if phase.init != "scratch" and phase.init not in earlier and not is_file:
        raise UserError(
            f"{key}.init",
            phase.init,
            f"'scratch', an earlier phase ({', '.join(earlier) or 'there is none'}), "
            "or the path of a .safetensors checkpoint",
        )
    before = next((p for p in plan.phases[:index] if p.name == phase.init), None)
    if phase.candidates:
        _check_candidates(key, phase, before)
    if before is None or not before.best_at_site:
        return
    if set(phase.sites) - set(before.sites):
        raise UserError(
            f"{key}.init", phase.init, f"that phase leaves weights only at {before.sites}"
        )
    if phase.share != "none":
        raise UserError(
            f"{key}.init",
            phase.init,
            "write share: none here too, or start from a phase that shares its weights",
            problem="personal weights never leave their site",
        )


def _check_kept(key: str, phase: Phase) -> None:
    """What a site keeps in a shared phase: parts of the network, or a whole one of its own."""
    own = [k for k in ("keep", "ditto") if getattr(phase, k) not in ([], None)]
    if own and phase.share == "none":
        raise UserError(
            f"{key}.{own[0]}",
            getattr(phase, own[0]),
            "leave it out, or write share: all",
            problem="with share: none everything stays at the site anyway",
        )
    if len(own) == 2:
        raise UserError(
            f"{key}.ditto", phase.ditto, f"leave out {key}.keep: ditto keeps a whole network"
        )
    if phase.keep_epochs >= phase.local_epochs or (phase.keep_epochs and not phase.keep):
        raise UserError(
            f"{key}.keep_epochs",
            phase.keep_epochs,
            f"give a number from 0 to below local_epochs ({phase.local_epochs}), with {key}.keep",
        )


def _check_candidates(key: str, phase: Phase, before: Phase | None) -> None:
    if len(set(phase.candidates)) != len(phase.candidates) or phase.candidates == ["global"]:
        raise UserError(
            f"{key}.candidates", phase.candidates, "list each once, at least one beside 'global'"
        )
    if phase.share != "none":
        raise UserError(
            f"{key}.share",
            phase.share,
            "write share: none, or leave candidates out",
            problem="candidates are trained at each site alone",
        )
    if before is None or before.best_at_site:
        raise UserError(
            f"{key}.init",
            phase.init,
            "name an earlier phase that shares its weights: candidates are compared with those",
        )
    absent = [o for o in phase.organs if o not in before.organs]
    if "global" in phase.candidates and absent:
        raise UserError(
            f"{key}.candidates",
            "global",
            f"leave global out, or take these organs out of {key}.organs",
            problem=f"{before.name} does not contour {', '.join(absent)}",
        )


def _check_simulation(plan: Plan, simulation: Simulation) -> None:
    require_known(simulation.volumes, vocabulary(plan.organs), "simulation.volumes")
    for organ in simulation.volumes:
        if organ not in plan.organ_names:
            raise UserError(
                "simulation.volumes",
                organ,
                f"take it out, or choose from {', '.join(plan.organ_names)}",
                problem="no phase contours it",
            )
    require_address(simulation)
    if simulation.ray and simulation.engine != "ray":
        remedy = "add simulation.engine=ray, or leave simulation.ray out"
        raise UserError("simulation.ray", simulation.ray, remedy, problem="the engine is inline")
    spacing = simulation.phantom_spacing_mm
    if len(spacing) != 3:
        raise UserError("simulation.phantom_spacing_mm", spacing, "give three mm: [z, y, x]")
    for name, site in simulation.sites.items():
        site_name(name, f"simulation.sites.{name}")
        roots = site.root if isinstance(site.root, list) else [site.root]
        if not all(isinstance(root, str) for root in roots):
            remedy = "give a folder, or a list of folders"
            raise UserError(f"simulation.sites.{name}.root", site.root, remedy)
        if bool(site.phantom) == bool(site.root):
            raise UserError(
                f"simulation.sites.{name}", site.root or site.phantom, "give 'root' or 'phantom'"
            )


def require_address(simulation: Simulation) -> None:
    """Requires that `ray` is an address; whether a cluster answers there is asked by who joins it.

    Raises:
        UserError: it is none.
    """
    address = simulation.ray
    host, _, port = address.rpartition(":")
    if address not in ("", "auto") and not (
        host and not set(host) & set("/ \t@") and port.isdecimal() and PORT.holds(int(port))
    ):
        remedy = "give HOST:PORT of the cluster's head, auto, or nothing for a Ray of the run's own"
        raise UserError("simulation.ray", address, remedy)


def require_simulated(config: Config) -> None:
    """Requires that every site of the plan is one of the simulation; a federation has its own.

    Raises:
        UserError: names the sites that are missing.
    """
    known = set(config.simulation.sites)
    if config.simulation.baseline == "pooled":
        known |= {"pooled"}  # a run's own config.yaml
    if missing := sorted(set(config.site_names) - known):
        raise UserError(
            "phases.sites",
            ", ".join(missing),
            f"define it under simulation.sites, or use one of {sorted(config.simulation.sites)}",
            problem="no such site in this simulation",
        )


def _require_choices(value: Any, rule: str, key: str) -> None:
    """Requires of each value that has `CHOICES` one of them; of a list each, of a mapping each key.

    Stages to be frozen may be listed by name instead.
    """
    if rule in CHOICES:
        listed = rule == "phases.*.freeze" and isinstance(value, list)
        given = value if isinstance(value, list | dict) else [value]
        for item in () if listed else given:
            if item not in CHOICES[rule]:
                remedy = f"use one of: {', '.join(repr(a) for a in CHOICES[rule])}"
                raise UserError(key, item, remedy)
    elif dataclasses.is_dataclass(value):
        for name in (field.name for field in dataclasses.fields(value)):
            inner = (f"{above}.{name}" if above else name for above in (rule, key))
            _require_choices(getattr(value, name), *inner)
    elif isinstance(value, dict):
        for name, item in value.items():
            _require_choices(item, f"{rule}.*", f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_choices(item, f"{rule}.*", f"{key}.{getattr(item, 'name', index)}")
