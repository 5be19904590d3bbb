from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from core.plan.schema import Federation, Phase, Plan
from core.wire.messages import Description, Header
from server.enrolment import Bounds, bounds_of, call_roster, declared, frequencies, impossible

pytestmark = pytest.mark.usefixtures("task_identity")
BOUNDS = Bounds(cases=1000, crop_voxels=100, organ_voxels=(100.0, 50.0))
Answer = Callable[[Message], Message | None]


def description(site: str, **changes: Any) -> Description:
    values: dict[str, Any] = {
        "site": site,
        "fingerprint": "f",
        "split_hash": "h",
        "cases": (3, 1, 1),
        "annotated": (3, 2),
        "voxels": (30.0, 20.0),
        "totals": (300.0, 200.0),
        "left_out": {"E_EMPTY": 1},
        "versions": {"torch": "2"},
    }
    return Description(**(values | changes))


def describes(
    site: str,
    header: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    **changes: Any,
) -> Answer:
    def answer(message: Message) -> Message:
        assert message.metadata.message_type == "query"
        assert dict(message.content["order"]) == {"run": "r", "fingerprint": "f"}
        config, numbers = description(site, **changes).to_records()
        records = {
            "header": ConfigRecord(config | (header or {})),
            "metrics": MetricRecord(numbers | (metrics or {})),
        }
        return Message(RecordDict(records), reply_to=message)

    return answer


class Grid:
    def __init__(self, answers: dict[int, Answer], late: dict[int, float] | None = None) -> None:
        self.answers = answers
        self.late = late or {}
        self.started = time.monotonic()
        self.asked: list[int] = []
        self.waiting: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        passed = time.monotonic() - self.started
        return [n for n in self.answers if self.late.get(n, 0) <= passed]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            self.asked.append(message.metadata.dst_node_id)
            identifier = str(len(self.asked))
            message.metadata.__dict__["_message_id"] = identifier
            reply = self.answers[message.metadata.dst_node_id](message)
            if reply is not None:
                self.waiting[identifier] = reply
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, identifiers: Iterable[str]) -> list[Message]:
        return [self.waiting.pop(i) for i in list(identifiers) if i in self.waiting]


def call(grid: Grid, *sites: str, join_s: float = 0.5) -> tuple[dict[str, int], Any, list[Any]]:
    events: list[Any] = []
    phase = Phase(name="p", sites=list(sites), organs=["Brainstem", "Parotid_L"])
    waits = Federation(query_timeout_s=join_s, prepare_timeout_s=0.3)
    plan = Plan(phases=[phase], federation=waits)
    with patch("server.enrolment.bounds_of", return_value=BOUNDS):
        nodes, described = call_roster(
            grid,  # type: ignore[arg-type]
            plan,
            run="r",
            fingerprint="f",
            say=lambda event: events.append(dict(event)),
        )
    assert set(nodes) == set(described)
    assert all(e["event"] == "rejected" for e in events)
    return nodes, described, events


def test_nodes_are_found_by_the_names_that_they_give() -> None:
    nodes, described, events = call(Grid({5: describes("b"), 9: describes("a")}), "a", "b")
    assert nodes == {"a": 9, "b": 5}
    assert described["a"] == description("a")
    assert events == []


def test_a_site_may_come_later_and_no_node_is_asked_twice() -> None:
    grid = Grid({5: describes("b"), 9: describes("a")}, late={9: 0.5})
    nodes, _, events = call(grid, "a", "b", join_s=20)
    assert nodes == {"a": 9, "b": 5}
    assert sorted(grid.asked) == [5, 9]
    assert events == []


def test_who_does_not_come_is_journalled() -> None:
    nodes, _, events = call(Grid({5: describes("b")}), "a", "b")
    assert nodes == {"b": 5}
    assert [(e["site"], e["code"]) for e in events] == [("a", "E_LOST")]


