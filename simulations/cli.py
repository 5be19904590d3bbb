"""The command `hnfed`: the only place that sees all; imports what a subcommand needs as it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import client.cli
import core.cli
import server.cli
from core.errors import UserError
from core.service import Stopped, leave_by_signal, leave_if_told

EXAMPLES = """examples:
  hnfed simulate demo
  hnfed simulate openkbp simulation.data=../shared/data/openkbp --out runs/openkbp
  hnfed grid transfer simulation.data=../shared/data/openkbp --list
  hnfed predict -i ct.nrrd -o contours --model runs/demo
  hnfed config show demo"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code (0 done, 1 failed, 2 wrong usage, 130, 143)."""
    _quiet_environment()
    parser = _parser()
    options = _parsed(parser, arguments)
    if not hasattr(options, "handler"):
        parser.print_help()
        return 2
    leave_by_signal()
    try:
        return _handled(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"hnfed: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hnfed: interrupted; what was done is kept", file=sys.stderr)
        return 130
    except Stopped as stopped:  # a second signal, while what was started is ended
        return 128 + stopped.number
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(
            f"hnfed: error: unexpected {type(error).__name__}: {str(error)[:500]}\n"
            "  remedy: run the command again with --debug and report what it prints",
            file=sys.stderr,
        )
        return 1


def _handled(options: argparse.Namespace) -> int:
    try:
        return int(options.handler(options))
    finally:
        leave_if_told()  # a library may have taken a signal for an error of its own, or for none


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; KEY=VALUE may stand anywhere behind the subcommand, not in one row only."""
    options, rest = parser.parse_known_args(arguments)
    strange = [text for text in rest if text.startswith("-") or "=" not in text]
    if strange or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hnfed",
        description="Federated organ segmentation for head-and-neck CT.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
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
    sub.set_defaults(handler=_simulate)
    _register_grid(commands)
    _register_doctor(commands)
    client.cli.register(commands)
    server.cli.register(commands)
    core.cli.register(commands)
    return parser


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
    sub.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    sub.set_defaults(handler=_grid)


def _register_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = core.cli.subcommand(
        commands,
        "doctor",
        "is this machine ready: PASS, WARN or FAIL with the remedy",
        _doctor,
        "hnfed doctor --role site --kit kits/nyu --site nyu.yaml --plan openkbp",
    )
    sub.add_argument("--role", choices=("site", "server", "researcher"), help="default: by KIT")
    sub.add_argument("--kit", metavar="KIT", type=Path, help="of the site or the server")
    sub.add_argument("--site", metavar="SITE.yaml", type=Path, help="its cache and device")
    sub.add_argument(
        "--plan", metavar="CONFIG", help="take a training step of this plan: is there the memory?"
    )


def _simulate(options: argparse.Namespace) -> int:
    from simulations.run import simulate

    config, overrides = options.config, list(options.overrides)
    if "=" in config and not Path(config).exists():
        config, overrides = "demo", [config, *overrides]
    return simulate(config, overrides, options.out, resume=options.resume)


def _grid(options: argparse.Namespace) -> int:
    from simulations.grid import grid

    swallowed = [item for item in options.only if "=" in item]  # KEY=VALUE after --only
    return grid(
        options.study,
        [*options.overrides, *swallowed],
        options.out,
        jobs=options.jobs,
        only=[item for item in options.only if "=" not in item],
        list_only=options.list,
    )


def _doctor(options: argparse.Namespace) -> int:
    from itertools import chain

    from client.doctor import examine_site
    from client.site_file import site_from_file
    from core.config import load
    from core.doctor import examine, report, role_of
    from core.kit import SERVER, read_kit
    from server.provision import ROSTER

    kit = None
    folder = options.kit
    if folder is not None:
        server = options.role == SERVER or (options.role is None and (folder / ROSTER).is_file())
        kit = read_kit(folder, SERVER if server else "site")
    site = site_from_file(options.site, "doctor") if options.site is not None else None
    role = "site" if options.role is None and kit is None and site is not None else options.role
    checks = examine(
        role_of(kit, role),
        kit,
        plan=load(options.plan)[0].plan if options.plan is not None else None,
        device=site.device if site is not None else "auto",
        cache=site.cache if site is not None else None,
    )
    return report(chain(checks, examine_site(site, kit)) if site is not None else checks)


def _quiet_environment() -> None:
    """No telemetry and no look for updates from any library, whatever their defaults."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


if __name__ == "__main__":
    raise SystemExit(main())
