"""How much a cache and a store may hold: a plan from elsewhere must not fill a hospital's disk.

A cache is a site's own work, hours of it: nothing of it is removed here, and what would outgrow the
quota is refused with what the cache holds. A store of what can be sent again is pruned.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from core.errors import UserError
from core.plan.schema import Preprocess

GB = 1_000_000_000
VOXEL_BYTES = 6  # image of an entry, and of its organs the shares in boxes that may overlap


def require_room(root: Path, settings: Preprocess, quota_bytes: int) -> None:
    """Requires that one more entry fits into the cache.

    Args:
        root: of the cache.
        settings: preprocessing of the entry.
        quota_bytes: of all entries together.

    Raises:
        UserError: it does not; says what the cache holds.
    """
    used = bytes_below(root / "entries")
    need = VOXEL_BYTES * math.prod(settings.crop)
    if used + need <= quota_bytes:
        return
    held = "; ".join(preparations(root)) or "no whole preparation"
    raise UserError(
        "cache",
        root,
        "raise cache_gb in the site file, or delete this folder: `hnfed prepare` makes again what "
        "is needed",
        problem=f"{used / GB:.1f} GB, one more case of this plan does not fit into cache_gb "
        f"({quota_bytes / GB:.1f}); it holds {held}",
    )


def preparations(root: Path) -> list[str]:
    """What a cache was made for, a line a preparation: spacing, crop, organs and cases."""
    lines = []
    for path in sorted((root / "index").glob("*.json")):
        try:
            made = json.loads(path.read_text(encoding="utf-8"))["made_of"]
            cases = sum(int(n) for n in made["cases"].values())
            lines.append(
                f"{cases} cases, {len(made['organs'])} organs, crop {made['crop']} of "
                f"{made['spacing_mm']} mm"
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            lines.append(f"{path.name}, which cannot be read")
    return lines


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(size for size, _, _ in _files(folder))


def prune(folder: Path, pattern: str, quota_bytes: int, keep: frozenset[str]) -> list[str]:
    """Removes what was not used for longest until the rest fits.

    Args:
        folder: of the store.
        pattern: which of its files count.
        quota_bytes: what may stay.
        keep: stems that stay whatever they hold.

    Returns:
        Stems of what was removed, the oldest first.
    """
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    for path in folder.glob(pattern):
        try:
            told = path.stat()
        except FileNotFoundError:  # another process prunes too
            continue
        sizes[path.stem] = sizes.get(path.stem, 0) + told.st_size
        used[path.stem] = max(used.get(path.stem, 0.0), told.st_mtime)
    total, removed = sum(sizes.values()), []
    for stem in sorted(sizes, key=lambda s: used[s]):
        if total <= quota_bytes:
            break
        if stem in keep:
            continue
        for path in folder.glob(pattern):
            if path.stem == stem:
                path.unlink(missing_ok=True)
        total -= sizes[stem]
        removed.append(stem)
    return removed


def touch(path: Path) -> None:
    """Marks a file as used now."""
    try:
        os.utime(path)
    except OSError:  # a file system without times: it counts as old
        return


def _files(folder: Path) -> Iterator[tuple[int, float, Path]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            try:
                told = path.lstat()
            except FileNotFoundError:
                continue
            yield told.st_size, told.st_mtime, path
