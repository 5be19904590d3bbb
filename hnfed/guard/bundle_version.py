"""Whether the server's version of hnfed and this site's can work together."""

from __future__ import annotations

import functools
import re
import tomllib

from core.provenance import hnfed_version
from core.wire.messages import WIRE
from hnfed.guard.unpack import members

MESSAGES = "core/wire/messages.py"
NUMBER = re.compile(rb"^WIRE = ([0-9]{1,6})$", re.MULTILINE)


class OtherVersionError(RuntimeError):
    """What travels has another form in the server's version; the text is for the site's screen."""


def require_same_wire(content: bytes) -> None:
    """Requires that an approved bundle is of a version that this guard can work with.

    Args:
        content: of the bundle.

    Raises:
        OtherVersionError: it is not; names both versions and which side is the older one.
        BundleError: it is no bundle.
    """
    number, version = _told(content)
    if number == WIRE:
        return
    own = hnfed_version()
    older, newer = ("this site", version) if number > WIRE else ("the coordinator", own)
    raise OtherVersionError(
        f"the server runs hnfed {version} (wire format {number}), this site {own} "
        f"(wire format {WIRE}): they cannot work together; {older} installs {newer}"
    )


@functools.lru_cache(4)
def _told(content: bytes) -> tuple[int, str]:
    """Number of the wire format and version in a bundle; 0 and "?" where it has none."""
    files = members(content)
    found = NUMBER.search(files.get(MESSAGES, b""))
    try:
        project = tomllib.loads(files.get("pyproject.toml", b"").decode()).get("project")
    except ValueError:
        project = None
    version = project.get("version") if isinstance(project, dict) else None
    known = isinstance(version, str) and re.fullmatch(r"[0-9A-Za-z.+!-]{1,40}", version)
    return int(found[1]) if found else 0, str(version) if known else "?"
