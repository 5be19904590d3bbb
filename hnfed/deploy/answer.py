"""A coordinator's answer to a site: one file of public text, by which its folder becomes a kit.

Nothing in it is secret, and nothing in it is run: what a kit holds beside it (policy, service unit,
README) comes from the hnfed that is installed at the site.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import UserError
from core.files import read_bounded
from hnfed.guard.kit import Kit

SCHEMA, LARGEST = 1, 8_000_000  # bytes


@dataclass(frozen=True)
class Answer:
    """What the file says.

    Attributes:
        federation, site, host, port, internal_port: as in `hnfed.guard.kit.Kit`.
        authority: certificate (PEM) of the federation's authority.
        certificate: the site's own (PEM).
        peers: PEM of every site's certificate, by name.
    """

    federation: str
    site: str
    host: str
    port: int
    internal_port: int
    authority: str
    certificate: str
    peers: Mapping[str, str]

    def text(self) -> str:
        """The file's content."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    def kit(self, folder: Path) -> Kit:
        """The kit that a folder becomes by it."""
        return Kit(folder, self.federation, self.site, self.host, self.port, self.internal_port)


def read_answer(path: Path) -> Answer:
    """Reads an answer file; the certificates in it are not looked into.

    Raises:
        UserError: no answer, or a damaged one.
    """
    remedy = "take the file answers/SITE.json that `hnfed provision` wrote for this site"
    try:
        values = json.loads(read_bounded(path, LARGEST).decode("utf-8"))
        if values.pop("schema") != SCHEMA:
            raise ValueError("schema")
        answer = Answer(**values)
    except OSError as error:
        raise UserError("--answer", path, remedy, problem=str(error.strerror)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError("--answer", path, remedy, problem="it is no answer file") from error
    pems = [answer.authority, answer.certificate]
    if isinstance(answer.peers, dict):
        pems += answer.peers.values()
    if not isinstance(answer.peers, dict) or not all(
        isinstance(p, str) and p.isascii() for p in pems
    ):
        raise UserError("--answer", path, remedy, problem="it is damaged")
    return answer
