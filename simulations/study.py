"""A study: a few lines of YAML, and the cells (variant, axes, seed) that they stand for."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError, suggestion
from core.plan.load import CONFIGS, STUDIES, load, read_yaml, require_pairs, value_of
from core.plan.ranges import MAX_LISTED, number_of
from simulations.folds import drawn_splits, fold_splits, has_own_splits, view_of
from simulations.site_map import archive_roots

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
STUDY_KEYS = ("config", "set", "seeds", "folds", "choose", "cells")
VARIANT_KEYS = ("phases", "set", "axes", "needs", "folds")
FOLD_KEYS = ("count", "sites", "train", "val", "seed")
CHOICE_KEYS = ("axis", "at")
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
        rivals: cells that differ from this one's in the axis of the study's choice, and decide
            whether this one is run; empty for those cells themselves.
    """

    name: str
    variant: str
    values: Mapping[str, str]
    seed: int
    overrides: tuple[str, ...]
    needs: tuple[str, ...]
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study as it will be run.

    Attributes:
        name: of its file.
        config: base configuration, as `hnfed simulate` takes it.
        cells: every cell after those that it needs, all variants of a seed before the next seed.
        views: archive of each view without splits that the folds need, by the view's folder.
        choice: the axis whose value is chosen on validation, see `simulations.choice`; "" for none.
    """

    name: str
    config: str
    cells: tuple[Cell, ...]
    views: Mapping[Path, Path]
    choice: str = ""


@dataclass(frozen=True)
class _Variant:
    name: str
    settings: Settings
    axes: dict[str, dict[str, Settings]]
    needs: tuple[str, ...]
    folded: bool = True


@dataclass(frozen=True)
class _Folds:
    """The axis of a cross-validation, and what its cells read.

    Attributes:
        values: splits by fold.
        roots: settings of every cell: the views in place of the archives.
        views: archive by view.
    """

    values: dict[str, Settings] = dataclasses.field(default_factory=dict)
    roots: Settings = dataclasses.field(default_factory=dict)
    views: dict[Path, Path] = dataclasses.field(default_factory=dict)


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
    folds = _Folds()
    if "folds" in values:
        for variant in variants:
            _leave_sites(variant, common)
        simulation = [o for o in overrides if o.startswith("simulation.")]
        folds = _folds(values["folds"], config, [*_flags(common), *simulation], out)
    cells = []
    by_name = {variant.name: variant for variant in variants}
    for seed in _seeds(values.get("seeds", [0])):
        for variant in variants:
            axes = _axes_of(variant, folds)
            for choice in itertools.product(*axes.values()):
                chosen = dict(zip(axes, choice, strict=True))
                needs = {
                    n: _needed(by_name[n], variant.name, folds, chosen, seed) for n in variant.needs
                }
                given: Settings = dict(variant.settings)
                for axis, value in chosen.items():
                    given |= variant.axes.get(axis, {}).get(value, {})
                given = {k: _placed(v, k, variant, variants, needs, out) for k, v in given.items()}
                last = {**folds.roots, **folds.values.get(chosen.get("fold", ""), {}), "seed": seed}
                flags = (*_flags(given), *overrides, *_flags(last))
                name = _cell_name(variant.name, chosen, seed)
                cells.append(Cell(name, variant.name, chosen, seed, flags, tuple(needs.values())))
    names = [cell.name for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError("cells", twice[0], "rename a cell or an axis: two cells get this name")
    axis = ""
    if "choose" in values:
        axis, cells = _with_choice(values["choose"], cells)
    return Study(path.stem, config, tuple(cells), folds.views, axis)


def _axes_of(variant: _Variant, folds: _Folds) -> dict[str, dict[str, Settings]]:
    return {**({"fold": folds.values} if folds.values and variant.folded else {}), **variant.axes}


def _with_choice(value: object, cells: Sequence[Cell]) -> tuple[str, list[Cell]]:
    """Cells that wait for those at the place of the choice, and are run with its value alone."""
    words = _known_keys(value, CHOICE_KEYS, "choose")
    axis, at = str(words.get("axis")), words.get("at")
    if not isinstance(at, dict) or not at:
        raise UserError(
            "choose.at", at, "name fold and seed where it is chosen, {fold: 0, seed: 0}"
        )
    if not any(axis in cell.values for cell in cells):
        raise UserError("choose.axis", axis, "name an axis of a cell")
    place = {str(k): str(v) for k, v in at.items()}

    def there(cell: Cell) -> bool:
        known = {**cell.values, "seed": str(cell.seed)}
        return axis in cell.values and all(known.get(k) == v for k, v in place.items())

    if not any(map(there, cells)):
        raise UserError("choose.at", at, "give values that cells have; --list prints their names")
    result = []
    for cell in cells:
        rivals: tuple[str, ...] = ()
        if axis in cell.values and not there(cell):
            apart = {k for k in cell.values if k != axis and k not in place}
            rivals = tuple(
                other.name
                for other in cells
                if there(other)
                and other.variant == cell.variant
                and all(other.values[k] == cell.values[k] for k in apart)
            )
            if not rivals:
                remedy = "add its value to 'choose.at', or its seed to the seeds"
                raise UserError(f"cell {cell.name}", axis, remedy, problem="nothing chooses it")
        result.append(dataclasses.replace(cell, needs=(*cell.needs, *rivals), rivals=rivals))
    return axis, result


def _find(study: str) -> Path:
    shipped = CONFIGS / STUDIES / f"{study}.yaml"
    if shipped.is_file():
        return shipped
    if Path(study).is_file():
        return Path(study)
    names = shipped_studies()
    remedy = f"give a shipped name ({', '.join(names)}) or the path of a YAML file"
    raise UserError("STUDY", study, suggestion(study, names) + remedy)


def _known_keys(values: object, known: Sequence[str], place: str) -> Settings:
    if not isinstance(values, dict):
        raise UserError(place, values, f"write the keys {', '.join(known)} here")
    if unknown := [k for k in values if k not in known]:
        remedy = f"{suggestion(str(unknown[0]), known)}use {', '.join(known)}"
        raise UserError(place, unknown[0], remedy, problem="unknown key")
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
        folded = values.get("folds", True)
        if not isinstance(folded, bool):
            raise UserError(f"{place}.folds", folded, "write false for one cell for all folds")
        variants.append(_Variant(str(name), settings, axes, tuple(map(str, needs)), folded))
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


def _folds(value: object, config: str, overrides: Sequence[str], out: Path) -> _Folds:
    """The axis of a cross-validation over the patients of all sites, or of those named."""
    drawn = _known_keys(value, FOLD_KEYS, "folds") if isinstance(value, dict) else None
    count = int(number_of("study", "folds", drawn.get("count") if drawn else value, whole=True))
    base, _ = load(config, overrides)
    sites = base.simulation.sites
    folded = (drawn or {}).get("sites", list(sites))
    if not isinstance(folded, list) or not folded or [n for n in folded if n not in sites]:
        raise UserError("folds.sites", folded, f"list sites of {config}: {', '.join(sites)}")
    result = _Folds({str(k): {} for k in range(count)})
    for name, site in sites.items():
        key = f"simulation.sites.{name}"
        if name in folded:
            if not site.splits:
                remedy = "list the patients: folds are made of these lists"
                raise UserError(f"{key}.splits", "{}", remedy)
            if drawn and len(drawn) > 1:
                splits = _drawn_splits(site.splits, count, drawn, f"{key}.splits")
            else:
                splits = fold_splits(site.splits, count, f"{key}.splits")
            for fold, lists in zip(result.values.values(), splits, strict=True):
                fold[f"{key}.splits"] = lists
        roots = archive_roots(name, site, base.simulation)
        if any(map(has_own_splits, roots)):
            seen = [view_of(root, out) if has_own_splits(root) else root for root in roots]
            result.views.update(
                {view: root for view, root in zip(seen, roots, strict=True) if view != root}
            )
            result.roots[f"{key}.root"] = list(map(str, seen)) if len(seen) > 1 else str(seen[0])
    return result


def _drawn_splits(
    splits: Mapping[str, Sequence[str]], count: int, drawn: Settings, field: str
) -> list[dict[str, list[str]]]:
    """Folds of a stated number of training and validation patients."""
    numbers = {}
    for key, least in (("train", 1), ("val", 0), ("seed", 0)):
        number = drawn.get(key)
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            remedy = f"give a whole number >= {least}, beside count, train, val and seed"
            raise UserError(f"folds.{key}", number, remedy)
        numbers[key] = number
    names = [name for split in splits.values() for name in split]
    return drawn_splits(names, count, field=field, **numbers)


def _needed(
    other: _Variant, variant: str, folds: _Folds, chosen: Mapping[str, str], seed: int
) -> str:
    """Name of the cell of `other` with this seed and these values of its axes."""
    axes = _axes_of(other, folds)
    for axis, values in axes.items():
        if chosen.get(axis) not in values:
            raise UserError(
                f"cells.{variant}.needs",
                other.name,
                f"give {variant} the axis '{axis}' with values of {sorted(values)}",
                problem=f"it is not said which cell of {other.name} is meant",
            )
    return _cell_name(other.name, {axis: chosen[axis] for axis in axes}, seed)


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
