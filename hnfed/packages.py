"""Whether Python finds hnfed's own packages, and not others of the same names."""

from __future__ import annotations

import json
import shlex
import sys
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
                f"  remedy: {_way_out(name, found)}"
            )
        if found is None or _written_over(found):
            owners = _owners(name)
            raise SystemExit(
                f"hnfed: error: {name} = {ROOT / name}: not as hnfed brings it"
                f"; {', '.join(owners) or 'another distribution'} was installed over it, or took "
                "it away\n"
                "  remedy: make a new virtual environment for hnfed alone"
            )


def require_one_environment(script: Path, folder: Path) -> None:
    """Requires that script, environment, package and folder are not of two checkouts.

    Which code runs matters: a site approves it. `python -m` from a checkout is the way of
    whoever works on hnfed, and is not looked at.

    Args:
        script: the command as it was started (``sys.argv[0]``).
        folder: where it was started.

    Raises:
        SystemExit: they are; names both places, and the remedy.
    """
    if script.name != "hnfed":
        return
    home = script.resolve().parent.parent
    if (home / "pyvenv.cfg").is_file() and home != Path(sys.prefix).resolve():
        raise SystemExit(
            f"hnfed: error: {script} starts the Python of {sys.prefix}: this virtual environment "
            "was copied or moved\n"
            f"  remedy: make it again where it is: rm -r {shlex.quote(str(home))}, "
            "then install hnfed (make install)"
        )
    source = _editable()
    if source is None:
        return
    if source != ROOT:
        raise SystemExit(
            f"hnfed: error: hnfed = {ROOT}: but {sys.prefix} has the hnfed of {source} installed, "
            "and processes started here would take that one\n"
            f"  remedy: take {ROOT} off PYTHONPATH, or use the virtual environment of {ROOT}"
        )
    if not (folder / "hnfed" / "cli" / "main.py").is_file():
        return
    here = folder.resolve()
    if here != ROOT:
        raise SystemExit(
            f"hnfed: error: folder = {here}: it holds an hnfed of its own, but the command is "
            f"that of {ROOT}\n"
            f"  remedy: {here}/.venv/bin/hnfed runs the one here (make install makes it); for "
            f"the other one start the command in another folder, or in {ROOT}"
        )


def _place(name: str) -> Path | None:
    """Folder or file that ``import NAME`` takes; None where Python finds nothing."""
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    place = places[0] if places else spec.origin if spec else None
    return Path(place).resolve() if place else None


def _written_over(place: Path) -> bool:
    """Our ``__init__.py`` are empty; one that is not is somebody else's."""
    try:
        return (place / "__init__.py").stat().st_size > 0
    except OSError:
        return False  # a folder without one, as `configs`


def _way_out(name: str, found: Path) -> str:
    if owners := _owners(name):
        return f"uninstall {', '.join(owners)}, or make a virtual environment for hnfed alone"
    return f"take {found.parent} off PYTHONPATH, or start the command in another folder"


def _owners(name: str) -> list[str]:
    """The other distributions that installed a package of this name."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions().get(name, ())) - {"hnfed"})


def _editable() -> Path | None:
    """The checkout that is installed as editable in this environment; None for a wheel."""
    for place in Path(sys.prefix).glob("lib/python*/site-packages/hnfed-*.dist-info"):
        try:
            told = json.loads((place / "direct_url.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if told.get("dir_info", {}).get("editable"):
            from urllib.parse import unquote, urlsplit

            return Path(unquote(urlsplit(told["url"]).path)).resolve()
    return None
