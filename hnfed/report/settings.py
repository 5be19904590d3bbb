"""The report's section of the configuration: each value, and where it comes from."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from core.plan.schema import Config, Phase, SimulatedSite
from core.tracking.wandb_run import scrubbed

LONGEST = 300
DEFAULT, SET = "default", "set"
# Of a simulation: where its archives lie, and ids and spellings of theirs. A page is handed on.
HERE = re.compile(r"simulation\.(?:data|cache|sites\.[^.]+\.(?:root|aliases|splits|exclude))\b")
HIDDEN = '"[of this machine]"'
OF_MANY = {  # lists of sections, and sections by name
    "phases": dataclasses.asdict(Phase(name="")),
    "simulation.sites": dataclasses.asdict(SimulatedSite()),
}


def settings(config: Mapping[str, Any], sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configuration by section.

    Args:
        config: of the run's `config.yaml`.
        sources: of its `sources.json`: dotted key -> ``default``, a file's name or ``override``.
            Without it, as in runs of earlier versions, a value is `DEFAULT` where it is the
            schema's, else `SET`.

    Returns:
        `name` of a section and its `rows`: key, value as JSON, source, and whether that is other
        than the default.
    """
    known = _defaults()
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, value in flat(scrubbed(config)):
        default = known.get(_general(key), known.get(key))
        told = sources.get(key)
        source = str(told) if told else DEFAULT if value == default else SET
        told = HIDDEN if HERE.match(key) and value != default else value[:LONGEST]
        row = {"key": key, "value": told, "source": source, "set": source != DEFAULT}
        groups.setdefault(key.partition(".")[0], []).append(row)
    return [{"name": name, "rows": rows} for name, rows in groups.items()]


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value as JSON; a list is one value, a list of sections is not."""
    if isinstance(value, Mapping) and value:
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        yield prefix, json.dumps(value, default=str)
        return
    for name, item in items:
        yield from flat(item, f"{prefix}.{name}" if prefix else name)


def _defaults() -> dict[str, str]:
    """Dotted key -> default, with ``*`` for an index or a name."""
    known = dict(flat(dataclasses.asdict(Config())))
    for prefix, values in OF_MANY.items():
        known |= {f"{prefix}.*.{k}": v for k, v in flat(values)}
    return known


def _general(key: str) -> str:
    for prefix in OF_MANY:
        if key.startswith(prefix + "."):
            return f"{prefix}.*.{key[len(prefix) + 1 :].partition('.')[2]}"
    return key
