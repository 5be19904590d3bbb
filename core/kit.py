"""A kit: the folder by which a coordinator or a site takes part in one federation."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import UserError
from core.identifiers import site_name

FILE, SCHEMA = "kit.json", 1
HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
SERVER = "server"


@dataclass(frozen=True)
class Kit:
    """What ``kit.json`` says.

    Attributes:
        folder: of the kit.
        federation: its name.
        role: `SERVER`, or the site's name.
        host: under which sites reach the server.
        port: the same.
        internal_port: the SuperLink's, on the loopback address of the server's machine.
    """

    folder: Path
    federation: str
    role: str
    host: str
    port: int
    internal_port: int

    @property
    def ca(self) -> Path:
        """The certificate that signs the server's."""
        return self.folder / "ca.crt"

    def text(self) -> str:
        """Content of ``kit.json``."""
        values = {k: v for k, v in asdict(self).items() if k != "folder"}
        return json.dumps({"schema": SCHEMA, **values}, indent=2) + "\n"


def read_kit(folder: Path, role: str) -> Kit:
    """Reads a kit.

    Args:
        folder: of the kit.
        role: ``server`` or ``site``: what the kit must be for.

    Raises:
        UserError: no kit, or one for another role.
    """
    path = folder / FILE
    remedy = "give the folder that `hnfed provision` made for this machine"
    if not path.is_file():
        problem = f"no {FILE} in it" if folder.is_dir() else "no such folder"
        raise UserError("KIT", folder, remedy, problem=problem)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != SCHEMA:
            raise ValueError("schema")
        kit = Kit(folder=folder.resolve(), **values)
        _require_sound(kit)
    except OSError as error:
        problem = f"{FILE} cannot be read: {str(error.strerror).lower()}"
        raise UserError("KIT", folder, "let this account read it", problem=problem) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{FILE} is damaged, or another version of hnfed made it"
        raise UserError(
            "KIT", folder, "get the kit anew from the coordinator", problem=problem
        ) from error
    if (kit.role == SERVER) != (role == SERVER):
        raise UserError("KIT", folder, remedy, problem=f"this kit is for {kit.role}")
    return kit


def _require_sound(kit: Kit) -> None:
    """Requires names and ports that may stand in paths, commands and settings.

    Raises:
        ValueError: one that may not.
    """
    site_name(kit.federation)
    site_name(kit.role)
    if not isinstance(kit.host, str) or not HOST.fullmatch(kit.host):
        raise ValueError("host")
    for port in (kit.port, kit.internal_port):
        if type(port) is not int or not 0 < port < 65536:
            raise ValueError("port")
