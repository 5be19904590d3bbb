"""The subcommands on a site's archive: check, prepare."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.archives.formats.table import FORMATS
from core.text import shown_text
from hnfed.cli.json_output import JsonFile, add_json
from hnfed.cli.parser import whole_number
from hnfed.cli.results import subcommand

ALIAS = "W_ALIAS_UNKNOWN"

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from core.archives.archive import Archive
    from core.data.site import Site
    from core.plan.schema import Plan


def register(subparsers: Any) -> None:
    """Adds the subcommands of a site to the subparsers of a command line."""
    _add_check(subparsers)
    _add_prepare(subparsers)


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    text = "processes (default: the cores, 8 at most)"
    parser.add_argument("--jobs", type=whole_number, default=_cores(), help=text)


def _add_check(subparsers: Any) -> None:
    parser = subcommand(
        subparsers,
        "check",
        "what of an archive can be used, and what is wrong with the rest",
        _check,
        "hnfed check /data/archive --site site.yaml --json findings.json",
    )
    add = parser.add_argument
    add("data", metavar="DATA", type=Path, help="folder of the archive")
    formats = ("auto", *FORMATS)
    add("--format", choices=formats, help="format of DATA (default: the site's, or auto)")
    text = "the site's own cases alone, with its spellings, splits and secret"
    add("--site", metavar="SITE.yaml", type=Path, help=text)
    add_json(parser, "the findings")
    add("--show-paths", action="store_true", help="name cases and files, instead of hashes")
    add("--names", action="store_true", help="print what each structure's name means; nothing else")
    _add_jobs(parser)


def _add_prepare(subparsers: Any) -> None:
    parser = subcommand(
        subparsers,
        "prepare",
        "archive -> cache that training uses; what is there already is kept",
        _prepare,
        "hnfed prepare site.yaml demo --jobs 8",
    )
    add = parser.add_argument
    add("site", metavar="SITE.yaml", type=Path, help="the site file")
    add("config", metavar="CONFIG", nargs="?", help="plan with `preprocess` and organs")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="overrides, dotted keys")
    add("--cache", metavar="DIR", type=Path, help="folder of the cache (default: the site's)")
    add_json(parser, "what was prepared and what was left out, in numbers")
    _add_jobs(parser)


def _check(args: argparse.Namespace) -> int:
    import secrets

    from core.archives.archive import open_archive
    from hnfed.check.archive_check import check_archive
    from hnfed.check.text import screen
    from hnfed.deploy.site_file import site_from_file

    secret, aliases, splits, format = secrets.token_bytes(32), None, None, args.format
    structure_set, site = "", None
    if args.site is not None:
        site = site_from_file(args.site, "check")
        source = site.sources[0]
        secret, aliases, format = site.secret, source.aliases, format or source.format
        structure_set = source.structure_set
    archive = open_archive(
        args.data,
        format=format or "auto",
        aliases=aliases,
        structure_set=structure_set,
        empty=not args.names,
    )
    if args.names:
        return _names(archive, aliases, args.json)
    if site is not None:
        archive, splits = _own(site, archive)
    report = check_archive(
        archive,
        splits=splits,
        secret=None if args.show_paths else secret,
        jobs=args.jobs,
        progress=_Progress("read"),
    )
    print(shown_text(screen(report)))
    if args.json is not None:
        args.json.write(report.as_json())
    return 1 if report.errors else 0


def _own(site: Site, archive: Archive) -> tuple[Archive, dict[str, str] | None]:
    """The site's own cases, and their splits where it lists them, as `hnfed prepare` takes them.

    A line tells how many cases are other sites'.
    """
    from dataclasses import replace

    from core.archives.preparing import chosen
    from core.archives.splits import named_splits, overruled
    from core.data.site import COUNT

    source = replace(site.sources[0], root=str(archive.root), absent=COUNT)  # a check says it all
    own, explicit = chosen(source, archive)
    kept = {ref.case for ref in own.cases}
    others = sum(r.case not in kept and r.site not in (None, site.name) for r in archive.cases)
    if others:
        print(f"{others} further cases belong to other sites by cases.csv: not checked")
    if explicit is None:
        return own, None
    splits = named_splits(own, explicit)
    return replace(own, findings=(*own.findings, *overruled(splits, explicit))), splits


def _names(
    archive: Archive, aliases: Mapping[str, Sequence[str]] | None, target: JsonFile | None
) -> int:
    """Prints the table of names; no image is opened. 1 where a name is to be answered."""
    from core.organs.vocabulary import vocabulary
    from hnfed.check.name_table import name_json, name_rows, name_text

    rows = name_rows(archive.names, vocabulary(), aliases)
    print(shown_text(name_text(rows)))
    if target is not None:
        target.write({"schema": 1, "names": name_json(rows)})
    return int(any(row.kind == "ask" for row in rows))


def _prepare(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from core.archives.preparing import count_codes, keep, prepare
    from core.errors import Finding
    from core.files import keep_from_others, require_private
    from hnfed.deploy.site_file import site_from_file
    from hnfed.report.reasons import meaning

    keep_from_others()
    config, overrides = args.config, list(args.overrides)
    if config is not None and "=" in config and not Path(config).exists():
        config, overrides = None, [config, *overrides]
    plan = _plan(config, overrides)
    site = site_from_file(args.site, "prepare")
    if args.cache is not None:
        if args.cache.is_dir():
            require_private("--cache", args.cache)
        site = replace(site, cache=args.cache)
    told = _Progress("prepared")
    prepared = prepare(site, plan, jobs=args.jobs, progress=told)
    keep(site, prepared)
    entries = prepared.entries
    errors: list[Finding] = [f for f in prepared.findings if f.severity == "error"]
    parts = {part: sum(e.split == part for e in entries) for part in ("train", "val", "test")}
    shown = ", ".join(f"{part} {n}" for part, n in parts.items())
    print(f"{len(entries)} cases prepared ({shown}); {told.built} new")
    lost = count_codes(errors)
    for code, n in lost.items():
        print(f"left out: {code} x{n}")
    noted = {c: n for c, n in count_codes(prepared.findings).items() if c not in lost}
    aliases = sum(f.code == ALIAS for f in prepared.findings)
    noted |= {ALIAS: aliases} if aliases else {}
    for code, n in noted.items():
        print(f"noted: {code} x{n}, {meaning(code)}")
    if none := [o for o in plan.organ_names if not any(o in e.annotated for e in entries)]:
        print(f"annotated by no case: {', '.join(none)}; names and aliases: hnfed check --names")
    if prepared.findings:
        print(f"which ones: {site.run_folder / 'findings.csv'}; what to do: hnfed check")
    if args.json is not None:
        args.json.write(
            {"schema": 1, "cases": parts, "new": told.built, "left_out": lost, "noted": noted}
        )
    return 0


def _plan(config: str | None, overrides: list[str]) -> Plan:
    """The plan of a command line; without CONFIG the shipped defaults, for all built-in organs."""
    import tempfile

    from core.organs.vocabulary import BUILT_IN
    from core.plan.load import load

    if config is not None:
        return load(config, overrides)[0].plan
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "defaults.yaml"
        organs = ", ".join(BUILT_IN)
        path.write_text(f"phases: [{{name: all, sites: [site], organs: [{organs}]}}]\n")
        return load(str(path), overrides)[0].plan


class _Progress:
    """A line of progress with the time left; on a terminal it is overwritten."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.start = time.monotonic()
        self.told = 0.0
        self.built = 0

    def __call__(self, done: int, count: int, built: bool = False) -> None:
        self.built += built
        now = time.monotonic()
        last = done == count
        live = sys.stderr.isatty()
        if not last and now - self.told < (0.2 if live else 10.0):
            return
        self.told = now
        left = (now - self.start) / max(done, 1) * (count - done)
        about = f", about {left / 60:.0f} min left" if left > 120 else f", about {left:.0f} s left"
        end = "\r" if live and not last else "\n"
        text = f"{self.word} {done} of {count} cases{'' if last else about}"
        print(text.ljust(60) if live else text, end=end, file=sys.stderr, flush=True)
