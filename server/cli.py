"""The subcommands of a coordinator: provision, server, run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli import subcommand


def register(subparsers: Any) -> None:
    """Adds provision, server and run to the subparsers of a command line."""
    make = subcommand(
        subparsers,
        "provision",
        "certificate authority, server certificate, one kit a site",
        _provision,
        "hnfed provision federation.yaml -o kits",
    )
    make.add_argument("federation", metavar="FEDERATION.yaml", type=Path, help="who takes part")
    make.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="kits")
    make.add_argument("--add-site", metavar="SITE", action="append", default=[], help="a new kit")
    make.add_argument(
        "--revoke", metavar="SITE", action="append", default=[], help="refuse this site's key"
    )
    server = subcommand(
        subparsers,
        "server",
        "start the coordinator's long-running process",
        _server,
        "hnfed server kits/server",
    )
    server.add_argument("kit", metavar="KIT", type=Path, help="the server's kit")
    run = subcommand(
        subparsers,
        "run",
        "submit a plan to a running federation, and follow it to its end",
        _run,
        "hnfed run openkbp --server kits/server",
    )
    run.add_argument("config", metavar="CONFIG", help="a name in configs/, or a YAML file")
    run.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides, dotted keys")
    run.add_argument("--server", metavar="KIT", type=Path, required=True, help="the server's kit")
    run.add_argument("--name", default="", help="of the run folder below KIT/runs")
    run.add_argument("--resume", action="store_true", help="go on with the run of that name")
    run.add_argument(
        "--auto-resume", metavar="TIMES", type=int, nargs="?", const=10, default=0,
        help="resume by itself what dies (10 times if no number is given)",
    )  # fmt: skip


def _provision(args: argparse.Namespace) -> int:
    from server.provision import provision, read_federation

    federation = read_federation(args.federation)
    done = provision(federation, args.output, add=args.add_site, revoke=args.revoke)
    print("\n".join(done) if done else "nothing to do: all kits are there and valid")
    print(f"kits: {args.output}")
    return 0


def _server(args: argparse.Namespace) -> int:
    from core.kit import SERVER, read_kit
    from server.serve import serve

    return serve(read_kit(args.kit, SERVER))


def _run(args: argparse.Namespace) -> int:
    from core.kit import SERVER, read_kit
    from server.submit import submit

    kit = read_kit(args.server, SERVER)
    return submit(kit, args.config, args.overrides, name=args.name, resume=args.resume,
                  again=args.auto_resume)  # fmt: skip
