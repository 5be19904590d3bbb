from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    HEAD_BODY_DIVIDER,
    HEAD_VALUE_DIVIDER,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)

from core.wire.messages import NEED_BASE, OK, Header
from server.exchange import UNREADABLE, Call, _pause, exchange, size_of
from server.guards import error_words

pytestmark = pytest.mark.usefixtures("task_identity")
BASE = {"w": torch.arange(6.0)}
Answer = Callable[[Message], Message | None]


class Grid:
    """Answers by a function of the node; None is silence; `late`: not before so many pulls."""

    def __init__(self, answers: dict[int, Answer], late: dict[int, int] | None = None) -> None:
        self.answers = answers
        self.late = late or {}
        self.pushed: list[Message] = []
        self.pulls = 0
        self.waiting: dict[str, tuple[int, Message]] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            self.pushed.append(message)
            identifier = str(len(self.pushed))
            message.metadata.__dict__["_message_id"] = identifier
            node = message.metadata.dst_node_id
            reply = self.answers[node](message)
            if reply is not None:
                self.waiting[identifier] = (self.late.get(node, 0), reply)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, identifiers: Iterable[str]) -> list[Message]:
        self.pulls += 1
        ready = [i for i in identifiers if i in self.waiting and self.waiting[i][0] < self.pulls]
        return [self.waiting.pop(i)[1] for i in ready]


def says(code: str = OK) -> Answer:
    def answer(message: Message) -> Message:
        header = ConfigRecord(Header("x", "r", "p", 1, code).to_config())
        return Message(RecordDict({"header": header}), reply_to=message)

    return answer


def needs_base(message: Message) -> Message:
    """A site without a disk: it has the base only while the message is there."""
    return says(OK if "base" in message.content else NEED_BASE)(message)


def order() -> RecordDict:
    arrays = ArrayRecord({"v": torch.zeros(10)})
    return RecordDict({"order": ConfigRecord({"phase": "p"}), "arrays": arrays})


def ask(grid: Grid, sites: dict[str, int], *, timeout_s: float = 5.0, base: Any = None) -> Any:
    contents = {site: order() for site in sites}
    return exchange(
        grid,  # type: ignore[arg-type]
        contents,
        sites,
        Call("train", "g", timeout_s, base),
    )


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.001)


def test_every_site_gets_its_message_and_its_reply_is_kept_under_its_name() -> None:
    grid = Grid({7: says(), 8: says("E_DATA")}, late={7: 3})
    done = ask(grid, {"b": 7, "a": 8})
    assert [m.metadata.dst_node_id for m in grid.pushed] == [8, 7]  # sorted by site
    assert {m.metadata.message_type for m in grid.pushed} == {"train"}
    assert {m.metadata.group_id for m in grid.pushed} == {"g"}
    assert done.replies["a"].content["header"]["code"] == "E_DATA"
    assert done.replies["b"].content["header"]["code"] == OK
    assert done.seconds["b"] >= done.seconds["a"] > 0


def test_a_silent_site_is_absent_after_the_deadline() -> None:
    started = time.monotonic()
    done = ask(Grid({1: says(), 2: lambda _: None}), {"a": 1, "b": 2}, timeout_s=0.2)
    assert set(done.replies) == {"a"}
    assert 0.2 <= time.monotonic() - started < 3


def test_a_reply_that_is_there_counts_whenever_it_is_looked_at() -> None:
    grid = Grid({1: says(), 2: needs_base})
    found = exchange(
        grid,
        {"a": order(), "b": order()},
        {"a": 1, "b": 2},
        Call("train", "p", 0.0, lambda: ArrayRecord(BASE)),
    )
    assert set(found.replies) == {"a", "b"}


def test_moving_a_message_is_told_apart_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("server.exchange.time.monotonic", lambda: float(next(now)))
    monkeypatch.setattr("server.exchange.time.sleep", lambda _: [next(now) for _ in range(50)])
    done = ask(Grid({1: says()}, late={1: 1}), {"a": 1}, timeout_s=1e6)
    assert done.moving == 2.0, "one push and the pull that brought the reply, of one tick each"
    assert done.seconds["a"] > 50.0


@pytest.mark.parametrize(
    ("asking", "waited", "seconds"),
    [(0.0, 0.0, 0.001), (0.02, 1.0, 0.18), (0.001, 50.0, 0.5), (0.001, 9000.0, 1.0)],
)
def test_sites_are_asked_after_less_often_the_more_they_are_and_the_longer_it_takes(
    asking: float, waited: float, seconds: float
) -> None:
    assert _pause(asking, waited) == pytest.approx(seconds)


