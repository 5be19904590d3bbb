"""Which weights of a run this site has verified: hashes of all, and those of the last order.

One folder a run, in the guard's own: ``states.jsonl`` grows by a line for each state of weights,
``start.safetensors`` holds what the last order to train began from. Nothing of it is sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import UserError
from core.files import replace_file
from core.wire.checkpoint import WEIGHT_BYTES
from core.wire.state import packed, unpacked
from hnfed.guard.kit_files import damage, kept_bytes, kept_text

FOLDER, STATES, START = "weights", "states.jsonl", "start.safetensors"
MOST_RUNS = 8  # that are kept: a run's start is as large as its weights


@dataclass(frozen=True)
class Known:
    """Weights that were verified.

    Attributes:
        phase: of the plan.
        round: that made them; 0: those that the phase begins with.
        base: hash of the phase's base that goes with them; "" where it has none.
        tensors: SHA-256 by name; of round 0 of all weights, else of those that travel.
        heads: the heads among them, as a parcel in base64: their rows begin the next phase.
        longest: length to which the sites hold the next round's updates.
    """

    phase: str
    round: int
    base: str
    tensors: Mapping[str, str]
    heads: str
    longest: float = 0.0


@dataclass(frozen=True)
class Part:
    """An order to train for a sum.

    Attributes:
        about: hash of all that the sites of the sum were told alike (hex).
        phase: of the plan.
        round: of the order.
        base: hash of the phase's base.
        start: SHA-256 of the parcel of weights that came with it.
        weights: totals that the sites' shares are of.
        frequencies: organ and crop voxels, per organ, that weigh the classes.
    """

    about: str
    phase: str
    round: int
    base: str
    start: str
    weights: tuple[float, ...]
    frequencies: tuple[float, ...] = ()


@dataclass
class Record:
    """Of one run.

    Attributes:
        folder: of the run.
        known: in the order in which they were verified.
        parts: in the order in which they were asked for.
        say: a line for the person at the site.
    """

    folder: Path
    known: list[Known] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    say: Callable[[str], None] = print

    def of_phase(self, phase: str, base: str) -> Iterator[Known]:
        """What is known of a phase with that base."""
        return (k for k in self.known if (k.phase, k.base) == (phase, base))

    def found(
        self, phase: str, base: str, round_: int | None, tensors: Mapping[str, str]
    ) -> list[Known]:
        """The states that these tensors are.

        Args:
            phase: of the order.
            base: hash of its base.
            round_: that made them; None for any.
            tensors: SHA-256 of what travels, by name.
        """
        return [
            k
            for k in self.of_phase(phase, base)
            if round_ in (None, k.round)
            and all(k.tensors.get(name) == digest for name, digest in tensors.items())
        ]

    def whole(self, phase: str) -> Iterator[tuple[dict[str, str], dict[str, Tensor]]]:
        """All complete weights of a phase: SHA-256 by name, and the heads themselves."""
        for known in self.known:
            if known.phase != phase:
                continue
            starts = [k for k in self.of_phase(phase, known.base) if k.round == 0]
            for start in [known] if known.round == 0 else starts:
                heads = _heads(start.heads) | _heads(known.heads)
                yield {**start.tensors, **known.tensors}, heads

    def add(self, line: Known | Part) -> None:
        """Writes a line down, on the disk before this returns; once."""
        lines: list[Any] = self.known if isinstance(line, Known) else self.parts
        if line in lines:
            return
        lines.append(line)
        self._make()
        text = json.dumps({"kind": type(line).__name__, **asdict(line)})
        descriptor = os.open(self.folder / STATES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write("\n" + text)  # begins anew behind a torn line
            file.flush()
            os.fsync(file.fileno())

    def keep_start(self, parcel: bytes) -> None:
        """Keeps the weights that an order to train begins from; those of the one before go."""
        self._make()
        path = self.folder / START
        if kept_bytes(path, WEIGHT_BYTES) != parcel:
            replace_file(path, parcel)
            path.chmod(0o600)

    def _make(self) -> None:
        """The folder of a run; the oldest of too many goes, but for none that was refused."""
        if not self.folder.is_dir():
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _forget(self.folder.parent, self.say)
            self.folder.mkdir(mode=0o700)

    def start(self, digest: str) -> dict[str, Tensor] | None:
        """The weights that are kept, if they are those with that SHA-256."""
        path = self.folder / START
        parcel = kept_bytes(path, WEIGHT_BYTES) or b""
        return unpacked(parcel) if hashlib.sha256(parcel).hexdigest() == digest else None


def record_of(guard: Path, run: str, say: Callable[[str], None]) -> Record:
    """The record of a run: an empty one, without a place on the disk, where it has none.

    Args:
        guard: the guard's folder at this site.
        run: a checked name.
        say: a line for the person at the site.

    Raises:
        UserError: a damaged record.
    """
    record = Record(guard / FOLDER / run, say=say)
    path = record.folder / STATES
    try:
        for text in (kept_text(path, WEIGHT_BYTES) or "").splitlines():
            if text.endswith("}"):  # a line that a power cut tore was not counted on
                values = json.loads(text)
                if values.pop("kind") == "Known":
                    record.known.append(Known(**values))
                else:
                    told = {n: tuple(values[n]) for n in ("weights", "frequencies")}
                    record.parts.append(Part(**values | told))
    except (ValueError, TypeError, KeyError) as error:
        remedy = "restore the file, or let the coordinator begin a new run"
        raise UserError("weights", path, remedy, problem=damage(error)) from error
    return record


def is_kept(guard: Path, run: str) -> bool:
    """Whether anything of a run was verified, and is remembered."""
    return (guard / FOLDER / run / STATES).is_file()


def forget(guard: Path, run: str, say: Callable[[str], None]) -> None:
    """Forgets what was verified of a run, which is now worked on with whatever comes."""
    folder = guard / FOLDER / run
    if folder.is_dir():
        shutil.rmtree(folder)
        say(
            f"run {run}: worked on under weights: any, so which weights of it were verified is "
            "forgotten; it cannot go on here under weights: agreed"
        )


def heads_parcel(heads: Mapping[str, Tensor]) -> str:
    """Heads as a record keeps them."""
    return base64.b64encode(packed(heads)).decode() if heads else ""


def _heads(text: str) -> dict[str, Tensor]:
    return unpacked(base64.b64decode(text)) if text else {}


def _forget(root: Path, say: Callable[[str], None]) -> None:
    """Makes room for one more run."""
    runs = sorted((p for p in root.iterdir() if p.is_dir()), key=_last_used)
    for old in runs[: max(0, len(runs) - MOST_RUNS + 1)]:
        shutil.rmtree(old)
        say(
            f"run {old.name}: which weights of it were verified is forgotten (the newest "
            f"{MOST_RUNS} runs are kept); it cannot go on here under weights: agreed"
        )


def _last_used(folder: Path) -> float:
    path = folder / STATES
    return (path if path.is_file() else folder).stat().st_mtime
