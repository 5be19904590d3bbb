"""The subcommands of `hnfed config`: a plan with all its values, and its JSON schema."""

from __future__ import annotations

import argparse
import json
from typing import Any

from core.text import shown
from hnfed.cli.json_output import add_json
from hnfed.cli.results import subcommand

WIDTH = 56


def register(commands: Any) -> None:
    """Adds config and its subcommands to those of a command line."""
    config = commands.add_parser("config", help="look at configurations")
    looks = config.add_subparsers(dest="config_command", required=True, metavar="COMMAND")
    show = subcommand(
        looks,
        "show",
        "the resolved configuration, and where each value comes from",
        _show,
        "hnfed config show demo train.lr=0.001",
    )
    show.add_argument("config", metavar="CONFIG", help="a name in configs/, or a YAML file")
    show.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides, dotted keys")
    add_json(show, "the configuration and where each value comes from")
    subcommand(
        looks,
        "schema",
        "the JSON schema of a plan, for editors: keys, types, ranges, choices",
        _schema,
        "hnfed config schema > plan.schema.json",
    )


def _show(args: argparse.Namespace) -> int:
    import dataclasses

    from core.plan.load import load
    from hnfed.report.settings import flat as flattened

    config, sources = load(args.config, args.overrides)
    values = dataclasses.asdict(config)
    flat = dict(flattened(values))
    for key, value in flat.items():
        print(shown(f"{key} = {value}".ljust(WIDTH) + f"  # {sources.get(key, 'default')}"))
    if args.json is not None:
        origin = {key: sources.get(key, "default") for key in flat}
        args.json.write({"schema": 1, "config": values, "sources": origin})
    return 0


def _schema(args: argparse.Namespace) -> int:
    from hnfed.plan_schema import plan_schema

    print(json.dumps(plan_schema(), indent=2, allow_nan=False))
    return 0
