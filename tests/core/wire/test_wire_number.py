"""The number of the wire format is raised where the form of what travels changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing

from core.metrics.scores import SUM_FIELDS
from core.plan.schema import LOSSES, Plan
from core.secure.hello import Hello
from core.wire.messages import CODES, SETTINGS, TASKS, WIRE, Description, Header, Order, Result
from hnfed.guard.order import KINDS, PARCELS


def form(kind: object) -> object:
    """Names and types of a record's fields, those of the records within it too."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {f.name: form(hints[f.name]) for f in dataclasses.fields(kind)}
    inner = [part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)]
    return [form(part) for part in inner] or str(kind)


def test_the_form_is_that_of_the_number() -> None:
    told = {
        "records": {k.__name__: form(k) for k in (Order, Header, Description, Result, Hello, Plan)},
        "words": [sorted(CODES), TASKS, LOSSES, SUM_FIELDS, SETTINGS],
        "messages": [KINDS, PARCELS],
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    assert (WIRE, digest) == (4, "a5348856d07d2f8b"), (
        "what travels has another form than before: raise WIRE in core/wire/messages.py by one, "
        "write the new pair here, and a line into CHANGELOG.md: sites and servers of before and "
        "after refuse each other"
    )
