"""The subcommands of a researcher: simulate, grid; imports what one needs as it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.errors import UserError
from hnfed.cli.json_output import SCREEN, add_json


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], release: str = ""
) -> None:
    """Adds the subcommands of a researcher to those of a command line.

    Args:
        commands: of the command line.
        release: ``module:function`` that each reply of a simulated site passes, see
            `simulations.released`.
    """
    sub = commands.add_parser(
        "simulate",
        help="run a plan with all its sites on this machine",
        description="Runs the plan, all its phases, with Flower's simulation engine on Ray.",
        epilog="examples:\n  hnfed simulate demo\n"
        "  hnfed simulate demo simulation.engine=inline --out runs/x\n"
        "  hnfed simulate demo simulation.baseline=local-only",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument(
        "config",
        nargs="?",
        default="demo",
        metavar="CONFIG",
        help="a shipped plan or a YAML file (default: demo)",
    )
    sub.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="dotted keys of the configuration"
    )
    sub.add_argument("--out", type=Path, help="run folder (default: runs/CONFIG)")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    sub.set_defaults(handler=_simulate, release=release)
    _register_grid(commands)


def _register_grid(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = commands.add_parser(
        "grid",
        help="run the cells of a study, and go on with those that are not done",
        description="Runs every cell (variant, axes, seed) of a study as a run of its own; what "
        "is done is kept, what was interrupted is resumed.",
        epilog="examples:\n  hnfed grid transfer simulation.data=DIR --list\n"
        "  hnfed grid transfer simulation.data=DIR --out runs/transfer --only 'scratch-*'\n"
        "  hnfed grid my-study.yaml seeds=[0,1,2] --jobs 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("study", metavar="STUDY", help="a shipped study, or a YAML file")
    sub.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="dotted keys, for every cell; seeds=[...]"
    )
    sub.add_argument("--out", type=Path, help="folder of the cells (default: runs/STUDY)")
    sub.add_argument(
        "--jobs", type=int, help="cells side by side (default: CPUs // simulation.cpus_per_site)"
    )
    sub.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="GLOB", help="cells by name"
    )
    sub.add_argument("--list", action="store_true", help="print the cells, run nothing")
    add_json(sub, "the cells and where each stands (with --list)")
    sub.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    sub.set_defaults(handler=_grid)


def _simulate(options: argparse.Namespace) -> int:
    from core.files import keep_from_others
    from hnfed.report.page import write_report
    from simulations.run import simulate

    keep_from_others()
    config, overrides = options.config, list(options.overrides)
    if "=" in config and not Path(config).exists():
        config, overrides = "demo", [config, *overrides]
    return simulate(
        config,
        overrides,
        options.out,
        resume=options.resume,
        release=options.release,
        report=write_report,
    )


def _grid(options: argparse.Namespace) -> int:
    from core.files import keep_from_others
    from simulations.sweep import grid, list_cells

    keep_from_others()
    if options.json is not None and not options.list:
        remedy = "give it with --list; a study that runs writes grid.json"
        raise UserError("--json", options.json.path or SCREEN, remedy)
    swallowed = [item for item in options.only if "=" in item]  # KEY=VALUE after --only
    overrides = [*options.overrides, *swallowed]
    only = [item for item in options.only if "=" not in item]
    if options.list:
        cells = list_cells(options.study, overrides, options.out, only)
        if options.json is not None:
            options.json.write({"schema": 1, "cells": cells})
        return 0
    return grid(options.study, overrides, options.out, jobs=options.jobs, only=only)
