"""Which software took part."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

NAMES = ("hnfed", "torch", "flwr", "monai", "ray", "SimpleITK", "numpy")


def versions() -> dict[str, str]:
    """Versions by package; a package that is not installed is left out."""
    return dict(_looked_up())


@functools.cache
def _looked_up() -> dict[str, str]:
    """Once a process: it takes a twelfth of the time of preparing a small case."""
    found = {"python": platform.python_version()}
    for name in NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hnfed_version() -> str:
    """This package's version; ``0`` where it runs without being installed."""
    return versions().get("hnfed", "0")