def test_of_two_nodes_with_one_name_the_first_is_kept() -> None:
    nodes, _, events = call(
        Grid({5: describes("a"), 6: describes("a"), 7: describes("b")}), "a", "b"
    )
    assert nodes == {"a": 5, "b": 7}
    assert [(e["site"], e["code"]) for e in events] == [("a", "E_SITE")]


def test_a_name_that_the_plan_does_not_know_is_not_written_down() -> None:
    nodes, _, events = call(Grid({5: describes("Jane Doe"), 6: describes("a")}), "a")
    assert nodes == {"a": 6}
    assert [(e["site"], e["code"]) for e in events] == [("", "E_SITE")]
    assert "Jane" not in str(events)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (describes("a", fingerprint="other"), "E_CODE"),
        (describes("a", header={"code": "E_DATA"}), "E_DATA"),
        (describes("a", header={"code": "patient Jane Doe"}), "E_INTERNAL"),
        (describes("a", metrics={"cases": [1]}), "E_SCHEMA"),
        (describes("a", metrics={"cases": [float("inf"), 1.0, 1.0]}), "E_SCHEMA"),
        (describes("a", annotated=(1,)), "E_COUNT"),
        (describes("a", annotated=(1, -1)), "E_COUNT"),
        (describes("a", voxels=(1.0, 2.0, 3.0)), "E_COUNT"),
        (describes("a", totals=(1.0, float("nan"))), "E_COUNT"),
        (describes("a", cases=(-3, 1, 1)), "E_COUNT"),
        (describes("a", cases=(1001, 1, 1)), "E_COUNT"),
        (describes("a", annotated=(4, 2), totals=(400.0, 200.0)), "E_COUNT"),
        (describes("a", voxels=(301.0, 20.0)), "E_COUNT"),
        (describes("a", voxels=(30.0, 101.0)), "E_COUNT"),
        (describes("a", voxels=(1e300, 1e300), totals=(1e300, 1e300)), "E_COUNT"),
        (describes("a", totals=(300.0, 201.0)), "E_COUNT"),
        (describes("a", annotated=()), "E_COUNT"),
        (describes("a", left_out={"E_EMPTY": 10**12}), "E_COUNT"),
    ],
)
def test_a_site_that_cannot_take_part_is_refused_and_not_waited_for(
    answer: Answer, code: str
) -> None:
    started = time.monotonic()
    nodes, _, events = call(Grid({5: answer, 6: describes("b")}), "a", "b", join_s=60)
    assert nodes == {"b": 6}
    assert [(e["site"], e["code"]) for e in events] == [("a", code)]
    assert "Jane" not in str(events)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda m: None, "E_LOST"),
        (lambda m: Message(Error(1, "Jane Doe"), reply_to=m), "E_ERROR"),
        (lambda m: Message(RecordDict(), reply_to=m), "E_SCHEMA"),
    ],
)
def test_a_node_that_says_nothing_usable(answer: Answer, code: str) -> None:
    nodes, _, events = call(Grid({5: answer, 6: describes("a")}), "a")
    assert nodes == {"a": 6}
    assert [(e["site"], e["code"]) for e in events] == [("", code)]
    assert "Jane" not in str(events)


def test_a_node_that_cannot_answer_is_named_by_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    class Registered(Grid):
        def get_nodes(self) -> list[Any]:
            return [SimpleNamespace(node_id=5, name="b"), SimpleNamespace(node_id=9, name="x")]

    def ended(m: Message) -> Message:
        return Message(Error(8, "Jane Doe"), reply_to=m)

    def slanders(m: Message) -> Message:
        config = Header("a", "r", "", 0, "E_POLICY").to_config()
        content = {"header": ConfigRecord(config), "metrics": MetricRecord({"cases": 0})}
        return Message(RecordDict(content), reply_to=m)

    nodes, _, events = call(Registered({5: slanders, 6: describes("a")}), "a", "b", join_s=20)
    assert nodes == {"a": 6}, "b's key speaks for b alone"
    assert [(e["site"], e["code"]) for e in events] == [("b", "E_POLICY")]
    answers = {5: ended, 6: describes("a"), 9: ended}
    nodes, _, events = call(Registered(answers), "a", "b", join_s=20)
    assert nodes == {"a": 6}
    assert [(e["site"], e["code"]) for e in events] == [("b", "E_ERROR"), ("", "E_ERROR")]
    assert "not approved there" in events[0]["detail"]
    told = capsys.readouterr().out
    assert "b cannot take part: E_ERROR" in told
    assert "Jane" not in told + str(events)


