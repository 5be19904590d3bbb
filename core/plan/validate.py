"""What makes no sense in a plan is said before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from core.errors import UserError
from core.identifiers import organ_name, phase_name, site_name
from core.organs.vocabulary import one_sided, require_known, vocabulary
from core.plan.candidates import KINDS
from core.plan.paper_tables import TABLES
from core.plan.ranges import MAX_EPOCHS, MAX_PHASES, finite, numbers, require_in_range
from core.plan.schema import LOSS_TERMS, STRATEGIES, Config, Phase, Plan, Simulation
from core.plan.secure import check_secure

MAX_ORGANS = 32  # bits of a cache entry
FREEZE = ("none", "encoder", "decoder", "all-but-head")
# Values that are one of a few, as `core.plan.ranges.RANGES` names numbers; of a list each entry, of
# a mapping each key.
CHOICES: Mapping[str, Collection[str]] = {
    "model.norm": ("instance", "group"),
    "loss.form": ("categorical", "one_vs_rest"),
    "loss.class_weight": ("paper", "sqrt", "none"),
    "train.optimizer": ("adamw", "sgd"),
    "train.schedule": ("poly", "cosine", "constant"),
    "train.amp": ("off", "bf16", "fp16"),
    "weighting.terms": ("static", "shift"),
    "weighting.by": ("static", "dice"),
    "phases.*.share": ("all", "trainable", "none"),
    "phases.*.freeze": FREEZE,
    "phases.*.head_init": ("random", "background", "mean"),
    "phases.*.candidates": KINDS,
    "federation.strategy.name": STRATEGIES,
    "federation.guards.norm": ("clip", "reject", "off"),
    "simulation.engine": ("ray", "inline"),
    "simulation.baseline": ("", "local-only", "pooled"),
    "simulation.published": tuple(TABLES),
    "simulation.sites.*.splits": ("train", "val", "test"),
    "simulation.sites.*.absent": ("refuse", "count"),
}


def check(plan: Plan) -> None:
    """Raises `UserError` naming key, value and remedy for the first thing that cannot work."""
    for _, key, number in numbers(dataclasses.asdict(plan), "", ""):
        if not finite(number):
            raise UserError(key, number, "give a finite number")
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
    require_in_range(plan)


def _check_sections(plan: Plan) -> None:
    pre = plan.preprocess
    _one_of("model.norm", plan.model.norm)
    _one_of("loss.form", plan.loss.form)
    _one_of("loss.class_weight", plan.loss.class_weight)
    _one_of("train.optimizer", plan.train.optimizer)
    _one_of("train.schedule", plan.train.schedule)
    _one_of("train.amp", plan.train.amp)
    _one_of("federation.strategy.name", plan.federation.strategy.name)
    if len(pre.spacing_mm) != 3 or min(pre.spacing_mm) <= 0:
        raise UserError(
            "preprocess.spacing_mm", pre.spacing_mm, "give three positive mm: [z, y, x]"
        )
    if len(pre.crop) != 3 or min(pre.crop) < 8:
        raise UserError("preprocess.crop", pre.crop, "give three sizes of at least 8: [z, y, x]")
    if len(pre.window_hu) != 2 or pre.window_hu[0] >= pre.window_hu[1]:
        raise UserError("preprocess.window_hu", pre.window_hu, "give [low, high] with low < high")
    if len(plan.augment.rotate_deg) != 3 or len(plan.augment.translate_mm) != 3:
        raise UserError("augment", "rotate_deg, translate_mm", "give three numbers each: [z, y, x]")
    terms = [getattr(plan.loss, term) for term in LOSS_TERMS]
    if min(terms) < 0 or not any(terms):
        raise UserError("loss", ", ".join(LOSS_TERMS), "give weights >= 0, at least one above 0")
    _one_of("federation.guards.norm", plan.federation.guards.norm)
    factor = plan.federation.round_timeout_factor
    if factor != 0 and factor < 1:
        remedy = "give 0 (off), or a number of at least 1"
        raise UserError("federation.round_timeout_factor", factor, remedy)
    if plan.federation.guards.norm_factor < 1:
        value = plan.federation.guards.norm_factor
        raise UserError("federation.guards.norm_factor", value, "give a number of at least 1")
    if plan.federation.round_retries < 0 or plan.federation.min_sites < 0:
        raise UserError("federation", "round_retries, min_sites", "give numbers >= 0")
    if len(plan.organ_names) > MAX_ORGANS:
        raise UserError(
            "phases.organs", len(plan.organ_names), f"use at most {MAX_ORGANS} organs in one plan"
        )
    positive = {
        "augment.elastic_spacing_mm": plan.augment.elastic_spacing_mm,
        "train.lr": plan.train.lr,
        "train.batch": plan.train.batch,
        "federation.round_timeout_s": plan.federation.round_timeout_s,
        "federation.query_timeout_s": plan.federation.query_timeout_s,
        "federation.prepare_timeout_s": plan.federation.prepare_timeout_s,
        "federation.min_cell": plan.federation.min_cell,
    }
    for key, number in positive.items():
        if number <= 0:
            raise UserError(key, number, "give a number above 0")
    if not 0 <= plan.augment.mirror <= 1:
        raise UserError("augment.mirror", plan.augment.mirror, "give a share in [0, 1]")
    if not 0 < plan.model.prior < 1:
        raise UserError("model.prior", plan.model.prior, "give a probability in (0, 1)")
    _one_of("weighting.terms", plan.weighting.terms)
    if not 0 < plan.weighting.shift_end <= 1:
        raise UserError(
            "weighting.shift_end", plan.weighting.shift_end, "give a share of the phase in (0, 1]"
        )
    _one_of("weighting.by", plan.weighting.by)
    if plan.weighting.bound < 1:
        raise UserError("weighting.bound", plan.weighting.bound, "give a number >= 1")
    if not 0 <= plan.weighting.smoothing < 1:
        raise UserError(
            "weighting.smoothing", plan.weighting.smoothing, "give a share in [0, 1): 0 for none"
        )
    for organ, weight in plan.weighting.organs.items():
        if organ not in plan.organ_names or weight < 0:
            raise UserError(
                f"weighting.organs.{organ}",
                weight,
                f"give a weight >= 0 of one of {plan.organ_names}",
            )


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
    for field in ("rounds", "local_epochs", "patience"):
        if field == "rounds" and phase.rounds == 0 and applied:
            continue
        if getattr(phase, field) < 1:
            raise UserError(f"{key}.{field}", getattr(phase, field), "give a whole number >= 1")
    epochs = phase.rounds * phase.local_epochs
    if epochs > MAX_EPOCHS:
        raise UserError(
            f"{key}.rounds",
            phase.rounds,
            f"choose rounds x local_epochs of at most {MAX_EPOCHS}",
            problem=f"{epochs} epochs at each site",
        )
    if phase.max_cases is not None and phase.max_cases < 1:
        raise UserError(
            f"{key}.max_cases", phase.max_cases, "give a whole number >= 1, or leave it out"
        )
    if phase.lr is not None and phase.lr <= 0:
        raise UserError(f"{key}.lr", phase.lr, "give a number above 0, or leave it out")
    alone = one_sided(phase.organs)
    if phase.average_mirrored and alone:
        raise UserError(
            f"{key}.average_mirrored",
            True,
            f"add the other side to {key}.organs, or set it to false",
            problem=f"of {', '.join(alone)} the phase has one side only",
        )
    _one_of("phases.*.share", phase.share, key)
    if isinstance(phase.freeze, str):
        _one_of("phases.*.freeze", phase.freeze, key)
    elif not isinstance(phase.freeze, list):
        raise UserError(f"{key}.freeze", phase.freeze, f"one of {FREEZE} or a list of stage names")
    for part, start in phase.thaw.items():
        if not 2 <= start <= phase.rounds:
            raise UserError(
                f"{key}.thaw.{part}", start, f"give a round after the first, up to {phase.rounds}"
            )
    _check_kept(key, phase)
    _one_of("phases.*.head_init", phase.head_init, key)
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
    if phase.ditto is not None and phase.ditto < 0:
        raise UserError(f"{key}.ditto", phase.ditto, "give a number >= 0: 0 pulls not at all")
    if not 0 <= phase.keep_epochs < phase.local_epochs or (phase.keep_epochs and not phase.keep):
        raise UserError(
            f"{key}.keep_epochs",
            phase.keep_epochs,
            f"give a number from 0 to below local_epochs ({phase.local_epochs}), with {key}.keep",
        )


def _check_candidates(key: str, phase: Phase, before: Phase | None) -> None:
    for kind in phase.candidates:
        _one_of("phases.*.candidates", kind, key)
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
    _one_of("simulation.engine", simulation.engine)
    _one_of("simulation.baseline", simulation.baseline)
    for name in simulation.published:
        _one_of("simulation.published", name)
    require_known(simulation.volumes, vocabulary(plan.organs), "simulation.volumes")
    for organ in simulation.volumes:
        if organ not in plan.organ_names:
            raise UserError(
                "simulation.volumes",
                organ,
                f"take it out, or choose from {', '.join(plan.organ_names)}",
                problem="no phase contours it",
            )
    if simulation.cpus_per_site < 1:
        raise UserError(
            "simulation.cpus_per_site", simulation.cpus_per_site, "give a whole number >= 1"
        )
    spacing = simulation.phantom_spacing_mm
    if len(spacing) != 3 or min(spacing) <= 0:
        raise UserError(
            "simulation.phantom_spacing_mm", spacing, "give three positive mm: [z, y, x]"
        )
    for name, site in simulation.sites.items():
        site_name(name, f"simulation.sites.{name}")
        for part in site.splits:
            _one_of("simulation.sites.*.splits", part, f"simulation.sites.{name}")
        _one_of("simulation.sites.*.absent", site.absent, f"simulation.sites.{name}")
        if bool(site.phantom) == bool(site.root):
            raise UserError(
                f"simulation.sites.{name}", site.root or site.phantom, "give 'root' or 'phantom'"
            )


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


def _one_of(rule: str, value: object, entry: str = "") -> None:
    """Requires one of the `CHOICES` of a rule; `entry` is the key of the section with the value."""
    allowed = CHOICES[rule]
    if value not in allowed:
        key = f"{entry}.{rule.rpartition('.')[2]}" if entry else rule
        raise UserError(key, value, f"use one of: {', '.join(repr(a) for a in allowed)}")
