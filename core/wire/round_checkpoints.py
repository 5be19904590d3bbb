"""Weights kept by round on a disk: committed at once, verified on reading, the oldest pruned."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from core.files import private_folder
from core.identifiers import round_number
from core.wire.checkpoint import load, load_meta, save


class RoundStore:
    """Checkpoints ``round-00007.safetensors`` with their JSON in one folder (D7)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, round_: int, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Commits the weights of a round; the JSON is written last and makes them exist."""
        private_folder(self.folder)
        save(self.folder, _stem(round_), dict(state), dict(meta))

    def get(self, round_: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns weights and metadata of a round; `UserError` if damaged or absent."""
        return load(self.folder / f"{_stem(round_)}.safetensors")

    def meta(self, round_: int) -> dict[str, Any]:
        """Returns the metadata of a round alone."""
        return load_meta(self.folder / f"{_stem(round_)}.safetensors")

    def rounds(self) -> list[int]:
        """Rounds that were committed, ascending."""
        return sorted(int(p.stem.split("-")[1]) for p in self.folder.glob("round-*.json"))

    def prune(self, keep: Iterable[int]) -> None:
        """Removes all rounds but those to keep."""
        wanted = set(keep)
        for round_ in self.rounds():
            if round_ not in wanted:
                for suffix in (".json", ".safetensors"):
                    (self.folder / f"{_stem(round_)}{suffix}").unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _stem(round_: int) -> str:
    return f"round-{round_number(round_):05d}"
