"""A study: a few lines of YAML, and the cells (variant, axes, seed) that they stand for."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.plan.load import CONFIGS, STUDIES, load, read_yaml, require_pairs, value_of
from core.plan.ranges import MAX_LISTED, number_of
from simulations.folds import fold_splits, has_own_splits, view_of
from simulations.site_map import archive_roots

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
STUDY_KEYS = ("config", "set", "seeds", "folds", "cells")
VARIANT_KEYS = ("phases", "set", "axes", "needs")
Settings = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: VARIANT-AXISVALUE-...-seedN; also the run folder's name.
        variant: key under `cells`.
        values: value by axis.
        seed: the run's seed.
        overrides: KEY=VALUE for `hnfed simulate`.
        needs: names of the cells that must be done before.
    """

    name: str
    variant: str
    values: Mapping[str, str]
    seed: int
    overrides: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study as it will be run.

    Attributes:
        name: of its file.
        config: base configuration, as `hnfed simulate` takes it.
        cells: every cell after those that it needs, all variants of a seed before the next seed.
        views: archive of each view without splits that the folds need, by the view's folder.
    """

    name: str
    config: str
    cells: tuple[Cell, ...]
    views: Mapping[Path, Path]


@dataclass(frozen=True)
class _Variant:
    name: str
    settings: Settings
    axes: dict[str, dict[str, Settings]]
    needs: tuple[str, ...]


def shipped_studies() -> list[str]:
    """Names of the studies that ship, sorted."""
    return sorted(p.stem for p in (CONFIGS / STUDIES).glob("*.yaml"))


def read_study(study: str, overrides: Sequence[str], out: Path) -> Study:
    """Reads a study and makes its cells.

    Args:
        study: a name in ``configs/studies/``, or the path of a YAML file.
        overrides: KEY=VALUE for every cell; ``seeds=[0,1]`` replaces the study's own seeds.
        out: folder of the cells (absolute).

    Raises:
        UserError: an unknown key or cell, a circle of needs, or values that make no sense.
    """
    path = _find(study)
    values = read_yaml(path)
    _known_keys(values, STUDY_KEYS, path.name)
    values, overrides = _with_seeds(values, overrides)
    config = _base_config(values.get("config"), path)
    common = _settings(values.get("set"), "set")
    variants = _variants(values.get("cells"), config, common)
    views: dict[Path, Path] = {}
    folds: dict[str, Settings] = {}
    if "folds" in values:
        for variant in variants:
            _leave_sites(variant, common)
        simulation = [o for o in overrides if o.startswith("simulation.")]
        folds, views = _folds(values["folds"], config, [*_flags(common), *simulation], out)
    cells = []
    for seed in _seeds(values.get("seeds", [0])):
        for variant in variants:
            axes = {**({"fold": folds} if folds else {}), **variant.axes}
            for choice in itertools.product(*axes.values()):
                chosen = dict(zip(axes, choice, strict=True))
                needs = {n: _needed(n, variant, variants, chosen, seed) for n in variant.needs}
                given: Settings = dict(variant.settings)
                for axis, value in chosen.items():
                    given |= {} if folds and axis == "fold" else axes[axis][value]
                given = {k: _placed(v, k, variant, variants, needs, out) for k, v in given.items()}
                last = {**(folds[chosen["fold"]] if folds else {}), "seed": seed}
                flags = (*_flags(given), *overrides, *_flags(last))
                name = _cell_name(variant.name, chosen, seed)
                cells.append(Cell(name, variant.name, chosen, seed, flags, tuple(needs.values())))
    names = [cell.name for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError("cells", twice[0], "rename a cell or an axis: two cells get this name")
    return Study(path.stem, config, tuple(cells), views)


def _find(study: str) -> Path:
    shipped = CONFIGS / STUDIES / f"{study}.yaml"
    if shipped.is_file():
        return shipped
    if Path(study).is_file():
        return Path(study)
    close = difflib.get_close_matches(study, shipped_studies(), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    names = ", ".join(shipped_studies())
    remedy = f"{hint}give a shipped name ({names}) or the path of a YAML file"
    raise UserError("STUDY", study, remedy)


def _known_keys(values: object, known: Sequence[str], place: str) -> Settings:
    if not isinstance(values, dict):
        raise UserError(place, values, f"write the keys {', '.join(known)} here")
    if unknown := [k for k in values if k not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(place, unknown[0], f"{hint}use {', '.join(known)}", problem="unknown key")
    return values


def _with_seeds(values: Settings, overrides: Sequence[str]) -> tuple[Settings, list[str]]:
    require_pairs(overrides)
    rest = []
    for item in overrides:
        key, _, text = item.partition("=")
        if key == "seed":
            raise UserError(key, text, "write seeds=[0,1]: each seed is a cell of its own")
        if key != "seeds":
            rest.append(item)
            continue
        values = {**values, "seeds": value_of(key, text)}
    return values, rest


def _seeds(value: Any) -> list[int]:
    if not isinstance(value, list) or not value or len(value) > MAX_LISTED:
        raise UserError("seeds", value, "list whole numbers, each once, for example [0, 1, 2]")
    seeds = [int(number_of("study", "seeds", seed, whole=True)) for seed in value]
    if len(set(seeds)) != len(seeds):
        raise UserError("seeds", value, "list whole numbers, each once")
    return seeds


def _base_config(config: object, study: Path) -> str:
    if not isinstance(config, str):
        raise UserError("config", config, "name the base configuration, for example openkbp")
    beside = study.parent / config
    return str(beside) if config.endswith(".yaml") and beside.is_file() else config


def _settings(value: object, place: str) -> Settings:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise UserError(place, value, "write dotted keys of the configuration, KEY: VALUE")
    if "seed" in value:
        raise UserError(f"{place}.seed", value["seed"], "list it under 'seeds' of the study")
    return value


def _variants(cells: object, config: str, common: Settings) -> list[_Variant]:
    if not isinstance(cells, dict) or not cells:
        raise UserError("cells", cells, "name at least one cell")
    variants = []
    for name, values in cells.items():
        place = f"cells.{name}"
        if not NAME.fullmatch(str(name)) or name == "data":
            raise UserError("cells", name, "name cells by letters, digits, '.', '-' and '_'")
        values = _known_keys({} if values is None else values, VARIANT_KEYS, place)
        only = _only_phases(values["phases"], config, place) if "phases" in values else {}
        settings = {**only, **common, **_settings(values.get("set"), f"{place}.set")}
        needs = values.get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        if not isinstance(needs, list):
            raise UserError(f"{place}.needs", needs, "name a cell, or list several")
        axes = _axes(values.get("axes"), place)
        variants.append(_Variant(str(name), settings, axes, tuple(map(str, needs))))
    return _in_order(variants)


def _only_phases(names: object, config: str, place: str) -> Settings:
    """Phases of the base configuration, as if it had no others; later settings change them."""
    base = {p.name: p for p in load(config)[0].phases}
    if not isinstance(names, list) or not names or [n for n in names if n not in base]:
        raise UserError(f"{place}.phases", names, f"list phases of {config}: {list(base)}")
    return {"phases": [dataclasses.asdict(base[name]) for name in names]}


def _axes(value: object, place: str) -> dict[str, dict[str, Settings]]:
    axes: dict[str, dict[str, Settings]] = {}
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{place}.axes", value, "write AXIS: {VALUE: {KEY: VALUE}}")
    for axis, values in (value or {}).items():
        key = f"{place}.axes.{axis}"
        if not NAME.fullmatch(str(axis)) or not isinstance(values, dict) or not values:
            raise UserError(key, values, "write VALUE: {KEY: VALUE} for each value of the axis")
        for point in values:
            if not NAME.fullmatch(str(point)):
                raise UserError(key, point, "use letters, digits, '.', '-' and '_'")
        axes[str(axis)] = {str(v): _settings(s, f"{key}.{v}") for v, s in values.items()}
    return axes


def _in_order(variants: Sequence[_Variant]) -> list[_Variant]:
    """Each variant after those that it needs; else as they stand in the file."""
    known = [v.name for v in variants]
    for variant in variants:
        for name in variant.needs:
            if name not in known:
                raise UserError(
                    f"cells.{variant.name}.needs", name, f"name a cell of this study: {known}"
                )
    ordered: list[_Variant] = []
    waiting = list(variants)
    while waiting:
        done = {v.name for v in ordered}
        free = next((v for v in waiting if set(v.needs) <= done), None)
        if free is None:
            circle = ", ".join(v.name for v in waiting)
            raise UserError("needs", circle, "break the circle: these cells wait for each other")
        ordered.append(free)
        waiting.remove(free)
    return ordered


def _leave_sites(variant: _Variant, common: Settings) -> None:
    points = [s for values in variant.axes.values() for s in values.values()]
    for key in itertools.chain(variant.settings, *points):
        if key.startswith("simulation.sites") and key not in common:
            remedy = "move it to the study's own 'set': 'folds' makes the splits from that"
            raise UserError(f"cells.{variant.name}", key, remedy)
    if "fold" in variant.axes:
        raise UserError(f"cells.{variant.name}.axes", "fold", "name it otherwise: 'folds' has it")


def _folds(
    count: object, config: str, overrides: Sequence[str], out: Path
) -> tuple[dict[str, Settings], dict[Path, Path]]:
    """The axis of a cross-validation over the patients of all sites, and the views it reads."""
    folds_wanted = int(number_of("study", "folds", count, whole=True))
    base, _ = load(config, overrides)
    folds: list[Settings] = [{} for _ in range(folds_wanted)]
    views: dict[Path, Path] = {}
    for name, site in base.simulation.sites.items():
        key = f"simulation.sites.{name}"
        if not site.splits:
            raise UserError(
                f"{key}.splits", "{}", "list the patients: folds are made of these lists"
            )
        for fold, splits in zip(
            folds, fold_splits(site.splits, folds_wanted, f"{key}.splits"), strict=True
        ):
            fold[f"{key}.splits"] = splits
        root, *others = archive_roots(name, site, base.simulation)
        if others and any(map(has_own_splits, [root, *others])):
            remedy = "copy the cases into one folder, or name one: folds take its splits' place"
            raise UserError("simulation.data", base.simulation.data, remedy)
        if has_own_splits(root):
            view = view_of(root, out)
            views[view] = root
            for fold in folds:
                fold[f"{key}.root"] = str(view)
    return {str(k): fold for k, fold in enumerate(folds)}, views


def _needed(
    name: str, variant: _Variant, variants: Iterable[_Variant], chosen: Mapping[str, str], seed: int
) -> str:
    """Name of the cell of variant `name` with this seed and these values of the shared axes."""
    other = next(v for v in variants if v.name == name)
    shared = {a: v for a, v in chosen.items() if a in other.axes or a not in variant.axes}
    for axis, values in other.axes.items():
        if shared.get(axis) not in values:
            raise UserError(
                f"cells.{variant.name}.needs",
                name,
                f"give {variant.name} the axis '{axis}' with values of {sorted(values)}",
                problem=f"it is not said which cell of {name} is meant",
            )
    return _cell_name(name, shared, seed)


def _placed(
    value: Any,
    key: str,
    variant: _Variant,
    variants: Iterable[_Variant],
    needs: Mapping[str, str],
    out: Path,
) -> Any:
    """`value` with each {NAME} of a needed cell replaced by its folder."""
    if isinstance(value, dict):
        return {k: _placed(v, key, variant, variants, needs, out) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(v, key, variant, variants, needs, out) for v in value]
    if not isinstance(value, str):
        return value
    for name in PLACEHOLDER.findall(value):
        if name in needs:
            value = value.replace(f"{{{name}}}", str(out / needs[name]))
        elif name != "data":
            remedy = f"add 'needs: {name}'" if name in [v.name for v in variants] else "correct it"
            raise UserError(
                f"cells.{variant.name}, {key}", value, remedy, problem=f"{{{name}}} is not needed"
            )
    return value


def _cell_name(variant: str, chosen: Mapping[str, str], seed: int) -> str:
    return "-".join([variant, *(f"{a}{v}" for a, v in chosen.items()), f"seed{seed}"])


def _flags(settings: Settings) -> list[str]:
    return [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in settings.items()]
