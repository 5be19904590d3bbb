"""The subcommands of a site: check, prepare, client, approve, receipts."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import ARCHIVE_FORMATS, subcommand
from core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from client.site import Site
    from core.data.archive import Archive
    from core.plan import Plan

SHORTEST_DIGEST = 16


def register(subparsers: Any) -> None:
    """Adds the subcommands of a site to the subparsers of a command line."""
    _add_check(subparsers)
    _add_prepare(subparsers)
    _add_at_kit(subparsers)


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    text = "processes (default: the cores, 8 at most)"
    parser.add_argument("--jobs", type=int, default=_cores(), help=text)


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
    add("--format", choices=ARCHIVE_FORMATS, help="format of DATA (default: the site's, or auto)")
    text = "the site's own cases alone, with its spellings, splits and secret"
    add("--site", metavar="SITE.yaml", type=Path, help=text)
    add("--json", metavar="FILE", type=Path, help="write the findings as JSON")
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
    _add_jobs(parser)


def _add_at_kit(subparsers: Any) -> None:
    """The subcommands that work on a site's kit."""
    client = subcommand(
        subparsers,
        "client",
        "start a site's long-running process; outbound connections only",
        _client,
        "hnfed client kits/nyu --site nyu.yaml",
    )
    look = subcommand(
        subparsers,
        "approve",
        "look at the code that wants to run at this site, and pin it",
        _approve,
        "hnfed approve kits/nyu",
    )
    receipts = subcommand(
        subparsers,
        "receipts",
        "what has left this site",
        _receipts,
        "hnfed receipts kits/nyu --site nyu.yaml",
    )
    for parser in (client, look, receipts):
        parser.add_argument("kit", metavar="KIT", type=Path, help="the site's kit")
    for parser in (client, receipts):
        text = "site file (default: KIT/site.yaml)"
        parser.add_argument("--site", metavar="SITE.yaml", type=Path, help=text)
    look.add_argument("--diff", action="store_true", help="show the whole difference")
    look.add_argument("--yes", metavar="SHA256", help="pin this bundle without asking")
    receipts.add_argument("--json", metavar="FILE", type=Path, help="write all receipts as JSON")


def _client(args: argparse.Namespace) -> int:
    from client.node import run_node
    from client.policy import read_policy
    from core.kit import read_kit

    kit = read_kit(args.kit, "site")
    read_policy(kit.folder / "policy.yaml")
    return run_node(kit, args.site or kit.folder / "site.yaml")


def _approve(args: argparse.Namespace) -> int:
    """Shows what waits and asks; 1 where something waits and nothing was approved."""
    from client.approve import SHOWN_LINES, approve, approved, candidates, difference, overview
    from core.kit import read_kit

    kit = read_kit(args.kit, "site")
    if args.yes is not None and len(args.yes) < SHORTEST_DIGEST:
        remedy = f"give its first {SHORTEST_DIGEST} characters or more"
        raise UserError("--yes", args.yes, remedy, problem="too short for a SHA-256")
    before = approved(kit)
    for entry in before:
        print(f"approved {entry['sha256'][:SHORTEST_DIGEST]} at {entry['at']}")
    waiting = candidates(kit)
    if not waiting:
        print("no bundle waits for approval")
        return 0
    pinned = False
    for bundle in waiting:
        short = bundle.digest[:SHORTEST_DIGEST]
        lines = difference(kit, bundle.content)
        shown = lines if args.diff else lines[:SHOWN_LINES] if before else []
        for line in shown:
            print(line)
        if shown and len(shown) < len(lines):
            print(f"... {len(lines) - len(shown)} more lines: hnfed approve {args.kit} --diff")
        print(overview(bundle))
        if not shown:
            print(f"  to read all of it: hnfed approve {args.kit} --diff")
        if args.yes is not None:
            agreed = bundle.digest.startswith(args.yes)
        else:
            agreed = sys.stdin.isatty() and input("may it run here? [y/N] ").lower() == "y"
        if agreed:
            approve(kit, bundle.digest, bundle.content)
            pinned = True
            print(f"approved {short}; a running client need not be restarted")
        else:
            print(f"not approved; to pin it: hnfed approve {args.kit} --yes {short}")
    return 0 if pinned else 1


