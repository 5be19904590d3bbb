"""The subcommands of a researcher: simulate, grid; imports what one needs as it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.errors import UserError
from hnfed.cli.json_output import SCREEN, add_json
from hnfed.cli.parser import whole_number
from hnfed.cli.results import subcommand

ON = ("local", "ray", "slurm")


def register(commands: Any, release: str = "") -> None:
    """Adds the subcommands of a researcher to those of a command line.

    Args:
        commands: of the command line.
        release: ``module:function`` that each reply of a simulated site passes, see
            `simulations.released`.
    """
    sub = subcommand(
        commands,
        "simulate",
        "run a plan, all its phases, with all its sites on this machine",
        _simulate,
        "hnfed simulate demo",
        "hnfed simulate demo simulation.engine=inline --out runs/x",
        "hnfed simulate demo simulation.baseline=local-only",
    )
    text = "a shipped plan or a YAML file (default: demo)"
    sub.add_argument("config", nargs="?", default="demo", metavar="CONFIG", help=text)
    text = "dotted keys of the configuration"
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    sub.add_argument("--out", type=Path, help="run folder (default: runs/CONFIG)")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.set_defaults(release=release)
    grid = subcommand(
        commands,
        "grid",
        "run the cells of a study, and go on with those that are not done",
        _grid,
        "hnfed grid transfer simulation.data=DIR --list",
        "hnfed grid transfer simulation.data=DIR --out runs/transfer --only 'scratch-*'",
        "hnfed grid my-study.yaml seeds=[0,1,2] --jobs 2",
        "hnfed grid transfer simulation.data=DIR --on slurm --slurm partition=long",
        "hnfed grid transfer simulation.data=DIR --on ray simulation.ray=10.0.0.1:6379",
    )
    grid.add_argument("study", metavar="STUDY", help="a shipped study, or a YAML file")
    text = "dotted keys, for every cell; seeds=[...]"
    grid.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    grid.add_argument("--out", type=Path, help="folder of the cells (default: runs/STUDY)")
    text = "where the cells run: this machine (local, default), the nodes of a Ray or Slurm cluster"
    grid.add_argument("--on", choices=ON, default=ON[0], help=text)
    text = (
        "a setting of submitit's for --on slurm, several times: partition=P, time=MINUTES, mem=8GB"
    )
    grid.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=text)
    text = "cells side by side (default: CPUs // simulation.cpus_per_site; on a cluster all)"
    grid.add_argument("--jobs", type=whole_number, help=text)
    text = "cells by name"
    grid.add_argument("--only", nargs="+", action="extend", default=[], metavar="GLOB", help=text)
    text = "print the cells, how far each has come and where it is; run nothing"
    grid.add_argument("--list", action="store_true", help=text)
    add_json(grid, "the cells and where each stands (with --list)")


def _simulate(options: argparse.Namespace) -> int:
    from core.files import keep_from_others
    from hnfed.report.page import write_report
    from simulations.run import simulate

    keep_from_others()
    config, overrides = options.config, list(options.overrides)
    if "=" in config and not Path(config).exists():
        config, overrides = "demo", [config, *overrides]
    resume, release = options.resume, options.release
    return simulate(
        config, overrides, options.out, resume=resume, release=release, report=write_report
    )


def _grid(options: argparse.Namespace) -> int:
    from core.files import keep_from_others
    from core.plan.load import require_pairs, value_of
    from core.plan.schema import Simulation
    from simulations.cell_list import list_cells
    from simulations.places.where import Where, of_the_cluster
    from simulations.sweep import grid

    keep_from_others()
    if options.json is not None and not options.list:
        remedy = "give it with --list; a study that runs writes grid.json"
        raise UserError("--json", options.json.path or SCREEN, remedy)
    swallowed = [item for item in options.only if "=" in item]  # KEY=VALUE after --only
    overrides = [*options.overrides, *swallowed]
    only = [item for item in options.only if "=" not in item]
    ray = Simulation()
    if options.on == "ray":
        overrides, ray = of_the_cluster(overrides)
    if options.list:
        cells = list_cells(options.study, overrides, options.out, only)
        if options.json is not None:
            options.json.write({"schema": 1, "cells": cells})
        return 0
    require_pairs(options.slurm)
    pairs = [item.partition("=") for item in options.slurm]
    slurm = {name: value_of(f"--slurm {name}", text) for name, _, text in pairs}
    where = Where(options.on, options.jobs, slurm, ray)
    return grid(options.study, overrides, options.out, where=where, only=only)
