"""Whether this machine, Python and torch can run hnfed; an older Python can read this file too."""

from __future__ import annotations

import re
import sys

PYTHON = ((3, 11), (3, 14))  # from the first, below the second; pyproject.toml says the same
TORCH = ((2, 6), (2, 16))
WHERE = "docs/install.md"


def require_machine(system: str = sys.platform) -> None:
    """Requires an operating system and a Python that hnfed is made for.

    Args:
        system: as `sys.platform` names it.

    Raises:
        SystemExit: names what was found, and the remedy; ends a command on one screen.
    """
    if system not in ("linux", "darwin"):
        raise SystemExit(
            f"hnfed: error: system = {system}: hnfed runs on Linux, its simulations on macOS too\n"
            f"  remedy: take a Linux machine; on Windows WSL 2 is one ({WHERE})"
        )
    if not within(sys.version_info[:2], PYTHON):
        raise SystemExit(
            f"hnfed: error: Python = {'.'.join(map(str, sys.version_info[:3]))} "
            f"({sys.executable}): hnfed takes {in_words(PYTHON)}\n"
            "  remedy: make a virtual environment of such a Python and install hnfed there "
            f"({WHERE})"
        )


def require_torch() -> None:
    """Requires a torch that hnfed is made for, without importing it (that takes seconds).

    Raises:
        SystemExit: it is absent, or older or newer.
    """
    found = torch_version()
    if found is None:
        value, remedy = "not installed", "install it with hnfed"
    elif not within(_number(found), TORCH):
        value, remedy = f"{found} ({sys.prefix})", "install such a torch there"
    else:
        return
    raise SystemExit(
        f"hnfed: error: torch = {value}: hnfed takes {in_words(TORCH)}\n"
        f"  remedy: {remedy}, of any build: CPU, CUDA, ROCm ({WHERE})"
    )


def require_linux(command: str, system: str = sys.platform) -> None:
    """Requires Linux for the commands that stand at a site or at the server.

    Args:
        command: word behind ``hnfed``.
        system: as `sys.platform` names it.

    Raises:
        SystemExit: another system, and a command that needs Linux.
    """
    if system != "linux" and command in ("client", "server", "approve", "run"):
        raise SystemExit(
            f"hnfed: error: hnfed {command}: a site and a server need Linux, this is {system}\n"
            f"  remedy: take a Linux machine; simulations, predict and evaluate run here ({WHERE})"
        )


def torch_version() -> str | None:
    """What stands in the file of the torch that would be imported; None without one."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.MULTILINE)
    return found[1] if found else "unknown"


def within(version: tuple[int, ...], bounds: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    """Whether a version stands from the first bound on and below the second."""
    return bounds[0] <= version < bounds[1]


def in_words(bounds: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    """``3.11 to 3.13``: the first and the last version that is taken."""
    (major, minor), (last, above) = bounds
    return f"{major}.{minor} to {last}.{above - 1}"


def _number(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
