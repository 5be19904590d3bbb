"""Reading and writing a plan: the only reader of YAML."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core import yamltext
from core.errors import UserError, suggestion
from core.files import UnfitError, read_bounded
from core.identifiers import phase_name
from core.plan.candidates import expand
from core.plan.schema import Config, Phase, Plan, Simulation
from core.plan.strict import require_types
from core.processes import leave_if_told
from core.text import shown

P = TypeVar("P", bound=Plan)
T = TypeVar("T")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STUDIES, MODELS = "studies", "models"  # folders of `CONFIGS`
PLAN_BYTES = 1_000_000  # of a plan that travels; shipped ones have 4,000
DEEPEST = 20  # levels of a plan
MOST_KNOWN = 16
_SIMULATIONS: dict[str, Simulation] = {}  # by what stands in the file and the overrides
KEY = re.compile(r"[^\s=\[\]]+")
MISFIT = (OmegaConfBaseException, TypeError)  # the latter where a mapping stands for a list


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
    from core.plan.validate import check

    path = find_config(config)
    values = read_yaml(path)
    sources = dict.fromkeys(_flat(values), path.name)
    require_pairs(overrides)
    for item in overrides:
        key = _override(values, item)
        sources = {k: v for k, v in sources.items() if not k.startswith(key + ".")}
        sources |= dict.fromkeys(
            (k for k in _flat(values) if f"{k}.".startswith(f"{key}.")), "override"
        )
    resolved = cast(Config, _typed(Config, values, str(path), sources))
    resolved = dataclasses.replace(resolved, phases=[_started(p) for p in resolved.phases])
    check(resolved)
    resolved, sources = _offered(resolved, sources)
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
    names = shipped_configs()
    remedy = f"give a shipped name ({', '.join(names)}) or the path of a YAML file"
    raise UserError("CONFIG", config, suggestion(config, names) + remedy)


def shipped_configs() -> list[str]:
    """Names of the configurations that ship, sorted; studies (grids of runs) are none."""
    paths = [p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml")]
    return sorted(str(p)[:-5] for p in paths if p.parts[0] != STUDIES)


def shipped_models() -> dict[str, Path]:
    """The checkpoints that come with hnfed, by name: what ``init`` and MODEL take beside paths."""
    return {path.stem: path for path in sorted((CONFIGS / MODELS).glob("*.safetensors"))}


def _started(phase: Phase) -> Phase:
    """A phase whose ``init`` is a file where it named a model that ships."""
    known = shipped_models()
    if phase.name in known:
        remedy = "choose another name: a model that comes with hnfed has this one"
        raise UserError("phases.name", phase.name, remedy)
    return dataclasses.replace(phase, init=str(known.get(phase.init, phase.init)))


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, readable by `load`."""
    return yamltext.dump(_plain(config))