def test_each_answer_is_taken_before_the_next_is_fetched() -> None:
    grid, log = Grid({1: says(), 2: needs_base, 3: says()}), []
    pull = grid.pull_messages

    def logged(identifiers: Iterable[str]) -> list[Message]:
        asked = list(identifiers)
        log.append(f"pull {len(asked)}")
        return pull(asked)

    grid.pull_messages = logged  # type: ignore[method-assign]
    sites = {"a": 1, "b": 2, "c": 3}
    exchange(
        grid,  # type: ignore[arg-type]
        {site: order() for site in sites},
        sites,
        Call("train", "g", 5.0, lambda: ArrayRecord(BASE)),
        answered=lambda site, _: log.append(site),
    )
    assert log == ["pull 1", "a", "pull 1", "pull 1", "c", "pull 1", "b"]


def test_nobody_is_waited_for_once_all_have_answered() -> None:
    started = time.monotonic()
    ask(Grid({1: says()}), {"a": 1}, timeout_s=60)
    assert time.monotonic() - started < 5


def test_the_base_goes_to_the_site_that_lacks_it_once_and_need_base_stays_here() -> None:
    grid = Grid({1: needs_base, 2: says()})
    made = []

    def base() -> ArrayRecord:
        made.append(1)
        return ArrayRecord(BASE)

    done = ask(grid, {"a": 1, "b": 2}, base=base)
    assert len(made) == 1
    assert [m.metadata.dst_node_id for m in grid.pushed] == [1, 2, 1]
    again = grid.pushed[2].content
    assert torch.equal(again["base"].to_torch_state_dict()["w"], BASE["w"])
    assert dict(again["order"]) == {"phase": "p"}
    assert "arrays" in again
    assert "base" not in grid.pushed[0].content
    assert {s: r.content["header"]["code"] for s, r in done.replies.items()} == {"a": OK, "b": OK}


def test_the_bytes_of_the_base_are_counted() -> None:
    with_base = ask(Grid({1: needs_base}), {"a": 1}, base=lambda: ArrayRecord(BASE))
    without = ask(Grid({1: says()}), {"a": 1}, base=lambda: ArrayRecord(BASE))
    assert with_base.sent["a"] == 2 * without.sent["a"] + size_of(
        RecordDict({"base": ArrayRecord(BASE)})
    )
    assert with_base.received["a"] > without.received["a"] > 0


def test_a_site_that_asks_again_does_not_get_it_again() -> None:
    grid = Grid({1: says(NEED_BASE)})
    done = ask(grid, {"a": 1}, base=lambda: ArrayRecord(BASE))
    assert len(grid.pushed) == 2
    assert done.replies["a"].content["header"]["code"] == NEED_BASE


def test_without_a_base_nothing_is_pushed_again() -> None:
    grid = Grid({1: says(NEED_BASE)})
    ask(grid, {"a": 1})
    assert len(grid.pushed) == 1


def test_an_error_is_a_reply() -> None:
    grid = Grid({1: lambda m: Message(Error(1, "x"), reply_to=m)})
    done = ask(grid, {"a": 1}, base=lambda: ArrayRecord(BASE))
    assert done.replies["a"].has_error()
    assert "a" not in done.received


def test_a_message_that_the_grid_does_not_take_is_lost() -> None:
    grid = Grid({1: says()})
    grid.push_messages = lambda messages: [""]  # type: ignore[method-assign, assignment]
    assert ask(grid, {"a": 1}, timeout_s=60).replies == {}


def test_size_counts_arrays_numbers_and_text() -> None:
    arrays = ArrayRecord({"w": torch.zeros(1000)})
    assert 4000 <= size_of(RecordDict({"a": arrays})) < 4200
    content = RecordDict(
        {"m": MetricRecord({"x": 1, "y": [1.0, 2.0]}), "c": ConfigRecord({"t": "abc", "b": True})}
    )
    assert size_of(content) == 8 + 16 + 3 + 8


