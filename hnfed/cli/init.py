"""The subcommand `hnfed init`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hnfed.cli.results import subcommand

KINDS = ("site", "plan", "federation")


def register(commands: Any) -> None:
    """Adds the subcommand to those of a command line."""
    init = subcommand(
        commands,
        "init",
        "write a site file, a plan or a federation file from a few questions",
        _init,
        "hnfed init plan                                 # asks; Enter takes what stands in []",
        "hnfed init site name=nyu root=/data/archive     # asks for the rest alone",
        "hnfed init federation host=fed.example.org sites=nyu,miccai,ucl --yes",
    )
    init.add_argument("kind", choices=KINDS, help="what to write")
    text = "answers beforehand: KEY as in the file that is asked for"
    init.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=text)
    text = "new file (default: site.yaml, plan.yaml, federation.yaml); none is overwritten"
    init.add_argument("-o", "--output", metavar="FILE", type=Path, help=text)
    text = "ask nothing, take the defaults; so it is, too, where there is no terminal"
    init.add_argument("--yes", action="store_true", help=text)


def _init(args: argparse.Namespace) -> int:
    from core.plan.load import require_pairs
    from hnfed.deploy.starter import can_ask, start, typed

    require_pairs(args.overrides)
    given = {key: value for key, _, value in (text.partition("=") for text in args.overrides)}
    ask = None if args.yes or not can_ask() else typed
    for line in start(args.kind, given, args.output, ask):
        print(line)
    return 0
