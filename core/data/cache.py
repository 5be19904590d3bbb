"""Prepared cases on disk: a training site opens nothing else.

One folder an entry, named by what went into it: the bytes of the case's files, the preprocessing,
the organs and the version of the format; `entry.json` and the index say so. An entry is written
beside its place and renamed into it, so that it is complete or absent. The index of a site lists
its cases, their splits and entries.

    CACHE/entries/KEY/{entry.json, image.npy, shares.npy, truth.npy}
    CACHE/index/KEY.json
    CACHE/locks/*.lock
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.cached_case import FORMAT, Entry, open_entry, read_json
from core.errors import UserError
from core.plan.schema import Preprocess


@dataclass(frozen=True)
class Recipe:
    """How cases are prepared: organs in the plan's order, and its preprocessing."""

    organs: Sequence[str]
    settings: Preprocess

    def as_json(self) -> str:
        """All that decides how a case is prepared."""
        fields = {
            "format": FORMAT,
            "organs": list(self.organs),
            "spacing_mm": [float(v) for v in self.settings.spacing_mm],
            "crop": [int(v) for v in self.settings.crop],
            "window_hu": [float(v) for v in self.settings.window_hu],
        }
        return json.dumps(fields, sort_keys=True)


def open_cache(
    cache_dir: Path | str, organs: Sequence[str], settings: Preprocess, *, site: str = ""
) -> list[Entry]:
    """Opens the prepared cases of a site; reads no voxel and no file of the archive.

    Args:
        cache_dir: folder that `build_cache` filled.
        organs: organs of the plan, in its order.
        settings: preprocessing of the plan.
        site: as given to `build_cache`.

    Returns:
        The entries in the order of the archive.

    Raises:
        UserError: these settings have not been prepared here, or the cache is damaged.
    """
    root = Path(cache_dir)
    path = index_path(root, site, Recipe(organs, settings))
    remedy = (
        "prepare the archive for this plan: hnfed prepare SITE.yaml CONFIG "
        "(a simulation does so by itself, also on --resume)"
    )
    if not path.is_file():
        problem = "holds no cases prepared with these organs, spacing, crop and window"
        raise UserError("cache", root, remedy, problem=problem)
    try:
        lines = read_json(path)["entries"]
        return [open_entry(root, line, organs) for line in lines]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError("cache", root, remedy, problem=f"damaged ({error})") from error


def digest_of(*parts: str) -> str:
    """SHA-256 of texts, as the names of entries and indexes have it."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def index_path(root: Path, site: str, recipe: Recipe) -> Path:
    """Where the list of a site's entries stands."""
    return root / "index" / f"{digest_of(recipe.as_json(), site)}.json"