def test_a_site_that_withholds_its_counts_is_let_in() -> None:
    silent = {"cases": (-1, -1, -1), "annotated": (), "voxels": (), "totals": ()}
    nodes, _, events = call(Grid({5: describes("a", **silent)}), "a")
    assert nodes == {"a": 5}
    assert events == []


@pytest.mark.parametrize("seed", range(20))
def test_no_site_moves_the_class_frequencies_further_than_its_cases_allow(seed: int) -> None:
    """Whatever passes, the share of an organ over the federation stays one that contours have."""
    pick = random.Random(seed)
    plan = Plan(phases=[Phase(name="p", sites=["a"], organs=["Brainstem", "OpticChiasm"])])
    bounds = bounds_of(plan)
    honest = description(
        "b", annotated=(3, 3), voxels=(30_000.0, 700.0), totals=(3.0 * bounds.crop_voxels,) * 2
    )
    passed = 0
    for _ in range(200):
        cases = pick.randint(0, 5)
        annotated = (pick.randint(0, 6), pick.randint(0, 6))
        factor = 10 ** pick.uniform(-2, 6)
        told = description(
            "a", cases=(cases, 0, 0), annotated=annotated,
            voxels=tuple(n * pick.uniform(0, 1e4) * factor for n in annotated),
            totals=tuple(float(n * bounds.crop_voxels) for n in annotated),
        )  # fmt: skip
        if impossible(told, bounds):
            continue
        passed += 1
        voxels, totals = frequencies([honest, told], plan, plan.phases[0])
        for have, of, most in zip(voxels, totals, bounds.organ_voxels, strict=True):
            assert have / of <= most / bounds.crop_voxels < 0.1
    assert passed


PLAN = Plan(phases=[Phase(name="p", sites=["a"], organs=["Brainstem", "Parotid_L"])])
SECOND = Phase(name="q", sites=["a"], organs=["Parotid_L"])


def test_frequencies_are_summed_over_the_sites_for_the_organs_of_the_phase() -> None:
    both = [description("a"), description("b", voxels=(1.0, 2.0), totals=(10.0, 20.0))]
    assert frequencies(both, PLAN, PLAN.phases[0]) == ([31.0, 22.0], [310.0, 220.0])
    assert frequencies(both, PLAN, SECOND) == ([22.0], [220.0])
    assert frequencies([*both, description("c", voxels=())], PLAN, SECOND) == ([], [])


def test_what_a_site_declares() -> None:
    assert declared(description("a", annotated=(0, 4)), PLAN, PLAN.phases[0]) == [0.0, 1.0]
    assert declared(description("a", annotated=(0, 4)), PLAN, SECOND) == [1.0]
    assert declared(description("a", annotated=()), PLAN, PLAN.phases[0]) == [1.0, 1.0]


def test_a_name_that_the_nodes_key_does_not_have_is_refused() -> None:
    grid = Grid({5: describes("a"), 6: describes("a"), 7: describes("b")})
    names = {5: "b", 6: "a", 7: "b"}
    grid.get_nodes = lambda: [SimpleNamespace(node_id=n, name=names[n]) for n in names]  # type: ignore[method-assign]
    nodes, _, events = call(grid, "a", "b")
    assert nodes["a"] == 6, "the first that says it is a has b's key"
    assert ("b", "E_SITE") in [(e["site"], e["code"]) for e in events]
