"""The plan: typed, frozen, the only reader of YAML.

A plan is what a federation agrees on: organs, preprocessing, network, loss, training and phases.
`Config` adds what belongs to one machine only (`tracking`, `simulation`), outside the plan hash.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Preprocess:
    """How a CT becomes the network's input (axes z, y, x)."""

    spacing_mm: list[float] = field(default_factory=lambda: [3.0, 1.5, 1.25])
    crop: list[int] = field(default_factory=lambda: [96, 128, 224])
    window_hu: list[float] = field(default_factory=lambda: [-200.0, 300.0])


@dataclass(frozen=True)
class Augment:
    """Random affine and elastic deformation in one resampling, then intensity."""

    enabled: bool = True
    probability: float = 0.9
    rotate_deg: list[float] = field(default_factory=lambda: [8.0, 8.0, 8.0])
    scale: float = 0.1
    translate_mm: list[float] = field(default_factory=lambda: [12.0, 8.0, 8.0])
    elastic_mm: float = 4.0
    elastic_spacing_mm: float = 40.0
    noise: float = 0.03
    brightness: float = 0.08
    contrast: float = 0.15
    gamma: float = 0.2


@dataclass(frozen=True)
class Model:
    """`res3dunet`, `unetr`, or the name of a MONAI network with its own `args`."""

    name: str = "res3dunet"
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    strides: list[list[int]] | None = None
    norm: str = "instance"
    checkpointing: bool = False
    channels_last: bool = True
    args: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """Weights of the loss terms and the form of cross entropy and focal (D9)."""

    form: str = "categorical"
    ce: float = 0.25
    focal: float = 1.0
    dice: float = 1.0
    gdice: float = 1.0
    gamma: float = 2.0
    class_weight: str = "sqrt"
    dice_background: bool = False


@dataclass(frozen=True)
class Weighting:
    """How loss terms are weighed over a phase, and the static weight of an organ (else 1)."""

    terms: str = "static"
    shift_end: float = 0.5
    organs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Train:
    """Optimisation on one device. The learning rate is a function of the epoch."""

    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    momentum: float = 0.99
    schedule: str = "poly"
    warmup_epochs: float = 0.0
    clip_norm: float = 12.0
    batch: int = 1
    amp: str = "off"
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
    init: str = "scratch"
    freeze: Any = "none"
    share: str = "all"
    lr: float | None = None
    max_cases: int | None = None


@dataclass(frozen=True)
class Strategy:
    """Aggregation: `fedavg` or `fedprox`, by configuration."""

    name: str = "fedavg"
    proximal_mu: float = 0.01


@dataclass(frozen=True)
class Guards:
    """Bounds on what the server accepts in a reply."""

    max_cases: int = 100_000


@dataclass(frozen=True)
class Federation:
    """Deadlines, quorum and disclosure."""

    strategy: Strategy = field(default_factory=Strategy)
    min_sites: int = 0
    round_timeout_s: float = 3600.0
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

    root: str = ""
    format: str = "auto"
    aliases: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, float] = field(
        default_factory=lambda: {"train": 0.64, "val": 0.16, "test": 0.20, "seed": 0.0}
    )
    splits: dict[str, list[str]] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    phantom: str = ""
    cases: int = 0


@dataclass(frozen=True)
class Simulation:
    """Resources and sites of a simulation on this machine."""

    engine: str = "ray"
    baseline: str = ""
    data: str = ""
    cache: str = ""
    device: str = "auto"
    cpus_per_site: int = 2
    gpus_per_site: float = 0.0
    phantom_spacing_mm: list[float] = field(default_factory=lambda: [4.0, 2.5, 2.5])
    sites: dict[str, SimulatedSite] = field(default_factory=dict)
    overlays: int = 2


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


@dataclass(frozen=True)
class Config(Plan):
    """A plan plus what belongs to the machine that runs it."""

    tracking: Tracking = field(default_factory=Tracking)
    simulation: Simulation = field(default_factory=Simulation)

    @property
    def plan(self) -> Plan:
        """The part that travels to the sites."""
        return Plan(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Plan)})


# --------------------------------------------------------------------------------------------------
# Reading


