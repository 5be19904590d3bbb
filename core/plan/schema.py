"""The plan: what a federation agrees on, typed and frozen; `core.plan.load` reads it.

A plan is organs, preprocessing, network, loss, training and phases. `Config` adds what belongs to
one machine only (`tracking`, `simulation`), outside the plan hash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preprocess:
    """How a CT becomes the network's input (axes z, y, x)."""

    spacing_mm: list[float] = field(default_factory=lambda: [3.0, 1.5, 1.25])
    crop: list[int] = field(default_factory=lambda: [96, 128, 224])
    window_hu: list[float] = field(default_factory=lambda: [-200.0, 300.0])


@dataclass(frozen=True)
class Augment:
    """Mirroring, random affine and elastic deformation in one resampling, then intensity."""

    enabled: bool = True
    probability: float = 0.9
    intensity_probability: float = 0.9
    mirror: float = 0.0
    rotate_deg: list[float] = field(default_factory=lambda: [8.0, 8.0, 8.0])
    scale: float = 0.1
    translate_mm: list[float] = field(default_factory=lambda: [12.0, 8.0, 8.0])
    elastic_mm: float = 4.0
    elastic_spacing_mm: float = 40.0
    noise: float = 0.03
    brightness: float = 0.08
    contrast: float = 0.15
    gamma: float = 0.2
    device: str = "site"


@dataclass(frozen=True)
class Model:
    """`res3dunet`, `unetr`, or the name of a MONAI network with its own `args`."""

    name: str = "res3dunet"
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    strides: list[list[int]] | None = None
    norm: str = "instance"
    prior: float = 0.01
    checkpointing: bool = False
    channels_last: bool = True
    args: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """Weights of the loss terms and the form of cross entropy and focal (D9)."""

    form: str = "categorical"
    ce: float = 0.25
    focal: float = 0.1
    dice: float = 1.0
    gdice: float = 1.0
    gamma: float = 2.0
    class_weight: str = "sqrt"
    dice_background: bool = False

    @property
    def counts_classes(self) -> bool:
        """Whether the class weights need the frequencies of the labels."""
        return self.class_weight not in ("none", "prediction")


# Terms of the loss: key of their weight in `Loss`, and their name for people.
LOSS_TERMS: Mapping[str, str] = {
    "ce": "cross entropy",
    "focal": "focal",
    "dice": "Dice",
    "gdice": "generalised Dice",
}
SPLITS = ("train", "val", "test")
SHARES = ("all", "trainable", "none")
LOSSES = ("total", *LOSS_TERMS)  # what training tells of the loss, in this order


@dataclass(frozen=True)
class Weighting:
    """How loss terms and organs are weighed over a phase; static weight of an organ (else 1)."""

    terms: str = "static"
    shift_end: float = 0.5
    organs: dict[str, float] = field(default_factory=dict)
    by: str = "static"
    bound: float = 4.0
    smoothing: float = 0.5


@dataclass(frozen=True)
class Train:
    """Optimisation on one device. The learning rate is a function of epoch and step (D6)."""

    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    momentum: float = 0.99
    schedule: str = "poly"
    warmup_epochs: float = 0.0
    ramp_steps: int = 8
    clip_norm: float = 12.0
    batch: int = 1
    accumulate: int = 1
    amp: str = "off"
    matmul: str = "high"
    threads: int = 0
    deterministic: bool = False


@dataclass(frozen=True)
class Phase:
    """One phase: who trains which organs, from where, what is frozen and what travels."""

    name: str = "???"
    sites: list[str] = field(default_factory=list)
    organs: list[str] = field(default_factory=list)
    rounds: int = 1
    local_epochs: int = 1
    patience: int = 50
    validate_every: int = 1
    average_last: float = 0.0
    test_rounds: list[int] = field(default_factory=list)
    validate_hd95: bool = True
    init: str = "scratch"
    head_init: str = "random"
    freeze: Any = "none"
    thaw: dict[str, int] = field(default_factory=dict)
    share: str = "all"
    keep: list[str] = field(default_factory=list)
    keep_epochs: int = 0
    ditto: float | None = None
    lr: float | None = None
    max_cases: int | None = None
    average_mirrored: bool = False
    candidates: list[str] = field(default_factory=list)
    test: bool = True

    def validates(self, round_: int) -> bool:
        """Whether a round's weights are scored on validation (D4)."""
        return round_ % self.validate_every == 0

    @property
    def best_at_site(self) -> bool:
        """True where complete weights of this phase exist at its sites only."""
        return self.share == "none" or bool(self.keep)


