from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

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
    """Raises as it reads the reply of node 1, as Flower does of what is no message."""

    def __init__(self, answers: dict[int, Answer], error: Exception) -> None:
        super().__init__(answers)
        self.error = error

    def pull_messages(self, identifiers: Iterable[str]) -> list[Message]:
        (identifier,) = identifiers
        if self.pushed[int(identifier) - 1].metadata.dst_node_id == 1:
            raise self.error
        return super().pull_messages([identifier])


@pytest.mark.parametrize(
    "error",
    [
        IndexError("list index out of range"),
        json.JSONDecodeError("Expecting value", "", 0),
        TypeError("no content"),
        AttributeError("'RecordDict' object has no attribute 'metadata'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_reply_that_cannot_be_read_is_one_sites_error(error: Exception) -> None:
    seen: list[str] = []
    grid: Any = Spoilt({1: says(), 2: says()}, error)
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


def test_an_error_of_the_network_is_not_a_sites() -> None:
    grid: Any = Spoilt({1: says()}, ConnectionError("the server is away"))
    with pytest.raises(ConnectionError):
        exchange(grid, {"a": RecordDict()}, {"a": 1}, Call("train", "p", 30.0))