class Spoilt(Grid):
    """Reading the reply of node 1 raises; of a reply that is used up an error is told, as Flower
    does. With `unasked` it was another message, which came with it."""

    def __init__(
        self, answers: dict[int, Answer], reading: Callable[[], object], *, unasked: bool = False
    ) -> None:
        super().__init__(answers)
        self.reading = reading
        self.unasked = unasked
        self.read: set[str] = set()

    def pull_messages(self, identifiers: Iterable[str]) -> list[Message]:
        (identifier,) = identifiers
        order = self.pushed[int(identifier) - 1]
        if order.metadata.dst_node_id == 1 and identifier not in self.read:
            self.read.add(identifier)
            if not self.unasked:
                self.waiting[identifier] = (0, Message(Error(3), reply_to=order))
            self.reading()
        return super().pull_messages([identifier])


def _raising(error: Exception) -> Callable[[], object]:
    def reading() -> object:
        raise error

    return reading


@pytest.mark.parametrize(
    "error",
    [
        IndexError("list index out of range"),
        json.JSONDecodeError("Expecting value", "", 0),
        TypeError("no content"),
        AttributeError("'RecordDict' object has no attribute 'metadata'"),
        OverflowError("int too large to convert"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_reply_that_cannot_be_read_is_one_sites_error(error: Exception) -> None:
    seen: list[str] = []
    grid: Any = Spoilt({1: says(), 2: says()}, _raising(error))
    contents = {site: RecordDict() for site in "ab"}
    call = Call("train", "p", 30.0)
    done = exchange(
        grid, contents, {"a": 1, "b": 2}, call, answered=lambda site, _: seen.append(site)
    )
    assert sorted(seen) == ["a", "b"]
    assert done.replies["b"].has_content()
    assert done.replies["a"].error.code == UNREADABLE
    assert error_words(done.replies["a"]) == (
        f"the reply is no message that can be read; Flower error {UNREADABLE}"
    )


def _object(kind: str, children: list[str], body: bytes, known: dict[str, bytes]) -> str:
    """Adds an object as Flower's store holds one; returns its id."""
    head = HEAD_VALUE_DIVIDER.join((kind, ",".join(children), str(len(body))))
    content = head.encode() + HEAD_BODY_DIVIDER + body
    name = get_object_id(content)
    known[name] = content
    return name


def _no_protobuf(known: dict[str, bytes]) -> str:
    return _object("ConfigRecord", [], b"\xff" * 5, known)


def _deep(known: dict[str, bytes]) -> str:
    name = _object("RecordDict", [], b"{}", known)
    for _ in range(3000):
        name = _object("RecordDict", [name], json.dumps({"x": name}).encode(), known)
    return name


def _deep_json(known: dict[str, bytes]) -> str:
    return _object("RecordDict", [], b"[" * 100_000, known)


@pytest.mark.parametrize("forge", [_no_protobuf, _deep, _deep_json])
def test_bytes_that_flower_cannot_read_are_one_sites_error(
    forge: Callable[[dict[str, bytes]], str],
) -> None:
    known: dict[str, bytes] = {}
    name = forge(known)
    for content in known.values():
        validate_object_content(content)  # Flower's server takes it in

    def reading() -> object:
        return inflate_object_from_contents(name, dict(known))

    done = ask(Spoilt({1: says(), 2: says()}, reading), {"a": 1, "b": 2})
    assert done.replies["a"].error.code == UNREADABLE
    assert done.replies["b"].has_content()


@pytest.mark.parametrize("named", ["", "2"])
def test_what_a_site_sends_unasked_is_nobodys_reply(named: str) -> None:
    """Flower hands it over with whichever reply is asked for first; its words are the sender's."""

    class Unasked(Grid):
        def pull_messages(self, identifiers: Iterable[str]) -> list[Message]:
            forged = says("E_DATA")(self.pushed[0])
            forged.metadata.__dict__["_reply_to_message_id"] = named
            return [forged, *super().pull_messages(identifiers)]

    done = ask(Unasked({1: says()}, late={1: 3}), {"a": 1})
    assert done.replies["a"].content["header"]["code"] == OK
    silent = ask(Unasked({1: lambda _: None}), {"a": 1}, timeout_s=0.2)
    assert silent.replies == {}, "and it holds no round open"


def test_what_cannot_be_read_and_is_no_reply_costs_the_site_nothing() -> None:
    grid = Spoilt({1: says()}, _raising(ValueError("no message")), unasked=True)
    assert ask(grid, {"a": 1}).replies["a"].content["header"]["code"] == OK


def test_an_error_of_the_network_is_not_a_sites() -> None:
    grid: Any = Spoilt({1: says()}, _raising(ConnectionError("the server is away")))
    with pytest.raises(ConnectionError):
        exchange(grid, {"a": RecordDict()}, {"a": 1}, Call("train", "p", 30.0))
