"""JSON schema of a plan, for editors: keys, types, ranges and choices."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from core.plan.ranges import KEYED, MAX_LISTED, RANGES, Range
from core.plan.schema import Config
from core.plan.validate import CHOICES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REQUIRED = "???"  # a default that says that there is none
# A whole number may stand for a text, such as a patient's number (`core.plan.strict`).
TYPES: Mapping[Any, Any] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: ["string", "integer"],
}

Schema = dict[str, Any]


def plan_schema() -> Schema:
    """The JSON schema (draft 2020-12) of the YAML file of a plan.

    It holds what can be said of one value alone. What several values together must be, names of
    organs and the arguments of networks are checked when the plan is read.
    """
    return {"$schema": DIALECT, "title": "hnfed plan", **_of(Config, "")}


def _of(kind: Any, rule: str) -> Schema:
    """The schema of a value of a type, at its place in `RANGES` and `CHOICES`."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        found = _of(next(part for part in parts if part is not type(None)), rule)
        kinds = found["type"]
        return found | {"type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}
    if dataclasses.is_dataclass(kind):
        return _section(typing.cast(type, kind), rule)
    if origin is list:
        items = _of(parts[0], f"{rule}.*")
        if rule in CHOICES:
            items = {"enum": list(CHOICES[rule])}
        return {"type": "array", "items": items, "maxItems": MAX_LISTED}
    if origin is dict:
        return _mapping(parts[1], rule)
    if kind is Any:
        names = {"type": "array", "items": {"type": "string"}}
        return {"anyOf": [{"enum": list(CHOICES[rule])}, names]} if rule in CHOICES else {}
    if rule in CHOICES:
        return {"enum": list(CHOICES[rule])}
    return {"type": TYPES[kind], **_bounds(RANGES.get(rule))}


def _section(kind: type, rule: str) -> Schema:
    hints, keys = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        keys[field.name] = _of(hints[field.name], f"{rule}.{field.name}" if rule else field.name)
        if field.default not in (dataclasses.MISSING, REQUIRED):
            keys[field.name]["default"] = field.default
    found = {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0],
        "properties": keys,
        "additionalProperties": False,
    }
    required = [f.name for f in dataclasses.fields(kind) if f.default == REQUIRED]
    return found | ({"required": required} if required else {})


def _mapping(kind: Any, rule: str) -> Schema:
    found: Schema = {"type": "object", "maxProperties": MAX_LISTED}
    if keys := KEYED.get(f"{rule}.*"):
        properties = {key: _of(kind, f"{rule}.{key}") for key in keys}
        return found | {"properties": properties, "additionalProperties": False}
    if rule in CHOICES:
        found["propertyNames"] = {"enum": list(CHOICES[rule])}
    return found | {"additionalProperties": _of(kind, f"{rule}.*")}


def _bounds(row: Range | None) -> Schema:
    if row is None:
        return {}
    low, high = "exclusiveMinimum" if row.above else "minimum", "maximum"
    high = "exclusiveMaximum" if row.below else high
    return {low: row.low, high: row.high} | ({"multipleOf": 1} if row.whole else {})
