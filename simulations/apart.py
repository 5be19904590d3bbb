"""Patients that two sites of a simulation share: no test case is one that the weights have seen.

A federation cannot look; a simulation has all archives and does. Patients are compared by the
voxels of their CTs, under whatever name an archive has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.archives.duplicates import trained_on
from core.archives.parallel import cpus
from core.archives.preparing import Prepared, keep, prepare
from core.data.cached_case import Entry
from core.data.site import Site, simulated_site
from core.errors import UserError
from core.plan.schema import Config, Plan
from core.wire.checkpoint import load_meta
from simulations.baselines import POOLED

SHOWN = 5


@dataclass(frozen=True)
class Shared:
    """One CT that is in training at one site and held out at another."""

    trained_at: str
    trained: str
    held_at: str
    held: str
    split: str


def prepare_sites(config: Config, local: Mapping[str, Any]) -> dict[str, Prepared]:
    """Prepares every site's cases, and requires that no site is tested on a case of another.

    The sites' apps find their caches ready then. Nothing is written into the run's folder; see
    `keep_prepared`.

    Args:
        config: as it runs.
        local: the map that the sites' apps get.

    Returns:
        What was prepared, by site.

    Raises:
        UserError: a site's archive or settings cannot be used, or sites share patients.
    """
    found: dict[str, Prepared] = {}
    jobs = cpus() if config.simulation.engine == "ray" else 1
    for name, site in _sites(local).items():
        try:
            found[name] = prepare(site, config.plan, jobs=jobs)
        except UserError as error:
            field = f"simulation.sites.{name}: {error.field}"
            raise UserError(field, error.value, error.remedy, problem=error.problem) from error
    require_apart(config.plan, by_archive({n: p.entries for n, p in found.items()}))
    return found


def keep_prepared(local: Mapping[str, Any], prepared: Mapping[str, Prepared]) -> None:
    """Writes into each site's folder what its app goes on with; arguments as of `prepare_sites`."""
    for name, site in _sites(local).items():
        keep(site, prepared[name])


def _sites(local: Mapping[str, Any]) -> dict[str, Site]:
    """The sites of a map, as their apps will see them."""
    text = json.dumps(local)
    return {n: simulated_site(text, i, "") for i, n in enumerate(sorted(local["sites"]))}


def by_archive(entries_of: Mapping[str, Sequence[Entry]]) -> dict[str, dict[str, list[Entry]]]:
    """Site -> archive -> entries: the site of the pooled baseline has several archives."""
    result: dict[str, dict[str, list[Entry]]] = {}
    for site, entries in entries_of.items():
        for entry in entries:
            label, slash, _ = entry.case.partition("/")
            archive = label if slash and site == POOLED else site
            result.setdefault(site, {}).setdefault(archive, []).append(entry)
    return result


def require_apart(plan: Plan, entries_of: Mapping[str, Mapping[str, Sequence[Entry]]]) -> None:
    """Requires that no held-out case of a phase is in training for the weights that it tests.

    Those are the weights of the phase and of the phases that it starts from, so each site alone
    (the baseline ``local-only``) may share patients with another.

    Args:
        plan: gives the phases.
        entries_of: site -> archive -> entries.

    Raises:
        UserError: names the sites, how many patients, and some of them.
    """
    shared = list(dict.fromkeys(_shared(plan, entries_of)))
    if not shared:
        return
    sites = sorted({s.trained_at for s in shared} | {s.held_at for s in shared})
    shown = "; ".join(
        f"{s.trained} of {s.trained_at} (train) is {s.held} of {s.held_at} ({s.split})"
        for s in shared[:SHOWN]
    )
    more = f"; and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
    raise UserError(
        "simulation.sites",
        ", ".join(sites),
        "give a patient to one site alone, or to one split: list the cases under "
        "simulation.sites.NAME.splits, or leave them out by simulation.sites.NAME.exclude",
        problem=f"{_patients(len(shared))} held out at one site and trained on at another, by the "
        f"voxels of their CTs: {shown}{more}",
    )


def contaminated(
    config: Config, entries_of: Mapping[str, Sequence[Entry]]
) -> dict[str, dict[str, int]]:
    """Test cases whose CTs are among those that a checkpoint, which a phase starts from, has seen.

    Args:
        config: as it runs; phases start from files by their paths.
        entries_of: site -> entries.

    Returns:
        Phase -> site -> number of such cases; phases and sites without any are left out.
    """
    by_name = {phase.name: phase for phase in config.phases}
    found: dict[str, dict[str, int]] = {}
    for phase in config.phases:
        init = phase.init
        while init in by_name:
            init = by_name[init].init
        if not init.endswith(".safetensors"):
            continue
        seen = trained_on(load_meta(Path(init)))
        for site in phase.sites:
            entries = entries_of.get(site, ())
            number = sum(e.split == "test" and e.image_sha256 in seen for e in entries)
            if number:
                found.setdefault(phase.name, {})[site] = number
    return found


def _patients(number: int) -> str:
    return f"{number} patients are" if number > 1 else "1 patient is"


def _shared(
    plan: Plan, entries_of: Mapping[str, Mapping[str, Sequence[Entry]]]
) -> Iterator[Shared]:
    for phase in plan.phases:
        trained: dict[str, dict[str, Entry]] = {}  # digest -> archive -> entry
        for site in _trainers(plan, phase.name):
            for archive, entries in entries_of.get(site, {}).items():
                for entry in entries:
                    if entry.split == "train" and entry.image_sha256:
                        trained.setdefault(entry.image_sha256, {})[archive] = entry
        for site in phase.sites:
            for archive, entries in entries_of.get(site, {}).items():
                for entry in entries:
                    if entry.split == "train":
                        continue
                    for other, twin in trained.get(entry.image_sha256, {}).items():
                        if other != archive:
                            yield Shared(other, twin.case, archive, entry.case, entry.split)


def _trainers(plan: Plan, name: str) -> list[str]:
    """The sites that trained the weights of a phase: its own, and those of what it starts from."""
    by_name = {phase.name: phase for phase in plan.phases}
    sites: dict[str, None] = {}
    while name in by_name:
        sites |= dict.fromkeys(by_name[name].sites)
        name = by_name[name].init
    return list(sites)
