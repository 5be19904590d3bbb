"""Which runs are seeds of one variant, and the scores of a variant averaged over them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import UserError
from core.run_records import mapping, number
from hnfed.compare.runs import Key, Member, PhaseResult, Score, Scored

DATA_KEYS = ("baseline", "data", "sites")
UNNAMED = "scores"
NO_SITE = "(no site)"
ALL = "all"
Patient = tuple[str, str]
"""Site and case."""


@dataclass(frozen=True)
class Variant:
    """What is compared: the runs of one plan, seed by seed, and scores on further cases.

    Attributes:
        label: how it is called.
        runs: one a seed.
        extras: scores of `hnfed evaluate` under the same label.
    """

    label: str
    runs: tuple[Member, ...]
    extras: tuple[Member, ...] = ()

    @property
    def baseline(self) -> str:
        """``local-only``, ``pooled`` or ""."""
        return self.runs[0].baseline if self.runs else ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the first run; empty where there is none."""
        return self.runs[0].config if self.runs else {}

    def results(self, phase: str) -> list[PhaseResult]:
        """What each seed's run has of a phase."""
        return [run.phases[phase] for run in self.runs if phase in run.phases]


@dataclass(frozen=True)
class VariantPhase:
    """A variant in one phase, averaged over seeds.

    Attributes:
        organs: in the plan's order.
        trained: sites whose cases trained it.
        scores: by case; a case that not every seed scored is left out, but for phantoms, which are
            other patients with each seed.
        incomplete: how many scores were left out for that.
        published: over all sites, of the first run, where there is no score of a case.
        published_sites: the same by site.
        curves: validation Dice of each seed.
    """

    variant: Variant
    organs: tuple[str, ...]
    trained: tuple[str, ...]
    scores: Mapping[Key, Score]
    incomplete: int
    published: Mapping[str, Any]
    published_sites: Mapping[str, Mapping[str, Any]]
    curves: tuple[tuple[Scored, ...], ...]

    def patients(self, site: str) -> list[Patient]:
        """The test patients at a site, or at all."""
        return sorted({k[:2] for k in self.scores if site in (ALL, k[0])})


def variants_of(members: Sequence[Member]) -> list[Variant]:
    """Groups the arguments.

    Runs with the same given name are seeds of one variant; runs without one are if their plans
    differ in nothing but `seed` (and in the checkpoint that they start from). Scores with the name
    of a variant are more cases of it.

    Raises:
        UserError: two runs of one name that are no seeds of one plan.
    """
    groups: list[list[Member]] = []
    for member in members:
        fitting = [g for g in groups if _together(g, member)]
        fitting[0].append(member) if fitting else groups.append([member])
    labels = [group[0].label for group in groups]
    variants = []
    for group, label in zip(groups, labels, strict=True):
        shown = label if labels.count(label) == 1 else str(group[0].path)
        runs = tuple(m for m in group if m.kind != "scores")
        variants.append(Variant(shown, runs, tuple(m for m in group if m.kind == "scores")))
    return variants


def _together(group: Sequence[Member], member: Member) -> bool:
    first = group[0]
    if first.label == member.label and (first.named or member.named):
        runs = [m for m in (*group, member) if m.kind == "run"]
        if len({identity(m.config) for m in runs}) > 1:
            remedy = "give them different names: one name stands for the seeds of one plan"
            problem = "these runs differ in more than the seed"
            raise UserError("RUN", member.label, remedy, problem=problem)
        if member.kind == "run" and member.config.get("seed") in _seeds(group):
            remedy = "give each seed once, or different names"
            problem = f"seed {member.config.get('seed')} is there twice"
            raise UserError("RUN", member.label, remedy, problem=problem)
        return True
    if first.named or member.named or {first.kind, member.kind} != {"run"}:
        return False
    same = bool(member.config) and identity(first.config) == identity(member.config)
    return same and member.config.get("seed") not in _seeds(group)


def _seeds(group: Sequence[Member]) -> set[Any]:
    return {m.config.get("seed") for m in group if m.kind == "run"}


def identity(config: Mapping[str, Any]) -> str:
    """What decides a run's weights besides its seed, as text: the plan, the sites, the baseline."""
    plan = {k: v for k, v in config.items() if k not in ("seed", "tracking", "simulation")}
    simulation = mapping(config.get("simulation"))
    plan["simulation"] = {k: simulation.get(k) for k in DATA_KEYS}
    plan["phases"] = [
        {**mapping(p), "init": _start(str(mapping(p).get("init")))}
        for p in config.get("phases") or []
    ]
    return json.dumps(plan, sort_keys=True, default=str)


def _start(init: str) -> str:
    is_file = init.startswith("sha256:") or init.endswith(".safetensors")
    return "checkpoint" if is_file else init