def plan_json(plan: Plan) -> str:
    """Canonical ASCII JSON of the plan: what travels to the sites (D1)."""
    only_plan = {f.name: getattr(plan, f.name) for f in dataclasses.fields(Plan)}
    plain = {k: _plain(v) for k, v in only_plan.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plan_from_json(text: str) -> Plan:
    """Inverse of `plan_json`; a plan of other code fails by the name of its unknown key.

    Each message brings the plan again: the same text gives the same object, which nobody changes.

    Raises:
        UserError: no JSON of sections, too long, an interpolation at any depth, an unknown key, a
            wrong type, or a value that makes no sense.
    """
    if len(text) > PLAN_BYTES:
        raise UserError("plan", f"{len(text)} characters", f"send at most {PLAN_BYTES}")
    return _plan_of(text)


@functools.lru_cache(8)
def _plan_of(text: str) -> Plan:
    from core.plan.validate import check

    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"no JSON ({type(error).__name__})"
        raise UserError("plan", shown(text, 40), "send a plan of hnfed", problem=problem) from None
    if not isinstance(values, dict):
        raise UserError("plan", shown(text, 40), "send sections such as 'model'")
    plan = cast(Plan, _typed(Plan, values, "plan"))
    check(plan)
    return _offered(plan, {})[0]


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the canonical plan."""
    return hashlib.sha256(plan_json(plan).encode("ascii")).hexdigest()


def _offered(plan: P, sources: dict[str, str]) -> tuple[P, dict[str, str]]:
    """The plan with its `candidates` as phases of their own, and where their values come from."""
    from core.plan.validate import check

    found = expand(plan.phases)
    if [phase for _, phase in found] == plan.phases:
        return plan, sources
    offered = dataclasses.replace(plan, phases=[phase for _, phase in found])
    check(offered)
    moved = {k: v for k, v in sources.items() if not k.startswith("phases.")}
    for index, (origin, _) in enumerate(found):
        before = f"phases.{origin}."
        moved |= {
            f"phases.{index}.{k.removeprefix(before)}": v
            for k, v in sources.items()
            if k.startswith(before)
        }
    return offered, moved


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file of sections.

    Raises:
        UserError: no such file, no YAML, no mapping, an interpolation, or a value that stands
            without quotes and that programs read as different numbers (`core.yamltext`).
    """
    try:
        text = read_bounded(path, 4 * yamltext.MOST_SIGNS).decode("utf-8")
    except UnfitError as error:
        problem = "is a directory" if path.is_dir() else str(error)
        raise UserError("file", path, "give the path of a YAML file", problem=problem) from None
    except OSError as error:
        problem = str(error.strerror).lower()
        remedy = "give the path of a file that can be read"
        raise UserError("file", path, remedy, problem=problem) from None
    except UnicodeDecodeError:
        raise UserError("file", path, "save it as UTF-8", problem="not text in UTF-8") from None
    try:
        values = yamltext.parse(text)
    except UserError as error:
        field = f"{path}, {error.field}"
        raise UserError(field, error.value, error.remedy, problem=error.problem) from None
    except Exception as error:
        leave_if_told()
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(place, reason, "mend the YAML there; blanks indent, no tabs") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(str(path), values, "write sections such as 'model:' at the top level")
    require_plain(values, str(path))
    return cast(dict[str, Any], values)


def require_plain(value: Any, place: str) -> None:
    """Requires that no key and no text holds an interpolation, at any depth.

    OmegaConf would resolve it where the value is read: from that machine's environment, or from
    other values. Looked for is what came out of the parser, so that no spelling hides it.

    Raises:
        UserError: names the place, or that the values lie too deep.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            raise UserError(place, f"more than {DEEPEST} levels", "write it flatter")
        if isinstance(item, Mapping):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            waiting += [(part, depth + 1) for part in item]
        elif isinstance(item, str) and "${" in item:
            remedy = "write the value itself; interpolation is not allowed"
            raise UserError(place, shown(item, 100), remedy)


def typed(schema: type[T], values: object, place: str) -> T:
    """Plain values of a file or message as a section of the plan, such as `Model`.

    Raises:
        UserError: no mapping, an interpolation, an unknown key or a wrong type.
    """
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(place, shown(values, 100), "give a mapping of keys")
    return cast(T, _typed(schema, values, place))


def require_pairs(overrides: Sequence[str]) -> None:
    """Requires that each override is KEY=VALUE; what was meant stands in the error.

    Raises:
        UserError: no ``=``, blanks in or around the key, or brackets round an index.
    """
    for index, item in enumerate(overrides):
        key, equals, text = item.partition("=")
        meant = ".".join(part for part in re.split(r"[\s.\[\]\"']+", key) if part)
        if not equals:
            rest = [*overrides[index + 1 : index + 3], "", ""]
            if rest[0] == "=":
                text = rest[1]
            elif rest[0].startswith("="):
                text = rest[0][1:]
            form = f"{meant}={text}" if meant and text else "train.lr=0.001"
            remedy = f"write KEY=VALUE without blanks, for example {form}"
            raise UserError("override", item, remedy)
        if not meant:
            raise UserError("override", item, "write KEY=VALUE, for example train.lr=0.001")
        if not KEY.fullmatch(key):
            raise UserError("override", item, f"write {meant}={text.strip()}")


def _override(values: dict[str, Any], item: str) -> str:
    """Applies one KEY=VALUE in place and returns the resolved dotted key."""
    key, _, text = item.partition("=")
    value = value_of(key, text)
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


def value_of(key: str, text: str) -> Any:
    """The value of an override, read as in a file.

    Raises:
        UserError: no YAML, an interpolation, or a value that is read as different numbers.
    """
    try:
        made = yamltext.parse(f"v: {text}")
    except UserError as error:
        remedy = f"{error.remedy} (for a shell: {key}='...', with the quotes of the value inside)"
        raise UserError(key, error.value, remedy, problem=error.problem) from None
    except Exception:
        leave_if_told()
        made = None
    if not isinstance(made, dict) or list(made) != ["v"]:
        raise UserError(key, text, "write the value as YAML: 3, 0.1, true, [a, b]")
    require_plain(made["v"], key)
    return made["v"]


def _index(items: list[Any], part: str, key: str) -> int:
    names = [str(i.get("name")) if isinstance(i, dict) else "" for i in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(key, part, f"use an index below {len(items)} or one of the names {names}")


def _typed(
    schema: type, values: Mapping[str, Any], place: str, sources: Mapping[str, str] | None = None
) -> object:
    """Fits plain values into the schema; `place` and `sources` say where a value stood.

    Raises:
        UserError: an interpolation, an unknown key or a wrong type.
    """
    require_plain(values, place)
    try:
        require_types(schema, values)
        return _fit(schema, values)
    except UserError as error:
        key, problem, remedy = error.field, error.problem, error.remedy
    except MISFIT as error:
        leave_if_told()
        key = _key_at_fault(schema, values, error)
        problem = str(error).splitlines()[0]
        remedy = _remedy(key, problem, error)
    parts = re.split(r"[.\[]", key)
    heads = {".".join(parts[: i + 1]) for i in range(len(parts))}
    if not any(origin == "override" and k in heads for k, origin in (sources or {}).items()):
        remedy = f"{remedy} (in {place})"
    field = _by_name(values, key) or place
    raise UserError(field, _value_at(values, key), remedy, problem=problem)


def _remedy(key: str, problem: str, error: Exception) -> str:
    if "not in" in problem:
        section = getattr(error, "object_type", None)
        known = [f.name for f in dataclasses.fields(section)] if section else []
        alone = known and "Did you mean" not in problem
        own = f"use one of {', '.join(known)}" if alone else "correct the key"
        return f"{own}; 'hnfed config show demo' lists all of them"
    if "ListConfig" in problem or "not a list" in problem.lower():
        return f"write a list, for example {key.split('.')[-1]}=[...]"
    if "Missing mandatory" in problem:
        return "give it a value"
    return "give a value of the right type; 'hnfed config show demo' shows an example"


def _fit(schema: type, values: Mapping[str, Any]) -> object:
    """Values as an object of the schema; like texts under `simulation` are fitted once.

    Its lists of patients take most of the time, and the cells of a study have few kinds of it.
    """
    apart = {k: v for k, v in values.items() if k == "simulation" and schema is Config}
    found = _merged(schema, {k: v for k, v in values.items() if k not in apart})
    if not apart:
        return found
    key = repr(apart)
    if key not in _SIMULATIONS:
        if len(_SIMULATIONS) >= MOST_KNOWN:
            _SIMULATIONS.clear()
        _SIMULATIONS[key] = cast(Config, _merged(schema, apart)).simulation
    return dataclasses.replace(cast(Config, found), simulation=copy.deepcopy(_SIMULATIONS[key]))


def _merged(schema: type, values: Mapping[str, Any]) -> object:
    merged = OmegaConf.merge(_empty(schema), OmegaConf.create(dict(values)))  # into a copy
    assert isinstance(merged, DictConfig)
    return OmegaConf.to_object(merged)


@functools.lru_cache(8)
def _empty(schema: type) -> DictConfig:
    """A schema's defaults, which take OmegaConf nearly half of a `_fit` to build."""
    return cast(DictConfig, OmegaConf.structured(schema))


def _key_at_fault(schema: type, values: Mapping[str, Any], error: Exception) -> str:
    """The full dotted key of a value that does not fit.

    OmegaConf names it by its section, but loses the list around a phase, and says nothing where a
    whole section is of the wrong kind.
    """
    found = re.search(r"full_key: (\S+)", str(error))
    key = found.group(1) if found else str(getattr(error, "full_key", "") or "")
    if not key:
        return next((name for name in values if not _fits(schema, {name: values[name]})), "")
    if "object_type=Phase" in str(error):
        phases = values["phases"]
        index = next((i for i, p in enumerate(phases) if not _fits(Phase, p)), 0)
        key = f"phases.{index}.{key}"
    return key


def _fits(schema: type, values: Mapping[str, Any]) -> bool:
    try:
        _fit(schema, values)
    except MISFIT:
        return False
    return True


def _by_name(values: Mapping[str, Any], key: str) -> str:
    """The key with its phase's name in place of its index, as `--help` and overrides write it."""
    found = re.fullmatch(r"phases\.(\d+)\.(.+)", key)
    if not found:
        return key
    try:
        name = phase_name(_value_at(values, f"phases.{found[1]}.name"))
    except UserError:  # that is another error
        return key
    return f"phases.{name}.{found[2]}"


def _value_at(values: Any, key: str) -> Any:
    """The value under a dotted key; "(none)" where nothing stands there."""
    for part in re.split(r"[.\[\]]+", key.rstrip("]")):
        if isinstance(values, list):
            values = values[int(part)]
        elif isinstance(values, Mapping):
            values = values.get(part, "(none)")
    return values


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
