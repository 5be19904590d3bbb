"""The subcommand `hnfed join`: a site becomes part of a federation with a key of its own."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.text import shown
from hnfed.cli.results import subcommand


def register(subparsers: Any) -> None:
    """Adds join to the subparsers of a command line."""
    parser = subcommand(
        subparsers,
        "join",
        "make this site's key and request; take the coordinator's answer in; confirm other sites",
        _join,
        "hnfed join hn --name nyu",
    )
    add = parser.add_argument
    add("federation", metavar="FEDERATION", type=Path,
        help="folder that is, or becomes, this site's kit")  # fmt: skip
    add("--name", metavar="SITE", help="begin: the pseudonym agreed on with the coordinator")
    add("--answer", metavar="FILE", type=Path, help="what the coordinator sent back")
    add("--authority", metavar="HEX",
        help="its fingerprint, as the coordinator read it out; no question is asked")  # fmt: skip
    add("--confirm", metavar=("SITE", "FINGERPRINT"), nargs=2,
        help="this is what the people at that site read out by phone")  # fmt: skip


def _join(args: argparse.Namespace) -> int:
    """One step of joining; without options the fingerprints are shown."""
    from hnfed.deploy.join import KEY, begin, overview, own_fingerprint, read_for
    from hnfed.guard.kit import FILE, read_kit
    from hnfed.guard.peers import confirm

    folder: Path = args.federation
    if sum(bool(option) for option in (args.name, args.answer, args.confirm)) > 1:
        remedy = "give one of --name, --answer, --confirm; each is a step of its own"
        raise UserError("hnfed join", folder, remedy, problem="more than one step at once")
    if args.name is not None:
        return _begin(begin(folder, args.name), own_fingerprint(folder))
    if not (folder / KEY).is_file():
        remedy = f"begin with: hnfed join {shlex.quote(str(folder))} --name SITE"
        raise UserError("FEDERATION", folder, remedy, problem="no key of this site in it")
    if args.answer is not None:
        return _take_in(folder, read_for(args.answer, folder), args.authority)
    if not (folder / FILE).is_file():
        print("not part of a federation yet: hnfed join FEDERATION --answer FILE")
        print(f"this site's fingerprint: {_spoken(own_fingerprint(folder))}")
        return 1
    kit = read_kit(folder, "site")
    if args.confirm is not None:
        site, said = args.confirm
        confirm(kit, site, said)
    print("\n".join(overview(kit)))
    return 0


def _begin(request: Path, own: str) -> int:
    print(f"send {shown(request)} to the coordinator; nothing in it is secret")
    print(f"this site's fingerprint: {_spoken(own)}")
    print("read it out when the coordinator rings; the key stays in this folder")
    print(f"then, with the answer: hnfed join {shlex.quote(str(request.parent))} --answer FILE")
    return 0


def _take_in(folder: Path, answer: Any, fingerprint: str | None) -> int:
    """Asks whether the authority is the coordinator's, unless this kit trusts it already."""
    from hnfed.deploy.join import authority_fingerprint, known_authority, overview, take_in
    from hnfed.guard.kit import read_kit
    from hnfed.guard.peers import agrees

    found, known = authority_fingerprint(answer), known_authority(folder)
    where = f"federation {answer.federation} at {answer.host}:{answer.port}"
    print(f"{where}; this site is {answer.site}; authority {_spoken(found)}")
    if known and known != found:
        print(f"this kit trusts ANOTHER authority so far: {_spoken(known)}")
    if fingerprint is not None:
        agreed = agrees(fingerprint, found)
    elif known == found:
        agreed = True
    else:
        question = "does the coordinator, on the phone, read out the same authority? [y/N] "
        agreed = sys.stdin.isatty() and input(question).lower() == "y"
    if not agreed:
        print("not taken in; ask the coordinator, then: --authority WHAT-THEY-READ")
        return 1
    for line in take_in(folder, answer):
        print(line)
    print("\n".join(overview(read_kit(folder, "site"))))
    print("before secure aggregation: ring each other site, compare, and then")
    print(f"  hnfed join {shlex.quote(str(folder))} --confirm SITE FINGERPRINT")
    return 0


def _spoken(sha256: str) -> str:
    from hnfed.guard.peers import spoken

    return spoken(sha256)
