"""One institution: its archive, its cache, its own disk. Nothing in here knows of Flower."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from core.data.cache import open_cache
from core.data.cached_case import Entry, cases_of
from core.errors import UserError
from core.identifiers import phase_name, site_name
from core.plan.schema import Phase, Plan

SPLIT = "split.hmac"
FINDINGS = "findings.csv"

REFUSE, COUNT = "refuse", "count"  # what a listed case does that the archive lacks
SIMULATION_SECRET = b"simulation"


@dataclass(frozen=True)
class Source:
    """One archive of a site, with the site's own words for it."""

    root: str
    format: str = "auto"
    aliases: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    label: str = ""
    structure_set: str = ""
    absent: str = REFUSE
    index: str = ""  # of its cases in the cache, where another process has prepared them


@dataclass(frozen=True)
class Site:
    """Settings of a site, whole after construction.

    Attributes:
        name: pseudonym under which the site appears.
        sources: its archives (one; several only for the pooled baseline).
        device: as for `core.training.ranks.devices_of`.
        cache: folder of prepared cases.
        run_folder: what the site keeps of this run (D7).
        base_folder: the phases' bases by SHA-256 (D8).
        secret: of the split hash; made once.
        proxy: by which the server is reached; "" for what the environment names.
        overlays: test cases drawn of each organ after a phase, from the worst to the best; 0: none.
        left_out: reason code -> how many cases were left out as they were prepared.
        cache_bytes: most that its cache may hold; 0 for no limit.
        base_bytes: the same of `base_folder`.
        simulated: the researcher's own, where the plan may bring spellings of organs.
    """

    name: str
    sources: tuple[Source, ...]
    device: str
    cache: Path
    run_folder: Path
    base_folder: Path
    secret: bytes
    proxy: str = ""
    overlays: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    simulated: bool = False
    cache_bytes: int = 0
    base_bytes: int = 0

    def entries(self, plan: Plan, split: str = "") -> list[Entry]:
        """The prepared cases; opens nothing but the cache.

        Args:
            plan: for which they were prepared.
            split: HMAC of the split; "" for that of this run.
        """
        return [
            replace(e, case=self.case_name(s, e.case))
            for s in self.sources
            for e in open_cache(
                self.cache,
                plan.organ_names,
                plan.preprocess,
                site=s.index or self.index_of(s, split or self.split_hash()),
            )
        ]

    def of_phase(self, plan: Plan, phase: Phase, split: str) -> list[Entry]:
        """The cases of a split that the phase uses (`core.data.cached_case.cases_of`)."""
        return cases_of(self.entries(plan), plan, phase, split)

    def split_hash(self) -> str:
        """HMAC of the whole split under the site's own secret (D17), as `prepare` left it.

        Raises:
            UserError: nothing was prepared for this run.
        """
        path = self.run_folder / SPLIT
        if not path.is_file():
            raise UserError(
                "run folder",
                self.run_folder,
                "continue the run with --resume: the site prepares its cases then",
                problem=f"{SPLIT} is missing",
            )
        return path.read_text(encoding="ascii")

    def phase_folder(self, phase: str) -> Path:
        """``SITE_RUN/PHASE``."""
        return self.run_folder / phase_name(phase)

    def index_of(self, source: Source, digest: str) -> str:
        """Name of the source's index in the cache: sites, roots and splits do not share one.

        The split is the assigned one (its HMAC): an archive's ``cases.csv`` may change under a run.
        """
        own = {key: value for key, value in asdict(source).items() if key != "index"}
        told = json.dumps(own, sort_keys=True) + digest
        return f"{self.name} {hashlib.sha256(told.encode()).hexdigest()}"

    def case_name(self, source: Source, case: str) -> str:
        """A case's name at this site: with the source's label where there are several."""
        return f"{source.label}/{case}" if len(self.sources) > 1 and case else case


def simulated_site(local: str, index: int, run: str) -> Site:
    """The site with that index, from the map that a simulation hands to its clients (D1)."""
    values = json.loads(local)
    name = site_name(sorted(values["sites"])[index])
    site = values["sites"][name]
    folder = Path(values["out"]) / "sites" / name
    return Site(
        name=name,
        sources=tuple(Source(**s) for s in site["sources"]),
        device=values["device"],
        cache=Path(values["cache"]),
        run_folder=folder,
        base_folder=folder / "base",
        secret=SIMULATION_SECRET,
        overlays=int(values["overlays"]),
        left_out=site.get("left_out", {}),
        simulated=True,
    )
