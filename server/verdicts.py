"""The answers of an exchange, each judged as it comes; accepted weights wait on disk.

The memory of a round then does not grow with its sites. The file of an update has no name once it
is open: it is gone when nobody reads it any more, whatever ends the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import safetensors.torch
from flwr.app import Message
from torch import Tensor

from core.files import private_folder
from core.plan.schema import Guards, Phase
from core.wire.messages import Header
from core.wire.state import unpacked
from server.guards import NO_REPLY, Accepted, Rejected, inspect


@dataclass(frozen=True)
class Verdicts:
    """Call it with each site and its answer.

    Attributes:
        asked: run, phase and round of the orders.
        phase: of the orders.
        expected: tensors whose names, shapes and dtypes must come back ({} where none travel).
        guards: bounds of the plan.
        cases: by site, training, validation and test cases that it described.
        folder: where the weights wait.
        found: verdict by site, of those that answered.
    """

    asked: Header
    phase: Phase
    expected: Mapping[str, Tensor]
    guards: Guards
    cases: Mapping[str, tuple[int, int, int]]
    folder: Path
    found: dict[str, Accepted | Rejected] = field(default_factory=dict)

    def __call__(self, site: str, reply: Message) -> None:
        """Judges one answer."""
        self.found[site] = inspect(
            reply,
            replace(self.asked, site=site),
            self.phase,
            expected=self.expected,
            guards=self.guards,
            cases=self.cases[site],
            opened=partial(unpacked, load=partial(on_disk, folder=self.folder)),
        )

    def of(self, site: str) -> Accepted | Rejected:
        """The verdict on a site, which may not have answered."""
        return self.found.get(site, NO_REPLY)


def on_disk(parcel: bytes, folder: Path) -> dict[str, Tensor]:
    """The tensors of a parcel, whose memory the system takes back where it needs it.

    Args:
        parcel: from `core.wire.state.packed`.
        folder: made, for this account alone, where it does not exist.
    """
    private_folder(folder)
    handle, name = tempfile.mkstemp(suffix=".safetensors", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(parcel)
        return safetensors.torch.load_file(name)
    finally:
        os.unlink(name)
