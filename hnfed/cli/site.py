"""The subcommands at a site's kit: client, approve, receipts."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from hnfed.cli import plans
from hnfed.cli.json_output import add_json
from hnfed.cli.results import subcommand

if TYPE_CHECKING:
    from hnfed.guard.kit import Kit

SHORTEST_DIGEST = 16


def register(subparsers: Any) -> None:
    """Adds the subcommands that work on a site's kit to those of a command line."""
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
    text = "take the approval back: no code may run here then"
    look.add_argument("--withdraw", action="store_true", help=text)
    look.add_argument("--yes", metavar="SHA256", help="pin this bundle without asking")
    plans.add_arguments(look)
    add_json(look, "what is approved and what waits, without asking")
    add_json(receipts, "all receipts")
    text = "is each receipt as it was written, and none missing? 1 if not"
    receipts.add_argument("--verify", action="store_true", help=text)


def _client(args: argparse.Namespace) -> int:
    from core.files import keep_from_others
    from hnfed.deploy.supernode import run_node
    from hnfed.guard.kit import read_kit
    from hnfed.guard.policy import read_policy

    keep_from_others()
    kit = read_kit(args.kit, "site")
    read_policy(kit.folder / "policy.yaml")
    return run_node(kit, _site_file(args.site, kit))


def _site_file(given: Path | None, kit: Kit) -> Path:
    """The site file: the one that was given, or the kit's.

    Raises:
        UserError: none was given, and the kit holds none.
    """
    path = given or kit.folder / "site.yaml"
    if given is None and not path.is_file():
        remedy = "name the site file: --site SITE.yaml, or lay it there"
        raise UserError("--site", "(not given)", remedy, problem=f"no {path}")
    return path


def _approve(args: argparse.Namespace) -> int:
    """Shows what waits and asks; 1 where something waits and nothing was approved."""
    if args.plan is not None:
        return plans.approve_plans(args)
    from core.text import shown
    from hnfed.guard.approvals import (
        SHOWN_LINES,
        approve,
        approved,
        candidates,
        overview,
        withdraw,
    )
    from hnfed.guard.kit import read_kit
    from hnfed.guard.persons import approvals_json, now
    from hnfed.guard.policy import read_policy

    kit = read_kit(args.kit, "site")
    policy = read_policy(kit.folder / "policy.yaml")
    if args.withdraw:
        gone = withdraw(kit)
        print(f"withdrawn {gone[:SHORTEST_DIGEST]}" if gone else "nothing was approved")
        return 0
    if args.yes is not None and len(args.yes) < SHORTEST_DIGEST:
        remedy = f"give its first {SHORTEST_DIGEST} characters or more"
        raise UserError("--yes", args.yes, remedy, problem="too short for a SHA-256")
    before = approved(kit)
    for entry in before:
        state = "approved" if entry.enough(policy.approvers) else "half approved"
        who = ", ".join(f"{p.person} at {p.at}" for p in entry.persons)
        print(shown(f"{state} {entry.digest[:SHORTEST_DIGEST]} by {who}"))
    waiting = candidates(kit, policy.approvers)
    if args.json is not None:
        args.json.write(approvals_json(before, [b.digest for b in waiting], policy.approvers))
        return 0
    if not waiting:
        print("no bundle waits for approval")
        return 0
    pinned, place = False, shlex.quote(str(args.kit))
    for bundle in waiting:
        short = bundle.digest[:SHORTEST_DIGEST]
        lines = _difference(kit, bundle.content)
        told = lines if args.diff else lines[:SHOWN_LINES] if before else []
        for line in told:
            print(shown(line.expandtabs()))
        if told and len(told) < len(lines):
            print(f"... {len(lines) - len(told)} more lines: hnfed approve {place} --diff")
        for line in overview(bundle).split("\n"):
            print(shown(line))
        if not told:
            print(f"  to read all of it: hnfed approve {place} --diff")
        if args.yes is not None:
            agreed = bundle.digest.startswith(args.yes)
        else:
            agreed = sys.stdin.isatty() and input("may it run here? [y/N] ").lower() == "y"
        if agreed:
            entry = approve(kit, bundle.digest, bundle.content, now(args.person))
            pinned = True
            if entry.enough(policy.approvers):
                print(f"approved {short}; a running client need not be restarted")
            else:
                print(f"agreed to {short}; another person must agree too: --as NAME")
        else:
            print(f"not approved; to pin it: hnfed approve {place} --yes {short}")
    return 0 if pinned else 1


def _difference(kit: Kit, content: bytes) -> list[str]:
    from hnfed.guard.approvals import difference
    from hnfed.guard.unpack import BundleError

    try:
        return difference(kit, content)
    except BundleError:  # its overview says why
        return []


def _receipts(args: argparse.Namespace) -> int:
    """What has left; with ``--verify`` 1 where a receipt was changed, removed or moved."""
    from core.text import shown
    from hnfed.deploy.site_file import site_from_file
    from hnfed.guard.kit import read_kit
    from hnfed.guard.receipt_words import summary
    from hnfed.guard.receipts import read_receipts

    kit = read_kit(args.kit, "site")
    site = site_from_file(_site_file(args.site, kit), "node")
    state = site.base_folder.parent
    found = read_receipts(state)
    for line in summary(found).split("\n"):
        print(shown(line))
    if args.json is not None:
        args.json.write(found)
    return _verify(kit, state) if args.verify else 0


def _verify(kit: Kit, state: Path) -> int:
    from core.text import shown
    from hnfed.guard.countersigned import missing
    from hnfed.guard.kit_files import needed_bytes
    from hnfed.guard.receipts import public_key, read_lines, verify

    count = sum(1 for _ in read_lines(state))
    wrong = verify(state, public_key(kit.folder / "node.pub"))
    lost, last = missing(state, kit.role, needed_bytes(kit.ca))
    print(f"\n{count} receipts in the chain, countersigned by the server up to number {last}")
    for text in (*wrong, *lost):
        print(shown(f"wrong: {text}"))
    if not wrong and not lost:
        print("each is as it was written, and none is missing before the last countersigned one")
    return 1 if wrong or lost else 0
