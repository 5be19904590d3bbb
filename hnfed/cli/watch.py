"""The subcommand `hnfed watch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.errors import UserError
from hnfed.cli.json_output import SCREEN, JsonFile
from hnfed.cli.results import subcommand


def register(commands: Any) -> None:
    """Adds the subcommand to those of a command line."""
    watch = subcommand(
        commands,
        "watch",
        "where a run, a federation's server or a site's client stands, live",
        _watch,
        "hnfed watch runs/demo                          # a simulation, to its end",
        "hnfed watch kits/server                        # the coordinator's newest run",
        "hnfed watch kits/nyu --site nyu.yaml           # a site's client",
        "hnfed watch runs/demo --once --json            # for scripts; 1 where something is wrong",
        "hnfed watch kits/server --listen               # /health and /metrics on a Unix socket",
    )
    watch.add_argument("target", metavar="RUN|KIT", type=Path, help="run folder, or kit")
    watch.add_argument("--run", metavar="NAME", default="", help="of a server's kit: which run")
    text = "of a site's kit: its site file (default: KIT/site.yaml)"
    watch.add_argument("--site", metavar="SITE.yaml", type=Path, help=text)
    watch.add_argument("--once", action="store_true", help="look once; 1 where something is wrong")
    watch.add_argument(
        "--json", metavar="FILE", type=JsonFile, nargs="?", const=JsonFile(SCREEN),
        help="look once and write what stands as JSON (default: to standard output)",
    )  # fmt: skip
    watch.add_argument(
        "--prometheus", metavar="FILE", type=Path,
        help="write the metrics too, at each look, as node_exporter's textfile collector reads",
    )  # fmt: skip
    watch.add_argument(
        "--listen", metavar="SOCKET", type=Path, nargs="?", const=Path(),
        help="answer /health and /metrics on a Unix socket of mode 0600, until Ctrl-C "
        "(default: metrics.sock in RUN or KIT, at a site in its state folder)",
    )  # fmt: skip
    text = "seconds between two looks (default: 2)"
    watch.add_argument("--interval", metavar="SECONDS", type=float, default=2.0, help=text)


def _watch(args: argparse.Namespace) -> int:
    from rich.console import Console

    from hnfed.screen import make_folder
    from hnfed.watch import look

    if not 0.2 <= args.interval <= 3600:
        raise UserError("--interval", args.interval, "give seconds between 0.2 and 3600")
    if args.prometheus is not None:
        make_folder(args.prometheus.parent, "--prometheus")
    of = look.watched(args.target, run=args.run, site_file=args.site)
    if args.listen is not None:
        look.serve(of, args.listen if args.listen != Path() else None)
        return 0
    console = Console(highlight=False)
    if not args.once and args.json is None:
        return 0 if look.follow(of, console, args.interval, args.prometheus).well else 1
    state, told = look.look_once(of, None if args.json is not None else console)
    if args.json is not None:
        args.json.write(told)
    if args.prometheus is not None:
        look.write_prometheus(args.prometheus, state)
    return 0 if state.well else 1