def common_phases(variants: Sequence[Variant], wanted: str | None) -> list[str]:
    """Phases that all runs have, in the order of the first; `wanted` alone where given.

    Raises:
        UserError: there is none.
    """
    runs = [run for variant in variants for run in variant.runs]
    if not runs:
        return [UNNAMED]
    shared = [name for name in runs[0].phases if all(name in run.phases for run in runs)]
    if wanted is not None and wanted not in shared:
        known = ", ".join(shared) or "none"
        remedy = f"phases that all runs have: {known}"
        raise UserError("--phase", wanted, remedy, problem="not every run has this phase")
    if not shared:
        told = "; ".join(f"{r.label}: {', '.join(r.phases)}" for r in runs)
        raise UserError("RUN", told, "compare runs of the same phases", problem="no common phase")
    return [wanted] if wanted is not None else shared


def in_phase(variants: Sequence[Variant], phase: str) -> list[VariantPhase]:
    """The variants in one phase, with sites found for scores that name none."""
    organs = {organ for v in variants for result in v.results(phase) for organ in result.organs}
    taken = [_averaged(variant, phase, organs) for variant in variants]
    homes: dict[str, set[tuple[str, str]]] = {}
    for result in taken:
        if result.variant.runs:
            for site, case, _ in result.scores:
                homes.setdefault(case.split("\n")[0], set()).add((site, case))
    return [replace(r, scores=dict(_at_home(r.scores, homes))) for r in taken]


def _at_home(
    scores: Mapping[Key, Score], homes: Mapping[str, set[tuple[str, str]]]
) -> Iterator[tuple[Key, Score]]:
    """Finds the patient that scores without a site or a phantom's seed mean, where there is one."""
    for (site, case, organ), score in scores.items():
        known = {h for h in homes.get(case, ()) if h[0] and site in ("", h[0])}
        place = next(iter(known)) if len(known) == 1 else (site or NO_SITE, case)
        yield (*place, organ), score


def _averaged(variant: Variant, phase: str, organs: set[str]) -> VariantPhase:
    results = variant.results(phase)
    extras = [m.phases[""] for m in variant.extras]
    scores, incomplete = _mean_scores([r.scores for r in results])
    more, lacking = _mean_scores([e.scores for e in extras])
    known = {k[:2] for k in scores}
    places = {k[1] for k in scores}
    scores |= {
        k: s
        for k, s in more.items()
        if (not organs or k[2] in organs) and k[:2] not in known and (k[0] or k[1] not in places)
    }
    first = results[0] if results else None
    told = any(r.scores for r in (*results, *extras))
    names = dict.fromkeys(o for r in (*results, *extras) for o in r.organs)
    return VariantPhase(
        variant,
        tuple(o for o in names if not organs or o in organs),
        first.trained if first else (),
        scores,
        incomplete + lacking,
        first.published if first and not told else {},
        first.published_sites if first and not told else {},
        tuple(r.curve for r in results if r.curve),
    )


def _mean_scores(seeds: Sequence[Mapping[Key, Score]]) -> tuple[dict[Key, Score], int]:
    """Each case's mean over the seeds, and how many scores not every seed has."""
    keys = list(dict.fromkeys(k for scores in seeds for k in scores))
    worlds = [{_world(k) for k in scores} for scores in seeds]
    means = {}
    for key in keys:
        asked = [s for s, known in zip(seeds, worlds, strict=True) if _world(key) in known]
        if all(key in scores for scores in asked):
            means[key] = _mean([scores[key] for scores in asked])
    return means, len(keys) - len(means)


def _world(key: Key) -> str:
    """The seed of a phantom; "" of a real patient."""
    return key[1].partition("\n")[2]


def _mean(scores: Sequence[Score]) -> Score:
    """HD95 over the seeds that found the organ; everything else over all."""
    n = len(scores)
    found = [s.hd95_mm for s in scores if s.hd95_mm is not None]
    costs = [s.penalised_mm for s in scores if s.penalised_mm is not None]
    return Score(
        math.fsum(s.dice for s in scores) / n,
        math.fsum(found) / len(found) if found else None,
        math.fsum(s.missed for s in scores) / n,
        math.fsum(costs) / n if len(costs) == n else None,
    )


def settings_that_differ(variants: Sequence[Variant]) -> list[tuple[str, list[str]]]:
    """Settings (dotted) in which the variants' configurations differ, with each one's value."""
    flat = [dict(_flattened(_settings(v.config))) if v.config else None for v in variants]
    known = [f for f in flat if f is not None]
    keys = dict.fromkeys(key for f in known for key in f)
    rows = []
    for key in keys:
        if len({f.get(key, "–") for f in known}) > 1:
            rows.append((key, ["–" if f is None else f.get(key, "–") for f in flat]))
    return rows


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    plan = {k: v for k, v in config.items() if k not in ("seed", "tracking", "simulation")}
    plan["phases"] = {str(mapping(p).get("name")): p for p in config.get("phases") or []}
    simulation = mapping(config.get("simulation"))
    plan["simulation"] = {k: simulation.get(k) for k in DATA_KEYS}
    return plan


def _flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flattened(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        known = number(value)
        if isinstance(value, list):
            shown = ", ".join(map(str, value)) or "none"
        else:
            shown = f"{known:g}" if known is not None else str(value) or "–"
        yield prefix, shown