# Names of strategies: True where head rows are averaged by the cases that annotate their organ
# (D11). How each is made of Flower's stands in `server.strategy`.
STRATEGIES = {
    "fedavg": True,
    "fedprox": True,
    "median": False,
    "trimmed-mean": False,
    "krum": False,
    "dp": False,
    "fedadam": False,
    "fedavgm": False,
}


@dataclass(frozen=True)
class Strategy:
    """Aggregation by one of Flower's strategies; `trim`, `eta` and so on are theirs."""

    name: str = "fedavg"
    proximal_mu: float = 0.01
    trim: float = 0.2
    malicious: int = 1
    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    eta: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9

    @property
    def by_rows(self) -> bool:
        """True where head rows are averaged by the cases that annotate their organ (D11)."""
        return STRATEGIES[self.name]


@dataclass(frozen=True)
class Guards:
    """Bounds on what the server accepts in a reply."""

    max_cases: int = 100_000
    norm: str = "clip"
    norm_factor: float = 5.0


@dataclass(frozen=True)
class Federation:
    """Deadlines, quorum and disclosure."""

    strategy: Strategy = field(default_factory=Strategy)
    secure_aggregation: bool = False
    update_bits: int = 32
    min_sites: int = 0
    round_timeout_s: float = 3600.0
    round_timeout_factor: float = 0.0
    query_timeout_s: float = 600.0
    prepare_timeout_s: float = 7200.0
    round_retries: int = 2
    min_cell: int = 11
    guards: Guards = field(default_factory=Guards)


@dataclass(frozen=True)
class Tracking:
    """Weights & Biases; opened by the server only."""

    mode: str = "offline"
    project: str = "hnfed"
    entity: str = ""
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SimulatedSite:
    """One institution of a simulation: an archive on disk, or a phantom."""

    root: Any = ""  # a folder, or a list of folders
    format: str = "auto"
    aliases: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, float] = field(
        default_factory=lambda: {"train": 0.64, "val": 0.16, "test": 0.20, "seed": 0.0}
    )
    splits: dict[str, list[str]] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    absent: str = "refuse"
    phantom: str = ""
    cases: int = 0


@dataclass(frozen=True)
class Simulation:
    """Resources and sites of a simulation, on this machine or on a Ray cluster."""

    engine: str = "ray"
    ray: str = ""
    ray_insecure: bool = False
    baseline: str = ""
    data: Any = ""  # a folder, or a list of folders
    cache: str = ""
    device: str = "auto"
    cpus_per_site: int = 2
    gpus_per_site: float = 0.0
    phantom_spacing_mm: list[float] = field(default_factory=lambda: [4.0, 2.5, 2.5])
    sites: dict[str, SimulatedSite] = field(default_factory=dict)
    overlays: int = 3
    published: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What the federation agrees on: everything that decides the resulting weights."""

    organs: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    weighting: Weighting = field(default_factory=Weighting)
    train: Train = field(default_factory=Train)
    phases: list[Phase] = field(default_factory=list)
    federation: Federation = field(default_factory=Federation)
    seed: int = 0

    @property
    def organ_names(self) -> tuple[str, ...]:
        """All organs of all phases, in the order of first appearance: the order in caches."""
        return tuple(dict.fromkeys(o for p in self.phases for o in p.organs))

    @property
    def site_names(self) -> tuple[str, ...]:
        """All sites of all phases, sorted."""
        return tuple(sorted({s for p in self.phases for s in p.sites}))

    def phase(self, name: str) -> Phase:
        """Returns the phase of that name."""
        return next(p for p in self.phases if p.name == name)


def crop_words(plan: Plan) -> str:
    """The region that the network sees, for people: voxels, and the millimetres they span."""
    crop, spacing = plan.preprocess.crop, plan.preprocess.spacing_mm
    spans = " x ".join(f"{n * mm:g}" for n, mm in zip(crop, spacing, strict=True))
    return f"{' x '.join(map(str, crop))} voxels, {spans} mm (z, y, x)"


@dataclass(frozen=True)
class Config(Plan):
    """A plan plus what belongs to the machine that runs it."""

    tracking: Tracking = field(default_factory=Tracking)
    simulation: Simulation = field(default_factory=Simulation)

    @property
    def plan(self) -> Plan:
        """The part that travels to the sites."""
        return Plan(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Plan)})
