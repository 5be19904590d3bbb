"""How MODEL is found on disk: a file, a run folder, a site's folder of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from core.errors import UserError
from core.wire.checkpoint import load_meta

_EMPTY_BYTES = len(safetensors.torch.save({}))
# What of a checkpoint's JSON goes along with a model: no split, no run, nothing of a site.
DESCRIBED = (
    "organs", "preprocess", "model", "phase", "round", "average_mirrored", "amp", "versions",
)  # fmt: skip


@dataclass
class _Phase:
    """Best weights found for one phase: the federation's and those of single sites."""

    shared: Path | None = None
    sites: dict[str, Path] = field(default_factory=dict)

    def saved(self) -> str:
        """When the newest of them was written (UTC, sortable text)."""
        found = [*self.sites.values(), *([self.shared] if self.shared else [])]
        return max(str(load_meta(path).get("saved", "")) for path in found)


def resolve_model(path: str | Path, phase: str | None = None, site: str | None = None) -> Path:
    """Finds the checkpoint that MODEL means.

    MODEL is a ``.safetensors`` file (or its ``.json``), a run folder, a site's folder of a run
    (``STATE/RUN_ID`` or ``RUN/sites/SITE``), or a folder with ``best.safetensors``. A run folder
    gives the best weights of `phase`, by default the last phase that has any: the site's own where
    `site` holds some, else the federation's. A phase whose weights exist at several sites only
    needs `site`.

    Raises:
        UserError: nothing fits, or `site` must be chosen.
    """
    root = Path(path)
    if root.is_file():
        if root.suffix not in (".safetensors", ".json"):
            raise UserError("model", root, "name a run folder or a .safetensors file")
        return root.with_suffix(".safetensors")
    if not root.exists():
        raise UserError(
            "model", root, "name a run folder or a .safetensors file; this does not exist"
        )
    if any(_has_weights(path) for path in _own(root, "best.safetensors")):
        return root / "best.safetensors"
    phases = _phases_of(root)
    if not phases:
        raise UserError(
            "model",
            root,
            "name a run folder with checkpoints/PHASE/best.safetensors, or a .safetensors file",
            problem="no best weights in it (has the first phase ended? no link out of it counts)",
        )
    if phase is None:
        phase = max(phases, key=lambda name: phases[name].saved())
    if phase not in phases:
        raise UserError(
            "--phase", phase, f"choose one of {', '.join(sorted(phases))}", problem=f"not in {root}"
        )
    return _of_phase(phases[phase], phase, site)


def described(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checkpoint's JSON goes along with a model that is handed on."""
    return {key: meta[key] for key in DESCRIBED if key in meta}


def _of_phase(found: _Phase, phase: str, site: str | None) -> Path:
    if site is not None and site in found.sites:
        return found.sites[site]
    if found.shared is not None:
        return found.shared
    known = ", ".join(sorted(found.sites))
    if site is not None:
        raise UserError(
            "--site",
            site,
            f"choose one of {known}, or another --phase",
            problem=f"no weights of this site in phase {phase}",
        )
    if len(found.sites) > 1:
        raise UserError(
            "--site",
            "(none)",
            f"choose one of {known}",
            problem=f"phase {phase} has weights of its own at each site",
        )
    return next(iter(found.sites.values()))


def _phases_of(root: Path) -> dict[str, _Phase]:
    phases: dict[str, _Phase] = {}
    for best in filter(_has_weights, _own(root, "checkpoints/*/best.safetensors")):
        phases.setdefault(best.parent.name, _Phase()).shared = best
    for best in _own(root, "sites/*/*/best.safetensors"):
        phases.setdefault(best.parent.name, _Phase()).sites[best.parent.parent.name] = best
    if not phases:  # a site's own folder of a run
        for best in _own(root, "*/best.safetensors"):
            phases.setdefault(best.parent.name, _Phase()).shared = best
    return phases


def _own(root: Path, pattern: str) -> list[Path]:
    """Weights that lie in a folder themselves, as does their JSON: no link leads out of it."""
    inside = os.path.realpath(root)
    return [
        path
        for path in sorted(root.glob(pattern))
        if path.is_file()
        and all(
            Path(os.path.realpath(part)).is_relative_to(inside)
            for part in (path, path.with_suffix(".json"))
        )
    ]


def _has_weights(path: Path) -> bool:
    """False for an absent file, and for one without any tensor (scores of a personal phase)."""
    return path.is_file() and path.stat().st_size > _EMPTY_BYTES
