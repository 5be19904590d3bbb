"""`hnfed models`: the models that come with hnfed."""

from __future__ import annotations

import argparse
from typing import Any

from hnfed.cli.json_output import add_json
from hnfed.cli.results import subcommand


def register(commands: Any) -> None:
    """Adds models to the subparsers of a command line."""
    parser = subcommand(
        commands,
        "models",
        "the models that come with hnfed: organs, data, scores, licence",
        _models,
        "hnfed models --json models.json",
        "hnfed predict -i CT -o contours --model openkbp-base",
    )
    add_json(parser, "the models")


def _models(args: argparse.Namespace) -> int:
    from hnfed.predict.shipped import listed

    found = listed()
    for model in found:
        spacing = " x ".join(f"{mm:g}" for mm in model["spacing_mm"])
        print(f"{model['name']}  {model['bytes'] / 1e6:.1f} MB, voxels of {spacing} mm (z, y, x)")
        print(f"  data     {model['data']}")
        print(f"  licence  {model['licence']}")
        for row in model["test"]:
            low, high = row["low"], row["high"]
            print(
                f"  {row['organ']:<16} test Dice {row['dice']:.3f} ({low:.3f} to {high:.3f}), "
                f"{row['n']} CTs"
            )
        print(f"  card     {model['card']}")
    if found:
        print(
            "Research only: never for clinical use. Contours are drafts that a person must check."
        )
    else:
        print("no model comes with this installation")
    if args.json is not None:
        args.json.write({"schema": 1, "models": found})
    return 0
