"""Cases of an archive into the cache: only what is missing, each once, whoever asks meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock

from core.archives.archive import Archive, CaseRef, content_hash, read_case
from core.archives.case_writer import complete, stored_findings, write_entry
from core.archives.contour_qa import without_errors
from core.archives.deidentify import words_of
from core.archives.duplicates import copies_of
from core.archives.parallel import each
from core.data.cache import Recipe, digest_of, index_path
from core.data.cached_case import FORMAT, Entry, open_entry
from core.data.quota import require_room
from core.errors import CaseError, Finding, UserError
from core.files import flush_folder, private_folder, replace_file
from core.plan.schema import SPLITS
from core.provenance import versions

Progress = Callable[[int, int, bool], None]


@dataclass(frozen=True)
class Cache:
    """Where prepared cases go.

    Attributes:
        root: folder, made where missing; it may serve several sites and plans.
        site: name of the site, where several share a folder.
        quota_bytes: of all entries together, of whatever plan; 0 for no limit.
    """

    root: Path
    site: str = ""
    quota_bytes: int = 0


@dataclass(frozen=True)
class CacheReport:
    """What `build_cache` did.

    Attributes:
        entries: usable cases in the order of the archive.
        findings: what was left out, or is noteworthy.
        built: entries prepared now.
        reused: entries that were there already.
    """

    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]
    built: int
    reused: int


def build_cache(
    archive: Archive,
    splits: Mapping[str, str],
    cache: Cache,
    recipe: Recipe,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> CacheReport:
    """Prepares cases that are not in the cache yet, and writes the site's index.

    Safe to call from several processes at once: each entry is built once, the others wait for it.
    Killed at any time it leaves whole entries only, and the next call goes on from there.

    Args:
        archive: where the cases come from.
        splits: case -> train, val or test, for every case that is wanted.
        cache: where they go.
        recipe: how they are prepared.
        jobs: processes.
        progress: called with (cases done, cases in all, whether the last one was built now).

    Returns:
        Entries and findings. A case that cannot be used is a finding, and the others go on; an
        organ that is certainly wrong (`core.archives.contour_qa`) is left out, and so is a copy of
        a CT (`core.archives.duplicates`).

    Raises:
        UserError: no case can be used, the cache cannot be written, or it would outgrow its quota.
    """
    root = cache.root
    refs = [ref for ref in archive.cases if ref.case in splits]
    for folder in (root, root / "entries", root / "index", root / "locks"):
        _make_folder(folder)
    alone = replace(archive, cases=(), findings=())
    job = partial(_ensure_entry, alone, cache, recipe)
    made: list[_Made | None] = [None] * len(refs)
    for done, (index, result) in enumerate(each(job, refs, jobs), start=1):
        made[index] = result
        if progress is not None:
            progress(done, len(refs), result.built)
    entries: list[Entry] = []
    findings: list[Finding] = []
    built = reused = 0
    for ref, one in zip(refs, made, strict=True):
        assert one is not None
        if one.finding is not None:
            findings.append(one.finding)
            continue
        built += one.built
        reused += not one.built
        line = {"case": ref.case, "split": splits[ref.case], "key": one.key}
        findings.extend(stored_findings(root, line))
        entry = open_entry(root, line, recipe.organs)
        if not entry.annotated:
            remedy = "add aliases for the organ names used here, or exclude the case"
            text = "no organ of the plan is annotated"
            findings.append(Finding("E_NO_ORGAN", "error", ref.case, "", text, remedy))
            continue
        entries.append(entry)
    copies = copies_of({e.case: e.image_sha256 for e in entries}, splits)
    findings += copies
    left = {finding.case for finding in copies}
    entries = [entry for entry in entries if entry.case not in left]
    if not entries:
        codes = Counter(f.code for f in findings if f.severity == "error")
        shown = ", ".join(f"{code} x{n}" for code, n in sorted(codes.items()))
        problem = f"none of them can be used: {shown}" if refs else "the archive lists no case"
        raise UserError("cases", len(refs), "see what `hnfed check` says", problem=problem)
    _write_index(archive, cache, recipe, entries, findings)
    return CacheReport(tuple(entries), tuple(findings), built, reused)


@dataclass(frozen=True)
class _Made:
    """An entry's key and whether it was built now; or why there is none."""

    key: str = ""
    built: bool = False
    finding: Finding | None = None


def _ensure_entry(archive: Archive, cache: Cache, recipe: Recipe, ref: CaseRef) -> _Made:
    """Builds a case's entry where it is missing or damaged."""
    try:
        source = content_hash(ref, recipe.organs)
        key = digest_of(recipe.as_json(), source)
        folder = cache.root / "entries" / key
        if complete(folder):
            return _Made(key)
        with FileLock(cache.root / "locks" / f"{key}.lock"):
            if complete(folder):
                return _Made(key)
            if cache.quota_bytes:
                require_room(cache.root, recipe.settings, cache.quota_bytes)
            _build(archive, ref, folder, recipe, source)
    except CaseError as error:
        return _Made(finding=_finding(error, ref.case))
    return _Made(key, built=True)


def _build(archive: Archive, ref: CaseRef, folder: Path, recipe: Recipe, source: str) -> None:
    """Reads a case and writes its entry; called under the entry's lock."""
    # Only the holder of the lock writes under this key: leftovers are of a killed process.
    shutil.rmtree(folder, ignore_errors=True)
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    volume, findings = read_case(archive, ref, recipe.organs)
    volume, wrong = without_errors(volume)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    notes = [*findings, *wrong]
    try:
        write_entry(temporary, volume, notes, recipe, words_of(archive, ref), source)
        os.replace(temporary, folder)
        flush_folder(folder.parent)
    except OSError as error:
        remedy = "free space, or choose another folder with `cache`"
        raise UserError("cache", folder.parent, remedy, problem=str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _finding(error: CaseError, case: str) -> Finding:
    message = f"{error.field}: {error.problem or error.value}"
    return Finding(error.code, "error", case, "", message, error.remedy)


def _write_index(
    archive: Archive,
    cache: Cache,
    recipe: Recipe,
    entries: Sequence[Entry],
    findings: Sequence[Finding],
) -> None:
    """Writes the list of a site's entries, and above it what the cache was made of."""
    path = index_path(cache.root, cache.site, recipe)
    left = Counter(f.code for f in findings if f.severity == "error")
    content = {
        "format": FORMAT,
        "site": cache.site,
        "made_of": {
            "archive": archive.format,
            **json.loads(recipe.as_json()),
            "cases": {s: sum(e.split == s for e in entries) for s in SPLITS},
            "annotated": {o: sum(o in e.annotated for e in entries) for o in recipe.organs},
            "left_out": dict(sorted(left.items())),
            "versions": versions(),
        },
        "entries": [{"case": e.case, "split": e.split, "key": e.folder.name} for e in entries],
    }
    with FileLock(cache.root / "locks" / f"{path.stem}.lock"):
        replace_file(path, json.dumps(content, indent=1))


def _make_folder(folder: Path) -> None:
    try:
        private_folder(folder)
    except OSError as error:
        remedy = "choose a folder that can be written"
        raise UserError("cache", folder, remedy, problem=str(error)) from error
