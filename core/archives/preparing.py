"""From a site's archives to its cache: what is installed at the site does it, never a bundle."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, fields, replace

from core.archives.archive import Archive, open_archive
from core.archives.cache_build import Cache, Progress, build_cache
from core.archives.caselist import read_rows
from core.archives.name_matching import vocabulary_at_site
from core.archives.splits import assign_splits, overruled, split_hash, unassigned
from core.data.cache import Recipe
from core.data.cached_case import Entry
from core.data.site import COUNT, FINDINGS, SPLIT, Site, Source
from core.errors import Finding, UserError
from core.files import private_folder, replace_csv, replace_file
from core.organs.vocabulary import vocabulary
from core.plan.schema import Plan

COUNTED_WARNINGS = (
    "W_CASE_",
    "W_EXCLUDE_",
)  # cases not used, not there, or not used as a list says
NOT_THERE = ("E_CASE_ABSENT",)  # findings of an archive on cases that it does not have


@dataclass(frozen=True)
class Prepared:
    """A site's cases in its cache.

    Attributes:
        split: HMAC of the whole split under the site's secret (D17).
        entries: the cases that can be used.
        findings: what was left out, or is noteworthy, with the cases' names.
    """

    split: str
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]

    @property
    def left_out(self) -> dict[str, int]:
        """Reason code -> how often."""
        return count_codes(self.findings)


def prepare(site: Site, plan: Plan, *, jobs: int = 1, progress: Progress | None = None) -> Prepared:
    """Archive -> cache, only what is missing; in answer to the query, never in a round (D14).

    Nothing is written but the cache; `keep` makes it what a run of the site goes on with.

    Args:
        site: whose archives are read.
        plan: whose organs and preprocessing are wanted.
        jobs: processes.
        progress: as for `core.archives.cache_build.build_cache`, for each archive of the site.

    Raises:
        UserError: no usable case, or lists of cases that contradict themselves or the archive.
    """
    findings: list[Finding] = []
    split: dict[str, str] = {}
    opened: list[tuple[Source, Archive, dict[str, str]]] = []
    for source in site.sources:
        own_words = vocabulary_at_site(plan.organs, source.aliases)
        vocab = vocabulary(plan.organs) if site.simulated else own_words
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
        unused = {ref.case for ref in own.cases} - set(splits)
        found = (own.findings, unassigned(unused), overruled(splits, explicit))
        findings += _named(site, source, *found)
        opened.append((source, own, splits))
    digest = split_hash(split, site.secret)
    recipe = Recipe(plan.organ_names, plan.preprocess)
    for source, own, splits in opened:
        cache = Cache(site.cache, site.index_of(source, digest), site.cache_bytes)
        report = build_cache(own, splits, cache, recipe, jobs=jobs, progress=progress)
        findings += _named(site, source, report.findings)
    return Prepared(digest, tuple(site.entries(plan, digest)), tuple(findings))


def keep(site: Site, prepared: Prepared) -> None:
    """Writes ``SITE_RUN/findings.csv``, and the split that the site's run goes on with."""
    private_folder(site.run_folder)
    columns = [f.name for f in fields(Finding)]
    replace_csv(site.run_folder / FINDINGS, columns, map(astuple, prepared.findings))
    replace_file(site.run_folder / SPLIT, prepared.split)


def count_codes(findings: Sequence[Finding]) -> dict[str, int]:
    """Reason code -> how often; the only thing about findings that leaves the site.

    Counted is what was left out, and the warnings about cases that are not used, not there, or not
    used as a list says.
    """
    told = [f for f in findings if f.severity == "error" or f.code.startswith(COUNTED_WARNINGS)]
    return dict(sorted(Counter(f.code for f in told).items()))


def _named(site: Site, source: Source, *groups: Sequence[Finding]) -> list[Finding]:
    return [replace(f, case=site.case_name(source, f.case)) for group in groups for f in group]


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
    present, known = {r.case for r in archive.cases}, listed_ids(archive)
    explicit: dict[str, str] = {}
    for split, names in source.splits.items():
        for name in names:
            case = case_of("splits", str(name), known)
            if explicit.setdefault(case, split) != split:
                raise UserError(
                    "splits",
                    name,
                    "keep it in one of them",
                    problem=f"the case stands in {explicit[case]} and in {split}",
                )
    unwanted = {case_of("exclude", str(name), known) for name in source.exclude}
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
            "add the case, or take it off the list",
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
    cases = tuple(r for r in archive.cases if r.case not in excluded)
    if explicit:
        passed = {r.case for r in cases if r.site in (None, source.label)} - set(explicit)
        findings += unassigned(passed)
        cases = tuple(r for r in cases if r.case in explicit)
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


def listed_ids(archive: Archive) -> set[str]:
    """The ids that a site's lists may name: of cases that can be used, and of those left out."""
    lost = {f.case for f in archive.findings if f.case and f.code not in NOT_THERE}
    return {r.case for r in archive.cases} | lost


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
        "absent: count beside the list (in a site file beside split) where it is longer than the "
        "archive on purpose",
        problem="no such case in the archive",
    )


def case_of(field: str, name: str, known: Collection[str]) -> str:
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