def _receipts(args: argparse.Namespace) -> int:
    from client.outbox import read_receipts, summary
    from client.site_file import site_from_file
    from core.files import replace_file
    from core.kit import read_kit

    kit = read_kit(args.kit, "site")
    site = site_from_file(args.site or kit.folder / "site.yaml", "receipts")
    found = read_receipts(site.base_folder.parent)
    print(summary(found))
    if args.json is not None:
        replace_file(args.json, json.dumps(found, indent=1) + "\n")
    return 0


def _check(args: argparse.Namespace) -> int:
    from client.site_file import site_from_file
    from core.check import check_archive
    from core.check_text import screen
    from core.data.archive import open_archive
    from core.files import replace_file

    if args.json is not None and not args.json.parent.is_dir():
        raise UserError("--json", args.json, "give a file in a folder that exists")
    secret, aliases, splits, format = secrets.token_bytes(32), None, None, args.format
    structure_set, site = "", None
    if args.site is not None:
        site = site_from_file(args.site, "check")
        source = site.sources[0]
        secret, aliases, format = site.secret, source.aliases, format or source.format
        structure_set = source.structure_set
    archive = open_archive(
        args.data, format=format or "auto", aliases=aliases, structure_set=structure_set
    )
    if args.names:
        return _names(archive, aliases, args.json)
    if site is not None:
        archive, splits = _own(site, archive)
    report = check_archive(
        archive,
        splits=splits,
        secret=secret,
        show_paths=args.show_paths,
        jobs=args.jobs,
        progress=_Progress("read"),
    )
    print(screen(report))
    if args.json is not None:
        replace_file(args.json, json.dumps(report.as_json(), indent=1) + "\n")
    return 1 if report.errors else 0


def _own(site: Site, archive: Archive) -> tuple[Archive, dict[str, str] | None]:
    """What `client.site.chosen` returns, after a line on the cases that are not the site's."""
    from dataclasses import replace

    from client.site import chosen

    own, splits = chosen(replace(site.sources[0], root=str(archive.root)), archive)
    kept = {ref.case for ref in own.cases}
    passed = [ref for ref in archive.cases if ref.case not in kept]
    others = sum(ref.site not in (None, site.name) for ref in passed)
    if others:
        print(f"{others} further cases belong to other sites by cases.csv: not checked")
    if len(passed) > others:
        print(f"{len(passed) - others} further cases are in no list of this site: not checked")
    return own, splits


def _names(
    archive: Archive, aliases: Mapping[str, Sequence[str]] | None, target: Path | None
) -> int:
    """Prints the table of names; no image is opened. 1 where a name is to be answered."""
    from core.anatomy import vocabulary
    from core.files import replace_file
    from core.name_table import name_json, name_rows, name_text

    rows = name_rows(archive.names, vocabulary(), aliases)
    print(name_text(rows))
    if target is not None:
        replace_file(target, json.dumps({"schema": 1, "names": name_json(rows)}, indent=1) + "\n")
    return int(any(row.kind == "ask" for row in rows))


def _prepare(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from client.site import count_codes
    from client.site_file import site_from_file
    from core.errors import Finding

    config, overrides = args.config, list(args.overrides)
    if config is not None and "=" in config and not Path(config).exists():
        config, overrides = None, [config, *overrides]
    plan = _plan(config, overrides)
    site = site_from_file(args.site, "prepare")
    if args.cache is not None:
        site = replace(site, cache=args.cache)
    told = _Progress("prepared")
    entries, findings = site.prepare(plan, jobs=args.jobs, progress=told)
    errors: list[Finding] = [f for f in findings if f.severity == "error"]
    parts = {part: sum(e.split == part for e in entries) for part in ("train", "val", "test")}
    shown = ", ".join(f"{part} {n}" for part, n in parts.items())
    print(f"{len(entries)} cases prepared ({shown}); {told.built} new")
    for code, n in count_codes(errors).items():
        print(f"left out: {code} x{n}")
    if errors:
        print(f"which ones: {site.run_folder / 'findings.csv'}; what to do: hnfed check")
    return 0


def _plan(config: str | None, overrides: list[str]) -> Plan:
    """The plan of a command line; without CONFIG the shipped defaults, for all built-in organs."""
    from core.anatomy import BUILT_IN
    from core.config import load

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
