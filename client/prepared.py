"""A site whose cases another process has prepared: what its client is told, and no more.

At a hospital the cache is made by installed code. The code of a bundle gets where that cache is,
and two folders of the site's own: no archive, no spellings, no secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from core.data.site import Site, Source
from core.errors import UserError


def description_of(site: Site, split: str, left_out: Mapping[str, int]) -> str:
    """What the client of a bundle is told of a prepared site, as JSON.

    Args:
        site: of the site file, for one run.
        split: keyed hash of the split that was prepared.
        left_out: reason code -> how many cases were left out then.
    """
    sources = [{"label": s.label, "index": site.index_of(s, split)} for s in site.sources]
    return json.dumps(
        {
            "name": site.name,
            "device": site.device,
            "cache": str(site.cache.resolve()),
            "run_folder": str(site.run_folder.resolve()),
            "base_folder": str(site.base_folder.resolve()),
            "base_bytes": site.base_bytes,
            "overlays": site.overlays,
            "sources": sources,
            "left_out": dict(left_out),
        }
    )


def prepared_site(text: str) -> Site:
    """Inverse of `description_of`.

    Raises:
        UserError: it is none.
    """
    try:
        told = json.loads(text)
        return Site(
            name=str(told["name"]),
            sources=tuple(
                Source(root="", label=str(s["label"]), index=str(s["index"]))
                for s in told["sources"]
            ),
            device=str(told["device"]),
            cache=Path(told["cache"]),
            run_folder=Path(told["run_folder"]),
            base_folder=Path(told["base_folder"]),
            secret=b"",
            base_bytes=int(told["base_bytes"]),
            overlays=int(told.get("overlays", 0)),
            left_out={str(k): int(v) for k, v in told["left_out"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "start the node with `hnfed client KIT`"
        raise UserError("site", "(another form)", remedy) from error
