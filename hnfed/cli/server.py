"""The subcommands of a coordinator: provision, server, run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.text import shown
from hnfed.cli.parser import whole_number
from hnfed.cli.results import subcommand

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


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
    make.add_argument(
        "--sign", metavar="REQUEST", action="append", type=Path, default=[],
        help="sign the key that a site made itself: its request.pem, see hnfed join",
    )  # fmt: skip
    make.add_argument(
        "--fingerprint", metavar="HEX", action="append", default=[],
        help="what the site read out by phone; signs without asking",
    )  # fmt: skip
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
        "--auto-resume", metavar="TIMES", type=whole_number, nargs="?", const=10, default=0,
        help="resume by itself what dies (10 times if no number is given)",
    )  # fmt: skip


def _provision(args: argparse.Namespace) -> int:
    from cryptography import x509

    from hnfed.deploy.provision import provision, read_federation
    from hnfed.guard.kit_files import needed_bytes
    from hnfed.guard.peers import fingerprint, spoken

    federation = read_federation(args.federation)
    signed = _agreed(args.sign, args.fingerprint)
    if args.sign and not signed:
        return 1
    done = provision(federation, args.output, add=args.add_site, revoke=args.revoke, sign=signed)
    print("\n".join(done) if done else "nothing to do: all kits are there and valid")
    print(f"kits: {args.output}")
    authority = x509.load_pem_x509_certificate(needed_bytes(args.output / "ca" / "ca.crt"))
    print(
        f"read out to each site that joins: authority {spoken(fingerprint(authority.public_key()))}"
    )
    return 0 if len(signed) == len(args.sign) else 1


def _agreed(
    requests: Sequence[Path], fingerprints: Sequence[str]
) -> dict[str, ec.EllipticCurvePublicKey]:
    """The requests whose fingerprint the site itself read out."""
    from hnfed.deploy.authority import read_request
    from hnfed.guard.peers import agrees, fingerprint, spoken

    signed = {}
    for path in requests:
        site, key = read_request(path)
        print(f"{site}: {spoken(fingerprint(key))} is the fingerprint in {shown(path)}")
        if fingerprints:
            agreed = any(agrees(text, fingerprint(key)) for text in fingerprints)
        else:
            question = f"does {site}, on the phone, read out the same? [y/N] "
            agreed = sys.stdin.isatty() and input(question).lower() == "y"
        if agreed:
            signed[site] = key
        else:
            print(f"{site}: not signed; ask the people there, then: --fingerprint WHAT-THEY-READ")
    return signed


def _server(args: argparse.Namespace) -> int:
    from hnfed.deploy.superlink import serve
    from hnfed.guard.kit import SERVER, read_kit

    return serve(read_kit(args.kit, SERVER))


def _run(args: argparse.Namespace) -> int:
    from hnfed.deploy.submit import submit
    from hnfed.guard.kit import SERVER, read_kit

    kit = read_kit(args.server, SERVER)
    return submit(kit, args.config, args.overrides, name=args.name, resume=args.resume,
                  again=args.auto_resume)  # fmt: skip
