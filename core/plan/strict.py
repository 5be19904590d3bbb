"""A value of a plan is of the type that the plan's dataclasses say: nothing is taken for another.

OmegaConf, which makes the dataclasses, would take 2 for true, "010" for 10 and true for "True".
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from core.errors import UserError

OLD_BOOLEANS = frozenset(("yes", "no", "on", "off", "y", "n"))  # of YAML 1.1
_REMEDIES = {
    bool: "true or false",
    int: "a whole number, without quotes",
    float: "a number, without quotes",
    str: "text: in quotes",
}


def require_types(kind: Any, value: Any, key: str = "") -> None:
    """Requires that plain values are of the types that a section of the plan has.

    A whole number may stand for a text (a patient's number) and for a number with a fraction.
    Unknown keys, and a value where a section or list belongs, are left to whoever fits the values.

    Args:
        kind: a dataclass, or the type of one of its fields.
        value: as read from a file or message.
        key: dotted, of the value.

    Raises:
        UserError: names the key, the value and the type.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            require_types(next(part for part in parts if part is not type(None)), value, key)
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        for name, inner in _fields(typing.cast(type, kind)).items():
            if name in value:
                require_types(inner, value[name], f"{key}.{name}" if key else name)
    elif origin is dict and isinstance(value, Mapping):
        for name, item in value.items():
            require_types(parts[1], item, f"{key}.{name}")
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            require_types(parts[0], item, f"{key}.{index}")
    elif kind in _REMEDIES and not _is(kind, value):
        problem = "" if not isinstance(value, str) else "text"
        remedy = f"give a value of the right type: {_REMEDIES[kind]}"
        raise UserError(key, value, remedy, problem=problem)
    elif kind is Any and not key.startswith("organs."):  # those hold spellings
        _require_no_old_boolean(value, key)


def _is(kind: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float, str)
    if isinstance(value, float):
        return kind is float
    return kind is str and isinstance(value, str)


def _require_no_old_boolean(value: Any, key: str) -> None:
    """Of a value of any type nobody knows whether ``off`` was meant as a text."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _require_no_old_boolean(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_no_old_boolean(item, f"{key}.{index}")
    elif isinstance(value, str) and value.lower() in OLD_BOOLEANS:
        raise UserError(key, value, "write true or false", problem="text")


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