def load(config: str, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """Reads a configuration and says where each value comes from.

    Args:
        config: a name in ``configs/`` (``demo``, ``paper/table1``) or the path of a YAML file.
        overrides: ``KEY=VALUE`` with dotted keys; phases by index or by name
            (``phases.pretrain.rounds=3``), lists in YAML (``preprocess.crop=[96,48,56]``).

    Returns:
        The checked configuration, and for every dotted key ``default``, the file's name, or
        ``override``.

    Raises:
        UserError: unknown key (with a suggestion), wrong type, or a value that makes no sense.
    """
    from core.validation import check

    path = find_config(config)
    values = _read_yaml(path)
    sources = dict.fromkeys(_flat(values), path.name)
    for item in overrides:
        key = _override(values, item)
        sources = {k: v for k, v in sources.items() if not k.startswith(key + ".")}
        sources |= dict.fromkeys(_flat_under(values, key), "override")
    resolved = cast(Config, _typed(Config, values, str(path)))
    check(resolved)
    everything = dict.fromkeys(_flat(_plain(resolved)), "default")
    return resolved, everything | {k: v for k, v in sources.items() if k in everything}


def find_config(config: str) -> Path:
    """Returns the YAML file of a shipped name or a path."""
    shipped = CONFIGS / f"{config}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(config)
    if path.is_file():
        return path
    names = sorted(str(p.relative_to(CONFIGS))[:-5] for p in CONFIGS.rglob("*.yaml"))
    close = difflib.get_close_matches(config, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UserError(
        "CONFIG",
        config,
        f"{hint}give a shipped name ({', '.join(names)}) or the path of a YAML file",
    )


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, readable by `load`."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(config)))


def plan_json(plan: Plan) -> str:
    """Canonical ASCII JSON of the plan: what travels to the sites (D1)."""
    only_plan = {f.name: getattr(plan, f.name) for f in dataclasses.fields(Plan)}
    plain = {k: _plain(v) for k, v in only_plan.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plan_from_json(text: str) -> Plan:
    """Inverse of `plan_json`; a plan of other code fails by the name of its unknown key."""
    from core.validation import check

    plan = cast(Plan, _typed(Plan, json.loads(text), "plan"))
    check(plan)
    return plan


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the canonical plan."""
    return hashlib.sha256(plan_json(plan).encode("ascii")).hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if "${" in text:
        raise UserError(str(path), "${...}", "write the value itself; interpolation is not allowed")
    try:
        values = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(str(path), reason, "mend the YAML at that line") from None
    if not isinstance(values, dict):
        raise UserError(str(path), values, "write sections such as 'model:' at the top level")
    return cast(dict[str, Any], values)


def _override(values: dict[str, Any], item: str) -> str:
    """Applies one KEY=VALUE in place and returns the resolved dotted key."""
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise UserError("override", item, "write KEY=VALUE, for example train.lr=0.001")
    if "${" in text:
        raise UserError(key, text, "write the value itself; interpolation is not allowed")
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"v: {text}"))["v"]  # type: ignore[index,call-overload]
    except Exception:
        raise UserError(key, text, "write the value as YAML: 3, 0.1, true, [a, b]") from None
    node: Any = values
    done: list[str] = []
    parts = key.split(".")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, list):
            index = _index(node, part, ".".join([*done, part]))
            done.append(str(index))
            if last:
                node[index] = value
            node = node[index]
            continue
        if not isinstance(node, dict):
            raise UserError(key, text, f"'{'.'.join(done)}' is a value and has no keys below it")
        done.append(part)
        if last:
            node[part] = value
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
    return ".".join(done)


def _index(items: list[Any], part: str, key: str) -> int:
    names = [str(i.get("name")) if isinstance(i, dict) else "" for i in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(key, part, f"use an index below {len(items)} or one of the names {names}")


def _typed(schema: type, values: Mapping[str, Any], source: str) -> object:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(values)))
        assert isinstance(merged, DictConfig)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        text = str(error)
        key = str(getattr(error, "full_key", "") or "")
        problem = text.splitlines()[0]
        found = re.search(r"full_key: (\S+)", text)
        if found:
            key = found.group(1)
        if "not in" in problem:
            remedy = "correct the key; 'hnfed config show demo' lists all of them"
        elif "ListConfig" in problem or "not a list" in problem.lower():
            remedy = f"write a list, for example {key.split('.')[-1]}=[...]"
        elif "Missing mandatory" in problem:
            remedy = "give it a value"
        else:
            remedy = "give a value of the right type; 'hnfed config show demo' shows an example"
        raise UserError(key or source, source, remedy, problem=problem) from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _flat(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, Mapping) and value:
        return [k for name, v in value.items() for k in _flat(v, f"{prefix}{name}.")]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [k for i, v in enumerate(value) for k in _flat(v, f"{prefix}{i}.")]
    return [prefix[:-1]]


def _flat_under(values: Mapping[str, Any], key: str) -> list[str]:
    return [k for k in _flat(values) if k == key or k.startswith(key + ".")]


def finite(value: float) -> bool:
    """True for a number that is neither NaN nor infinite."""
    return isinstance(value, int | float) and math.isfinite(value)
