"""The one table of what a number of any file may be: what an algorithm takes and a machine bears.

Every number of a `Plan`, of a `Config`, and of the files of a study, a site and a federation has
its row, as has every one of a policy in `hnfed.guard.rules`; a test says so. The highest values are
generous, many times what is shipped or sensible, and finite: a hospital's machine can begin what
passes here and say in words where it lacks memory. `core.plan.validate` holds what several values
together must be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.plan.schema import LOSS_TERMS

MAX_VOXELS = 2**25  # of a crop; the paper's has 2.75 million
MAX_PARAMETERS = 250_000_000  # of a network; UNETR as published has 93 million
MAX_EPOCHS = 1_000_000  # rounds x local_epochs of a phase
MAX_PHASES = 100
MAX_LISTED = 1_000  # entries of any list or mapping
DAYS_30 = 30 * 86_400.0


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; `above` leaves out `low`, `below` leaves out `high`.

    `whole` takes no fraction where the type of the value would (2.0 is whole).
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    whole: bool = False

    def holds(self, value: float) -> bool:
        """True where the number is finite and inside."""
        if not math.isfinite(value) or (self.whole and value != math.floor(value)):
            return False
        if not self.low <= value <= self.high:
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)

    def words(self) -> str:
        """``from 1 to 64``, ``above 0, at most 10``."""
        low, high = _digits(self.low), _digits(self.high)
        start = f"above {low}" if self.above else f"from {low}"
        if self.below:
            return f"{start}, below {high}"
        return f"{start}, at most {high}" if self.above else f"{start} to {high}"

    def kind(self, whole: bool = False) -> str:
        """What to call a number of this range."""
        return "whole number" if self.whole or whole else "number"


def _digits(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


SHARE = Range(0, 1)
SECONDS = Range(0, DAYS_30, above=True)
WEIGHT = Range(0, 1e6)
SEED = Range(0, 2**63 - 1, whole=True)
SPLIT_SEED = Range(0, 2**53, whole=True)  # a float holds it
PORT = Range(1, 65_535)
SPLIT: Mapping[str, Range] = {"train": SHARE, "val": SHARE, "test": SHARE, "seed": SPLIT_SEED}
# `*` stands for each entry of a list or mapping.
RANGES: Mapping[str, Range] = {
    "preprocess.spacing_mm.*": Range(0.05, 50),
    "preprocess.crop.*": Range(8, 1024),
    "preprocess.window_hu.*": Range(-32_768, 32_767),
    "augment.probability": SHARE,
    "augment.intensity_probability": SHARE,
    "augment.mirror": SHARE,
    "augment.rotate_deg.*": Range(0, 180),
    "augment.scale": Range(0, 1, below=True),
    "augment.translate_mm.*": Range(0, 500),
    "augment.elastic_mm": Range(0, 100),
    "augment.elastic_spacing_mm": Range(1, 1000),
    "augment.noise": Range(0, 10),
    "augment.brightness": Range(0, 10),
    "augment.contrast": Range(0, 10),
    "augment.gamma": Range(0, 10),
    "model.channels.*": Range(1, 2048),
    "model.strides.*.*": Range(1, 16),
    "model.prior": Range(0, 1, above=True, below=True),
    **{f"loss.{term}": WEIGHT for term in LOSS_TERMS},
    "loss.gamma": Range(0, 20),
    "weighting.shift_end": Range(0, 1, above=True),
    "weighting.organs.*": WEIGHT,
    "weighting.bound": Range(1, 1e6),
    "weighting.smoothing": Range(0, 1, below=True),
    "train.lr": Range(0, 10, above=True),
    "train.weight_decay": Range(0, 10),
    "train.momentum": SHARE,
    "train.warmup_epochs": Range(0, MAX_EPOCHS),
    "train.ramp_steps": Range(0, 10_000),
    "train.clip_norm": WEIGHT,
    "train.batch": Range(1, 256),
    "train.accumulate": Range(1, 256),
    "train.threads": Range(0, 1024),
    "phases.*.rounds": Range(0, 100_000),
    "phases.*.local_epochs": Range(1, 10_000),
    "phases.*.validate_every": Range(1, 10_000),
    "phases.*.average_last": SHARE,
    "phases.*.test_rounds.*": Range(1, 100_000),
    "phases.*.patience": Range(1, MAX_EPOCHS),
    "phases.*.keep_epochs": Range(0, 10_000),
    "phases.*.thaw.*": Range(1, 100_000),
    "phases.*.ditto": WEIGHT,
    "phases.*.lr": Range(0, 10, above=True),
    "phases.*.max_cases": Range(1, 1_000_000),
    "federation.strategy.proximal_mu": WEIGHT,
    "federation.strategy.trim": Range(0, 0.5, below=True),
    "federation.strategy.malicious": Range(0, 1000),
    "federation.strategy.clip_norm": Range(0, 1e6, above=True),
    "federation.strategy.noise_multiplier": WEIGHT,
    "federation.strategy.eta": Range(0, 10, above=True),
    "federation.strategy.beta_1": Range(0, 1, below=True),
    "federation.strategy.beta_2": Range(0, 1, below=True),
    "federation.strategy.tau": Range(1e-9, 1),
    "federation.strategy.server_learning_rate": Range(0, 10, above=True),
    "federation.strategy.server_momentum": Range(0, 1, below=True),
    "federation.update_bits": Range(8, 32),
    "federation.min_sites": Range(0, 1000),
    "federation.round_timeout_s": SECONDS,
    "federation.round_timeout_factor": Range(0, 1000),
    "federation.query_timeout_s": SECONDS,
    "federation.prepare_timeout_s": SECONDS,
    "federation.round_retries": Range(0, 1000),
    "federation.min_cell": Range(1, 1_000_000),
    "federation.guards.max_cases": Range(1, 10_000_000),
    "federation.guards.norm_factor": Range(1, 1e6),
    "seed": SEED,
    "simulation.cpus_per_site": Range(1, 4096),
    "simulation.gpus_per_site": Range(0, 64),
    "simulation.phantom_spacing_mm.*": Range(0.5, 20),  # at 0.5 a head has 600 million voxels
    **{f"simulation.sites.*.split.{key}": row for key, row in SPLIT.items()},
    "simulation.sites.*.cases": Range(0, 1_000_000),
    "simulation.overlays": Range(0, 10_000),
}
# Numbers of the other files, by file.
FILES: Mapping[str, Mapping[str, Range]] = {
    "study": {"seeds": SEED, "folds": Range(2, 1000)},
    "site file": {
        "cache_gb": Range(0.001, 1_000_000),
        "overlays": Range(0, 10_000, whole=True),
        "base_gb": Range(0.001, 1_000_000),
        **{f"split.{key}": row for key, row in SPLIT.items()},
    },
    "federation": {
        "server.port": PORT,
        "server.internal_port": PORT,
        "days": Range(1, 3650),
    },
}
KEYED = {"simulation.sites.*.split.*": tuple(SPLIT)}  # mappings with keys of their own
ELSEWHERE = (
    "organs",
    "model.args",
)  # checked by `core.organs.vocabulary` and `core.models.allowed`


def require_in_range(settings: Any, section: str = "", field: str = "") -> None:
    """Requires that every number of a plan, or of one section of it, is in its range.

    Args:
        settings: a dataclass of `core.plan.schema`.
        section: dotted key of it in the plan; "" for a whole plan.
        field: what to call it in an error; by default the dotted key.

    Raises:
        UserError: names the key, the value and the range.
    """
    for rule, key, value in numbers(dataclasses.asdict(settings), section, section):
        found = RANGES.get(rule)
        name = (field + key.removeprefix(section)) if field else key
        if found is None:
            raise UserError(name, value, "give no number here")
        if not found.holds(value):
            raise UserError(name, value, f"give a {found.kind()} {found.words()}")
    crop = getattr(settings, "crop", None) if section == "preprocess" else None
    crop = settings.preprocess.crop if not section else crop
    if crop is not None and math.prod(crop) > MAX_VOXELS:
        raise UserError(
            f"{field or 'preprocess'}.crop" if section else "preprocess.crop",
            list(crop),
            f"choose sizes of at most {MAX_VOXELS} voxels in all",
            problem=f"{math.prod(crop)} voxels",
        )


def number_of(file: str, key: str, value: object, *, whole: bool = False) -> float:
    """A number of another file than a plan, in its range.

    Args:
        file: a key of `FILES`.
        key: dotted, a key of that table.
        value: as read.
        whole: a number with a fraction is refused.

    Raises:
        UserError: no number, or out of its range.
    """
    row = FILES[file][key]
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not row.holds(value):  # type: ignore[arg-type]
        raise UserError(f"{file}: {key}", value, f"give a {row.kind(whole)} {row.words()}")
    return value  # type: ignore[return-value]


def numbers(value: Any, rule: str, key: str) -> Iterator[tuple[str, str, float]]:
    """Every number below a value: its row in `RANGES`, its key, and itself.

    Raises:
        UserError: a list or mapping of more than `MAX_LISTED` entries.
    """
    if any(rule == name or rule.startswith(f"{name}.") for name in ELSEWHERE):
        return
    if isinstance(value, Mapping | list | tuple) and len(value) > MAX_LISTED:
        raise UserError(key, f"{len(value)} entries", f"give at most {MAX_LISTED}")
    if isinstance(value, Mapping):
        for name, item in value.items():
            inner = str(name) if f"{rule}.*" not in _LISTED else "*"
            part = f"{key}.{name}" if key else str(name)
            yield from numbers(item, f"{rule}.{inner}" if rule else inner, part)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            flat = not isinstance(item, Mapping)
            named = item.get("name", index) if isinstance(item, Mapping) else index
            yield from numbers(item, f"{rule}.*", key if flat else f"{key}.{named}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield rule, key, value


_LISTED = frozenset(
    ".".join(rule.split(".")[: i + 1])
    for rule in RANGES
    for i, part in enumerate(rule.split("."))
    if part == "*"
)
