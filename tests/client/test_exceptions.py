"""An exception at any place of a site's work: the server hears a code, and never its text."""

from __future__ import annotations

import base64
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message

from core.wire.messages import CODES, OK
from tests.client.conftest import MakeNode, MakePhase, code, everything

# Each is raised at, with a token of its own, while the site answers a message of that kind.
PLACES = {
    "query": [
        ("client/app.py", "query"), ("core/plan/load.py", "plan_from_json"),
        ("core/data/site.py", "entries"),
        ("core/data/site.py", "split_hash"), ("client/tasks.py", "describe"),
        ("core/provenance.py", "versions"),
        ("core/wire/messages.py", "to_records"), ("core/data/cache.py", "open_cache"),
    ],
    "train": [
        ("client/app.py", "_unpack"), ("client/app.py", "_order_of"),
        ("client/app.py", "_incoming"), ("client/personal_weights.py", "cached_base"),
        ("client/personal_weights.py", "keep_base"), ("client/tasks.py", "train_shared"),
        ("client/tasks.py", "loaded"), ("core/models/build.py", "build"),
        ("core/wire/partition.py", "parts_of"), ("core/wire/partition.py", "apply_freeze"),
        ("core/data/site.py", "of_phase"), ("core/data/dataset.py", "__getitem__"),
        ("core/data/dataset.py", "scale_image"), ("core/data/dataset.py", "load_label"),
        ("core/training/engine.py", "train"), ("core/training/engine.py", "validate"),
        ("core/training/losses.py", "segmentation_loss"),
        ("core/training/optimisation.py", "take_step"),
        ("core/training/ranks.py", "devices_of"),
        ("core/metrics/scores.py", "organ_sums"),
        ("core/metrics/scores.py", "score_case"), ("core/wire/messages.py", "to_metrics"),
        ("core/wire/state.py", "unpacked"),
    ],
    "evaluate": [("client/tasks.py", "evaluate"), ("client/scoring.py", "score")],
}  # fmt: skip


def forms(token: str) -> set[bytes]:
    """A token as it may lie in bytes: utf-8 and -16, in a URL, in hex, in base64 at each offset."""
    plain = token.encode()
    found = {plain, token.encode("utf-16-le"), token.encode("utf-16-be")}
    found |= {plain.hex().encode(), plain.hex().upper().encode()}
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + plain)
        found.add(text[-(-8 * shift // 6) : -4])  # the letters that the token alone decides
    return found


@contextmanager
def raising(place: tuple[str, str], token: str) -> Iterator[list[str]]:
    """Whatever enters that function dies of an exception that tells the token."""
    hits: list[str] = []

    def on_call(frame: FrameType, event: str, argument: Any) -> None:
        here = frame.f_code
        if here.co_name == place[1] and here.co_filename.endswith(place[0]):
            hits.append(token)
            sys.settrace(on_call)  # Python ends a trace that raised
            raise FileNotFoundError(f"/data/{token}/img.nrrd")

    before = sys.gettrace()
    threading.settrace(on_call)
    sys.settrace(on_call)
    try:
        yield hits
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]


def all_bytes(reply: Message) -> bytes:
    arrays = [r for r in reply.content.values() if isinstance(r, ArrayRecord)]
    return everything(reply) + b"".join(a.deflate() for a in arrays) + reply.content.deflate()


@pytest.mark.parametrize(
    ("kind", "place"),
    [(kind, place) for kind, places in PLACES.items() for place in places],
    ids=lambda v: v if isinstance(v, str) else f"{v[0]}-{v[1]}",
)
def test_no_text_of_an_exception_leaves(
    node: MakeNode, make_phase: MakePhase, kind: str, place: tuple[str, str]
) -> None:
    n = node(make_phase(freeze="encoder"))
    base, digest = n.base()
    shared = {k: v for k, v in n.start().items() if k not in base}
    order = n.order(task="test" if kind == "evaluate" else kind, base_hash=digest)
    token = "DOE^JANE " + re.sub(r"\W", "", "".join(place))
    with raising(place, token) as hits:
        what = {} if kind == "query" else {"order": order, "arrays": shared, "base": base}
        reply = n.ask(kind, **what)  # type: ignore[arg-type]
    assert hits, "the place was reached"
    assert code(reply) in CODES
    assert code(reply) != OK
    sent = all_bytes(reply)
    assert not [form for form in forms(token) if form in sent]


def test_a_token_is_found_in_any_form() -> None:
    token = "DOE^JANE 1950"
    for hidden in (
        token.encode(), token.encode("utf-16-le"), token.encode().hex().encode(),
        base64.b64encode(b"x" + token.encode() + b"yz"), base64.b64encode(b"xy" + token.encode()),
    ):  # fmt: skip
        assert any(form in b"..." + hidden + b"..." for form in forms(token)), hidden
