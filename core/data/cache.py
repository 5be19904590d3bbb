"""Prepared cases on disk: a training site opens nothing else.

One folder an entry, named by what went into it: the bytes of the case's files, the preprocessing,
the organs and the version of the format. An entry is written beside its place and renamed into it,
so that it is complete or absent. The index of a site lists its cases, their splits and entries.

    CACHE/entries/KEY/{entry.json, image.npy, bits.npy, truth.npy}
    CACHE/index/KEY.json
    CACHE/locks/*.lock
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.data.archive import Archive, CaseRef, content_hash, read_case
from core.data.entry import (
    FORMAT,
    Entry,
    complete,
    open_entry,
    read_json,
    stored_findings,
    write_entry,
)
from core.errors import CaseError, Finding, UserError
from core.files import flush_folder, replace_file
from core.plan import Preprocess

__all__ = ["CacheReport", "Entry", "build_cache", "open_cache"]

Progress = Callable[[int, int, str], None]


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
    refs: Sequence[CaseRef],
    cache_dir: Path | str,
    organs: Sequence[str],
    settings: Preprocess,
    *,
    splits: Mapping[str, str],
    site: str = "",
    progress: Progress | None = None,
) -> CacheReport:
    """Prepares cases that are not in the cache yet, and writes the site's index.

    Safe to call from several processes at once: each entry is built once, the others wait for it.

    Args:
        archive: where the cases come from.
        refs: the cases wanted.
        cache_dir: folder of the cache, made where missing; it may serve several sites and plans.
        organs: organs of the plan, the order of the bits.
        settings: preprocessing.
        splits: case -> train, val or test, for every case of `refs`.
        site: name of the site, where several share a folder.
        progress: called with (cases done, cases in all, case id).

    Returns:
        Entries and findings. A case that cannot be used is a finding, and the others go on.

    Raises:
        UserError: no case can be used, or the cache cannot be written.
    """
    root = Path(cache_dir)
    for folder in ("entries", "index", "locks"):
        _make_folder(root / folder)
    entries: list[Entry] = []
    lines: list[dict[str, Any]] = []
    findings: list[Finding] = []
    built = reused = 0
    for done, ref in enumerate(refs):
        if progress is not None:
            progress(done, len(refs), ref.case)
        try:
            key, new = _ensure_entry(archive, ref, root, organs, settings)
        except CaseError as error:
            findings.append(_finding(error, ref.case))
            continue
        built += new
        reused += not new
        line = {"case": ref.case, "split": splits[ref.case], "key": key}
        findings.extend(stored_findings(root, line))
        entry = open_entry(root, line, organs)
        if not entry.annotated:
            findings.append(_no_organ(ref.case))
            continue
        entries.append(entry)
        lines.append(line)
    if progress is not None:
        progress(len(refs), len(refs), "")
    if not entries:
        first = findings[0].message if findings else "the archive lists no case"
        raise UserError("root", archive.root, "see what `hnfed check` says", problem=first)
    _write_index(root, site, organs, settings, lines)
    return CacheReport(tuple(entries), tuple(findings), built, reused)


def open_cache(
    cache_dir: Path | str, organs: Sequence[str], settings: Preprocess, *, site: str = ""
) -> list[Entry]:
    """Opens the prepared cases of a site; reads no voxel and no file of the archive.

    Args:
        cache_dir: folder that `build_cache` filled.
        organs: organs of the plan, in its order.
        settings: preprocessing of the plan.
        site: as given to `build_cache`.

    Returns:
        The entries in the order of the archive.

    Raises:
        UserError: these settings have not been prepared here, or the cache is damaged.
    """
    root = Path(cache_dir)
    path = _index_path(root, site, organs, settings)
    remedy = "prepare the archive for this plan: hnfed prepare SITE.yaml CONFIG"
    if not path.is_file():
        problem = "holds no cases prepared with these organs, spacing, crop and window"
        raise UserError("cache", root, remedy, problem=problem)
    try:
        lines = read_json(path)["entries"]
        return [open_entry(root, line, organs) for line in lines]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError("cache", root, remedy, problem=f"damaged ({error})") from error


def _ensure_entry(
    archive: Archive, ref: CaseRef, root: Path, organs: Sequence[str], settings: Preprocess
) -> tuple[str, bool]:
    """Returns the key of a case's entry and whether it had to be built."""
    key = _digest(_settings_of(organs, settings), content_hash(ref, organs))
    folder = root / "entries" / key
    if complete(folder):
        return key, False
    with FileLock(root / "locks" / f"{key}.lock"):
        if complete(folder):
            return key, False
        # Only the holder of the lock writes under this key: leftovers are of a killed process.
        shutil.rmtree(folder, ignore_errors=True)
        for stale in (root / "entries").glob(f".{key}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        volume, findings = read_case(archive, ref, organs)
        temporary = root / "entries" / f".{key}.{uuid.uuid4().hex[:8]}"
        try:
            write_entry(temporary, volume, findings, organs, settings, str(archive.root))
            os.replace(temporary, folder)
            flush_folder(folder.parent)
        except OSError as error:
            remedy = "free space, or choose another folder with `cache`"
            raise UserError("cache", root, remedy, problem=str(error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return key, True


def _finding(error: CaseError, case: str) -> Finding:
    message = f"{error.field}: {error.problem or error.value}"
    return Finding(error.code, "error", case, "", message, error.remedy)


def _no_organ(case: str) -> Finding:
    remedy = "add aliases for the organ names used here, or exclude the case"
    return Finding("E_NO_ORGAN", "error", case, "", "no organ of the plan is annotated", remedy)


def _settings_of(organs: Sequence[str], settings: Preprocess) -> str:
    fields = {
        "format": FORMAT,
        "organs": list(organs),
        "spacing_mm": [float(v) for v in settings.spacing_mm],
        "crop": [int(v) for v in settings.crop],
        "window_hu": [float(v) for v in settings.window_hu],
    }
    return json.dumps(fields, sort_keys=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _index_path(root: Path, site: str, organs: Sequence[str], settings: Preprocess) -> Path:
    return root / "index" / f"{_digest(_settings_of(organs, settings), site)}.json"


def _write_index(
    root: Path,
    site: str,
    organs: Sequence[str],
    settings: Preprocess,
    lines: Sequence[Mapping[str, str]],
) -> None:
    path = _index_path(root, site, organs, settings)
    text = json.dumps({"format": FORMAT, "site": site, "entries": list(lines)}, indent=1)
    with FileLock(root / "locks" / f"{path.stem}.lock"):
        replace_file(path, text)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose a folder that can be written"
        raise UserError("cache", folder, remedy, problem=str(error)) from error
