"""Where the sites of a simulation find their archives, and which cases of them are theirs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from core.archives.archive import Archive, open_archive
from core.archives.parallel import cpus
from core.archives.preparing import case_of, chosen, listed_ids
from core.data.site import Source
from core.errors import UserError
from core.files import private_folder
from core.plan.schema import Config, SimulatedSite, Simulation
from simulations.baselines import POOLED
from simulations.foresight import told_device

SHOWN = 5


def site_map(config: Config, folder: Path) -> dict[str, Any]:
    """What the clients need to find their archives; phantoms are written first.

    Args:
        config: as it runs.
        folder: of the run.

    Raises:
        UserError: an archive that is not there, or lists of cases that do not fit it.
    """
    simulation = config.simulation
    cache = Path(simulation.cache).resolve() if simulation.cache else folder.parent / "cache"
    private_folder(cache)
    names = sorted(simulation.sites) if simulation.baseline == "pooled" else list(config.site_names)
    sources = {n: _sources(n, simulation.sites[n], config, cache) for n in names}
    if simulation.baseline == "pooled":
        sites = {POOLED: {"sources": [source for n in names for source in sources[n]]}}
    else:
        sites = {n: {"sources": found} for n, found in sources.items()}
    return {
        "sites": sites,
        "out": str(folder),
        "cache": str(cache / "prepared"),
        "device": told_device(config),
        "overlays": simulation.overlays,
    }


def archive_roots(name: str, site: SimulatedSite, simulation: Simulation) -> list[Path]:
    """The folders of a site's archives: one, or one for each folder of ``simulation.data``.

    Raises:
        UserError: one does not exist, or ``simulation.data`` is needed and names none.
    """
    texts: list[str] = []
    for text in site.root if isinstance(site.root, list) else [site.root]:
        folders = _folders(simulation.data) if "{data}" in text else [""]
        texts += [text.replace("{data}", data) for data in folders]
    roots = [Path(text) for text in texts]
    for root in roots:
        if not root.is_dir():
            key = "simulation.data" if "{data}" in str(site.root) else "the key"
            remedy = f"correct {key}: give the folder of the data"
            raise UserError(f"simulation.sites.{name}.root", root, remedy, problem="no such folder")
    return [root.resolve() for root in roots]


def _folders(data: Any) -> list[str]:
    """The folders that ``simulation.data`` names."""
    if data in ("", []):
        remedy = "add simulation.data=DIR, the folder of the data set (see the README)"
        raise UserError("simulation.data", "(empty)", remedy)
    found = data if isinstance(data, list) else [data]
    if not all(isinstance(one, str) and one for one in found) or len(set(found)) < len(found):
        remedy = "give a folder, or a list of different ones: simulation.data=[DIR,DIR]"
        raise UserError("simulation.data", data, remedy)
    return found


def _sources(name: str, site: SimulatedSite, config: Config, cache: Path) -> list[dict[str, Any]]:
    """What a client is told of a site's archives, see `core.data.site.Source`."""
    if site.phantom:
        roots = [_phantom(name, site, config, cache)]
    else:
        roots = archive_roots(name, site, config.simulation)
    kept = {f.name: getattr(site, f.name) for f in fields(site) if f.name in Source.__annotations__}
    source = Source(**kept | {"root": "", "label": name})
    archives = [open_archive(root, format=site.format) for root in roots]
    try:
        if len(archives) == 1:
            found = [(replace(source, root=str(roots[0].resolve())), archives[0])]
        else:
            found = _shared_out(source, archives)
        cases = [chosen(one, archive)[0].cases for one, archive in found]
    except UserError as error:
        if error.field not in ("splits", "exclude"):
            raise
        field = f"simulation.sites.{name}.{error.field}"
        raise UserError(field, error.value, error.remedy, problem=error.problem) from None
    _require_apart(name, [[ref.case for ref in refs] for refs in cases])
    return [asdict(one) for one, _ in found]


def _shared_out(source: Source, archives: Sequence[Archive]) -> list[tuple[Source, Archive]]:
    """A site's lists shared out over several archives: each gets the names that it has.

    A name that none has goes to the first, which says what is to be said of it.
    """
    known = [listed_ids(archive) for archive in archives]

    def own(field: str, names: Sequence[str], place: int) -> list[str]:
        def homes(name: str) -> list[bool]:
            return [case_of(field, name, ids) in ids for ids in known]

        return [n for n in names if homes(n)[place] or (place == 0 and not any(homes(n)))]

    found = []
    for place, archive in enumerate(archives):
        splits = {part: own("splits", names, place) for part, names in source.splits.items()}
        if source.splits and not any(splits.values()):
            continue  # a list of nobody would mean everybody
        exclude = own("exclude", source.exclude, place)
        one = replace(source, root=str(archive.root), splits=splits, exclude=exclude)
        found.append((one, archive))
    return found


def _require_apart(name: str, cases: Sequence[Sequence[str]]) -> None:
    """Requires that no case stands in two archives of a site.

    Raises:
        UserError: names them.
    """
    counted = Counter(case for refs in cases for case in refs)
    twice = sorted(case for case, number in counted.items() if number > 1)
    if twice:
        some = ", ".join(twice[:SHOWN]) + (f" and {len(twice) - SHOWN} more" * (len(twice) > SHOWN))
        raise UserError(
            "simulation.data",
            some,
            f"leave them out of one folder, or list them under simulation.sites.{name}.exclude",
            problem=f"cases of {name} that stand in two of the folders",
        )


def _phantom(name: str, site: SimulatedSite, config: Config, cache: Path) -> Path:
    from simulations.phantom.cases import SIGNATURES, Cohort, write_site

    if site.phantom not in SIGNATURES:
        raise UserError(
            f"simulation.sites.{name}.phantom", site.phantom, f"use one of {sorted(SIGNATURES)}"
        )
    if site.cases < 3:
        raise UserError(f"simulation.sites.{name}.cases", site.cases, "give at least 3 cases")
    spacing = config.simulation.phantom_spacing_mm
    stamp = hashlib.sha256(
        json.dumps([site.phantom, site.cases, config.seed, spacing]).encode()
    ).hexdigest()
    root = cache / "phantom" / f"{name}-{stamp[:12]}"
    print(f"phantom archive of {name}: {site.cases} cases", flush=True)
    cohort = Cohort(SIGNATURES[site.phantom], site.cases, config.seed, spacing, site=name)
    write_site(root, cohort, workers=cpus())
    return root
