"""The subcommand `hnfed doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hnfed.cli.json_output import add_json
from hnfed.cli.results import subcommand


def register(commands: Any) -> None:
    """Adds the subcommand to those of a command line."""
    sub = subcommand(
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
    add_json(sub, "the checks")


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict
    from itertools import chain

    from core.plan.load import load
    from hnfed.deploy.doctor import FAIL, examine, report, role_of
    from hnfed.deploy.provision import ROSTER
    from hnfed.deploy.site_doctor import examine_site
    from hnfed.deploy.site_file import site_from_file
    from hnfed.deploy.wall_check import examine_walls
    from hnfed.guard.kit import SERVER, read_kit

    kit = None
    folder = options.kit
    if folder is not None:
        server = options.role == SERVER or (options.role is None and (folder / ROSTER).is_file())
        kit = read_kit(folder, SERVER if server else "site")
    site = site_from_file(options.site, "doctor") if options.site is not None else None
    role = "site" if options.role is None and kit is None and site is not None else options.role
    asked = role_of(kit, role)
    checks = examine(
        asked,
        kit,
        plan=load(options.plan)[0].plan if options.plan is not None else None,
        device=site.device if site is not None else "auto",
        cache=site.cache if site is not None else None,
        proxy=site.proxy if site is not None else "",
    )
    of_site = examine_site(site, kit) if site is not None else ()
    walls = [examine_walls()] if asked == "site" else []
    done = report(chain(checks, of_site, walls))
    if options.json is not None:
        options.json.write({"schema": 1, "checks": [asdict(check) for check in done]})
    return int(any(check.state == FAIL for check in done))
