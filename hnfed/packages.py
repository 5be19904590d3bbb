"""Whether Python finds hnfed's own packages, and not others of the same names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

NAMES = ("core", "client", "server", "simulations", "configs")
ROOT = Path(__file__).resolve().parent.parent


def require_own() -> None:
    """Requires that `core`, `client` and the others are those beside this package.

    Raises:
        SystemExit: names what was found instead, and the remedy; ends a command on one screen.
    """
    for name in NAMES:
        found = _place(name)
        if found is not None and found.parent != ROOT:
            raise SystemExit(
                f"hnfed: error: {name} = {found}: another package of this name stands before "
                "hnfed's own\n"
                f"  remedy: take {found.parent} off PYTHONPATH, or start the command in another "
                "folder"
            )


def _place(name: str) -> Path | None:
    """Folder or file that ``import NAME`` takes; None where Python finds nothing."""
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    place = places[0] if places else spec.origin if spec else None
    return Path(place).resolve() if place else None
