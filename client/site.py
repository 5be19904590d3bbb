"""One institution: its archive, its cache, its own disk. Nothing in here knows of Flower."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from core.anatomy import vocabulary, vocabulary_at_site
from core.data.archive import Archive, open_archive
from core.data.cache import Progress, build_cache, open_cache
from core.data.caselist import read_rows
from core.data.entry import Entry
from core.data.splits import assign_splits, split_hash, unassigned
from core.errors import Finding, UserError
from core.files import private_folder, replace_csv, replace_file
from core.identifiers import phase_name, site_name
from core.phase_cases import cases_of
from core.plan import Phase, Plan

SPLIT = "split.hmac"
FINDINGS = "findings.csv"

COUNTED_WARNINGS = ("W_CASE_", "W_EXCLUDE_")  # of cases that are not used, or that no one has
NOT_THERE = ("E_CASE_ABSENT",)  # findings of an archive on cases that it does not have
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
        device: auto | cpu | cuda:N.
        cache: folder of prepared cases.
        run_folder: what the site keeps of this run (D7).
        base_folder: the phases' bases by SHA-256 (D8).
        secret: of the split hash; made once.
        proxy: by which the server is reached, see `core.proxy.proxy_of`.
        overlays: how many test cases are drawn after a phase; 0 for none.
        left_out: reason code -> how many cases were left out, where another process has prepared
            them (`client.prepared`); None where this one does.
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
    left_out: Mapping[str, int] | None = None
    simulated: bool = False
    cache_bytes: int = 0
    base_bytes: int = 0

    def prepare(
        self, plan: Plan, *, jobs: int = 1, progress: Progress | None = None
    ) -> tuple[list[Entry], tuple[Finding, ...]]:
        """Archive -> cache, only what is missing; in answer to the query, never in a round (D14).

        What was found stands in ``SITE_RUN/findings.csv``, with the cases' names.

        Args:
            plan: whose organs and preprocessing are wanted.
            jobs: processes.
            progress: as for `core.data.cache.build_cache`, for each archive of the site.

        Raises:
            UserError: no usable case, or lists of cases that contradict themselves or the archive.
        """
        findings: list[Finding] = []
        split: dict[str, str] = {}
        opened: list[tuple[Source, Archive, Archive, dict[str, str]]] = []
        for source in self.sources:
            own_words = vocabulary_at_site(plan.organs, source.aliases)
            vocab = vocabulary(plan.organs) if self.simulated else own_words
            archive = open_archive(
                source.root,
                format=source.format,
                vocab=vocab,
                aliases=source.aliases,
                structure_set=source.structure_set,
            )
            own, explicit = chosen(source, archive)
            splits = assign_splits(own, source.split, explicit)
            split |= {f"{source.label}/{case}": part for case, part in splits.items()}
            findings += self._named(source, own.findings, unassigned(own, splits))
            opened.append((source, archive, own, splits))
        digest = split_hash(split, self.secret)
        for source, archive, own, splits in opened:
            report = build_cache(
                archive,
                [r for r in own.cases if r.case in splits],
                self.cache,
                plan.organ_names,
                plan.preprocess,
                splits=splits,
                site=self.index_of(source, digest),
                jobs=jobs,
                progress=progress,
                quota_bytes=self.cache_bytes,
            )
            findings += self._named(source, report.findings)
        private_folder(self.run_folder)
        columns = [f.name for f in fields(Finding)]
        replace_csv(self.run_folder / FINDINGS, columns, map(astuple, findings))
        replace_file(self.run_folder / SPLIT, digest)
        return self.entries(plan), tuple(findings)

    def entries(self, plan: Plan) -> list[Entry]:
        """The prepared cases, in the split of this run; opens nothing but the cache."""
        return [
            replace(e, case=self._case(s, e.case))
            for s in self.sources
            for e in open_cache(
                self.cache,
                plan.organ_names,
                plan.preprocess,
                site=s.index or self.index_of(s, self.split_hash()),
            )
        ]

    def described(self, plan: Plan) -> tuple[list[Entry], Mapping[str, int]]:
        """The prepared cases, and how many were left out, by reason code.

        Prepares them first, unless another process has.

        Raises:
            UserError: as for `prepare`.
        """
        if self.left_out is not None:
            return self.entries(plan), self.left_out
        entries, findings = self.prepare(plan)
        return entries, count_codes(findings)

    def of_phase(self, plan: Plan, phase: Phase, split: str) -> list[Entry]:
        """The cases of a split that the phase uses (`core.phase_cases`)."""
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

    def _case(self, source: Source, case: str) -> str:
        """A case's name at this site: with the source's label where there are several."""
        return f"{source.label}/{case}" if len(self.sources) > 1 and case else case

    def _named(self, source: Source, *groups: Sequence[Finding]) -> list[Finding]:
        return [replace(f, case=self._case(source, f.case)) for group in groups for f in group]


def count_codes(findings: Sequence[Finding]) -> dict[str, int]:
    """Reason code -> how often; the only thing about findings that leaves the site.

    Counted is what was left out, and the warnings about cases that are not used or not there.
    """
    told = [f for f in findings if f.severity == "error" or f.code.startswith(COUNTED_WARNINGS)]
    return dict(sorted(Counter(f.code for f in told).items()))


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
        simulated=True,
    )


def chosen(source: Source, archive: Archive) -> tuple[Archive, dict[str, str] | None]:
    """The cases of an archive that are a site's own, and which split it names for each.

    A site that lists its cases has those; else, where the archive's ``cases.csv`` has a column
    ``site``, those of its name; of cases of other sites nothing is told. A name that is a bare
    number stands for the one case whose id ends in it: ``7`` is ``pt_7`` and ``okbp_007``.

    Args:
        source: of the site.
        archive: from `open_archive`.

    Returns:
        The archive with the site's own cases alone, and with findings on those that its lists name
        in vain; the splits that it lists by case, or None.

    Raises:
        UserError: a case that the site or the archive's ``cases.csv`` lists and the archive lacks
            (with ``absent: count`` a finding instead), a number that several ids end in, a case
            in two splits, or a site that the archive's ``cases.csv`` does not know.
    """
    present = {r.case for r in archive.cases}
    known = present | {f.case for f in archive.findings if f.case and f.code not in NOT_THERE}
    explicit: dict[str, str] = {}
    for split, names in source.splits.items():
        for name in names:
            case = _case_of("splits", str(name), known)
            if explicit.setdefault(case, split) != split:
                raise UserError(
                    "splits",
                    name,
                    "keep it in one of them",
                    problem=f"the case stands in {explicit[case]} and in {split}",
                )
    unwanted = {_case_of("exclude", str(name), known) for name in source.exclude}
    excluded = unwanted & present
    if source.absent != COUNT:
        _require_there("splits", sorted(set(explicit) - known), known)
        _require_there("exclude", sorted(unwanted - known), known)
    findings = [
        Finding("E_EXCLUDED", "error", c, "", "excluded by the configuration", "none needed")
        for c in sorted(excluded)
    ]
    findings += [
        Finding(
            "E_ABSENT",
            "error",
            c,
            "",
            "named by the split, absent from the archive",
            "add the case",
        )
        for c in sorted(set(explicit) - known)
    ]
    findings += [
        Finding(
            "W_EXCLUDE_UNKNOWN",
            "warning",
            c,
            "",
            "to be excluded, absent from the archive",
            "correct the id, or take it off the list",
        )
        for c in sorted(unwanted - known)
    ]
    cases = tuple(
        r for r in archive.cases if r.case not in excluded and (not explicit or r.case in explicit)
    )
    sites = {r.site for r in cases if r.site}
    foreign: set[str] = set()
    if sites and not explicit:
        if source.label not in sites:
            raise UserError(
                "root",
                source.root,
                f"name the site as in cases.csv ({', '.join(sorted(sites))}), or list its cases",
                problem=f"its cases.csv has no case of site {source.label}",
            )
        cases = tuple(r for r in cases if r.site == source.label)
        rows = read_rows(archive.root / "cases.csv") or ()
        foreign = {r.case for r in rows if r.site and r.site != source.label}
    own = [f for f in archive.findings if f.case not in foreign]
    if source.absent != COUNT and not explicit:
        lost = [f.case for f in own if f.code in NOT_THERE]
        _require_there(str(archive.root / "cases.csv"), sorted(lost), known)
    findings = [*own, *findings]
    return replace(archive, cases=cases, findings=tuple(findings)), explicit or None


def _require_there(field: str, names: Sequence[str], known: Collection[str]) -> None:
    """Requires that listed cases exist.

    Raises:
        UserError: names those that do not, and ids of the archive.
    """
    if not names:
        return
    some = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    ids = ", ".join(sorted(known)[:3]) or "none"
    raise UserError(
        field,
        some,
        f"correct the ids (the archive's are such as {ids}), take them off the list, or write "
        "absent: count where the list is longer than the archive on purpose",
        problem="no such case in the archive",
    )


def _case_of(field: str, name: str, known: Collection[str]) -> str:
    """The id that a name in a site's lists stands for; the name itself where there is none."""
    if name in known or not (name.isascii() and name.isdecimal()):
        return name
    found = [case for case in known if _number(case) == int(name)]
    if len(found) > 1:
        raise UserError(
            field, name, "write the full id", problem=f"{len(found)} cases end in this number"
        )
    return found[0] if found else name


def _number(case: str) -> int | None:
    digits = re.search(r"(\d+)$", case)
    return int(digits.group(1)) if digits else None
