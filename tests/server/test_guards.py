from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor

from core.metrics.scores import OrganSum
from core.plan.schema import Federation, Guards, Phase
from core.wire.messages import CODES, NEED_BASE, Header, Result
from core.wire.state import packed
from server.exchange import record_of
from server.guards import Accepted, Awaited, Rejected, Verdicts, inspect, on_disk

PHASE = Phase(name="p", sites=["a"], organs=["Brainstem", "Parotid_L"])
EXPECTED = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
GOOD = {"w": torch.ones(2, 3), "b": torch.ones(3)}
SUMS = {o: OrganSum(2, 1, 0.5, 3.0, 9.0) for o in PHASE.organs}

pytestmark = pytest.mark.usefixtures("task_identity")


def reply(
    header: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    arrays: ArrayRecord | dict[str, Tensor] | None = None,
    **records: Any,
) -> Message:
    asked = Message(RecordDict(), 2, "train")
    asked.metadata.__dict__["_message_id"] = "1"
    result = Result(cases=3, annotated=(3, 1), loss=(1.0,) * 5, steps=3, scores={"val": SUMS})
    content: dict[str, Any] = {
        "header": ConfigRecord(Header("a", "r", "p", 4).to_config() | (header or {})),
        "metrics": MetricRecord(result.to_metrics(PHASE.organs) | (metrics or {})),
    }
    if arrays is not None:
        content["arrays"] = arrays if isinstance(arrays, ArrayRecord) else record_of(packed(arrays))
    content |= records
    return Message(RecordDict(content), reply_to=asked)


def verdict(
    message: Message,
    expected: dict[str, Tensor] = EXPECTED,
    cases: tuple[int, int, int] = (3, 2, 2),
    still: frozenset[str] = frozenset(),
) -> Accepted | Rejected:
    return inspect(
        message,
        Header("a", "r", PHASE.name, 4),
        PHASE,
        awaited=Awaited(expected, still),
        guards=Guards(max_cases=1000),
        cases=cases,
    )


def code_of(message: Message, expected: dict[str, Tensor] = EXPECTED) -> str:
    found = verdict(message, expected)
    assert isinstance(found, Rejected)
    assert found.code in CODES
    return found.code


def test_a_right_reply_is_accepted_whole() -> None:
    found = verdict(reply(arrays=GOOD))
    assert isinstance(found, Accepted)
    assert set(found.state) == set(GOOD)
    assert all(torch.equal(found.state[k], GOOD[k]) for k in GOOD)
    assert found.result.cases == 3
    assert found.result.annotated == (3, 1)
    assert found.result.scores["val"] == SUMS


def test_a_reply_without_weights_is_accepted_where_none_may_travel() -> None:
    found = verdict(reply(), {})
    assert isinstance(found, Accepted)
    assert found.state == {}


def test_weights_where_none_may_travel() -> None:
    assert code_of(reply(arrays=GOOD), {}) == "E_SCHEMA"
    assert code_of(reply(other=ArrayRecord(GOOD)), {}) == "E_SCHEMA"


def test_errors_of_flower() -> None:
    asked = reply()
    error = Message(Error(2, "Jane Doe's scan"), reply_to=asked)
    found = verdict(error)
    assert isinstance(found, Rejected)
    assert found.code == "E_ERROR"
    assert "Jane" not in found.detail


@pytest.mark.parametrize(
    "change",
    [
        {"round": 3},
        {"round": 5},
        {"run": "other"},
        {"phase": "q"},
        {"site": "b"},
    ],
)
def test_another_round_run_phase_or_site(change: dict[str, Any]) -> None:
    assert code_of(reply(header=change, arrays=GOOD)) == "E_STALE"


@pytest.mark.parametrize(
    "change",
    [
        {"round": "4"},
        {"round": True},
        {"site": 3},
        {"stopped": 1},
    ],
)
def test_headers_of_another_form(change: dict[str, Any]) -> None:
    assert code_of(reply(header=change, arrays=GOOD)) == "E_SCHEMA"


@pytest.mark.parametrize("record", ["header", "metrics", "arrays"])
def test_a_missing_record(record: str) -> None:
    message = reply(arrays=GOOD)
    del message.content[record]
    assert code_of(message) == "E_SCHEMA"


@pytest.mark.parametrize("code", [c for c in CODES if c.startswith("E_")] + [NEED_BASE])
def test_a_site_gives_its_own_reason(code: str) -> None:
    found = verdict(reply(header={"code": code}))
    assert found == Rejected(code, CODES[code])


def test_words_of_a_site_go_nowhere() -> None:
    found = verdict(reply(header={"code": "patient Jane Doe"}))
    assert isinstance(found, Rejected)
    assert found.code == "E_INTERNAL"
    assert "Jane" not in found.detail


@pytest.mark.parametrize(
    "state",
    [
        {"w": GOOD["w"]},
        GOOD | {"more": torch.ones(1)},
        {"w": GOOD["w"], "c": GOOD["b"]},
    ],
    ids=["fewer", "more", "others"],
)
def test_names_of_the_weights(state: dict[str, Tensor]) -> None:
    assert code_of(reply(arrays=state)) == "E_SCHEMA"


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(3, 2), torch.ones(2, 3, 1), torch.ones(2, 3).double(), torch.ones(2, 3).half()],
    ids=["shape", "rank", "double", "half"],
)
def test_shape_and_dtype_of_the_weights(wrong: Tensor) -> None:
    assert code_of(reply(arrays=GOOD | {"w": wrong})) == "E_SCHEMA"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(bad: float) -> None:
    spoilt = GOOD["w"].clone()
    spoilt[1, 2] = bad
    assert code_of(reply(arrays=GOOD | {"w": spoilt})) == "E_NONFINITE"


WHOLE = packed(GOOD)
TEXT = safetensors.torch.save(GOOD, metadata={"x": "y"})
CROWD = packed({f"{i}": torch.zeros(0) for i in range(1000)})


@pytest.mark.parametrize(
    "data",
    [b"", b"rubbish", WHOLE[:-3], WHOLE + WHOLE, b"PK\x03\x04" + b"\0" * 40, TEXT, CROWD],
    ids=["empty", "rubbish", "cut", "twice", "zip", "text", "crowd"],
)
def test_bytes_that_are_no_weights(data: bytes) -> None:
    assert code_of(reply(arrays=record_of(data))) == "E_SCHEMA"


def test_a_parcel_much_larger_than_it_should_be_is_not_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safetensors.torch.load", lambda data: pytest.fail("opened"))
    assert code_of(reply(arrays={"w": torch.ones(2, 3), "b": torch.ones(3000)})) == "E_SCHEMA"


def test_weights_in_several_pieces() -> None:
    (one,) = record_of(WHOLE).values()
    assert code_of(reply(arrays=ArrayRecord({"weights": one, "more": one}))) == "E_SCHEMA"
    assert code_of(reply(arrays=ArrayRecord(dict(GOOD)))) == "E_SCHEMA"
    assert code_of(reply(arrays=GOOD, other=record_of(WHOLE))) == "E_SCHEMA"


def test_accepted_weights_are_held_once() -> None:
    message = reply(arrays=GOOD)
    assert isinstance(verdict(message), Accepted)
    assert not message.content.array_records


@pytest.mark.parametrize(
    "change",
    [
        {"cases": -1},
        {"cases": 4},  # more than the site described
        {"val.n": [3.0, 2.0]},
        {"cases": 2},  # fewer than the 3 that annotate the brainstem
        {"steps": -1},
        {"skipped": 10**12},
        {"annotated": [-1, 1]},
        {"annotated": [4, 1]},
        {"val.n": [1e9, 2.0]},
        {"val.dice": [2.5, 0.5]},
        {"val.dice": [-0.5, 0.5]},
        {"val.detected": [3.0, 1.0]},
        {"val.detected": [-1.0, 1.0]},
        {"val.hd95_mm": [-1.0, 1.0]},
        {"val.penalised_mm": [-1.0, 1.0]},
        {"val.n": [-7.0, 2.0]},
    ],
    ids=str,
)
def test_counts_and_scores_outside_their_range(change: dict[str, Any]) -> None:
    assert code_of(reply(metrics=change, arrays=GOOD)) == "E_COUNT"


def test_a_distance_that_no_patient_has() -> None:
    for key in ("val.hd95_mm", "val.penalised_mm"):
        assert code_of(reply(metrics={key: [1.7e308, 3.0]}, arrays=GOOD)) == "E_COUNT"


def test_a_site_that_describes_no_numbers_is_held_to_the_bound_of_the_plan() -> None:
    silent = (-1, -1, -1)
    assert isinstance(verdict(reply(metrics={"cases": 1000}, arrays=GOOD), cases=silent), Accepted)
    found = verdict(reply(metrics={"cases": 1001}, arrays=GOOD), cases=silent)
    assert isinstance(found, Rejected)
    assert found.code == "E_COUNT"


def test_scores_of_a_split_that_nobody_described_are_impossible() -> None:
    found = verdict(reply(arrays=GOOD), cases=(3, 0, 2))
    assert isinstance(found, Rejected)
    assert found.code == "E_COUNT"


def test_an_update_from_no_case() -> None:
    change = {"cases": 0, "annotated": [0, 0]}
    assert code_of(reply(metrics=change, arrays=GOOD)) == "E_COUNT"


@pytest.mark.parametrize(
    "change",
    [
        {"cases": float("inf")},
        {"cases": float("nan")},
        {"cases": [1, 2]},
        {"annotated": [1]},
        {"annotated": [float("inf"), 1.0]},
        {"loss": [1.0, 2.0]},
        {"val.n": [1.0]},
        {"val.dice": [float("nan"), 0.5]},
        {"val.hd95_mm": [float("inf"), 0.5]},
    ],
    ids=str,
)
def test_metrics_of_another_form(change: dict[str, Any]) -> None:
    assert code_of(reply(metrics=change, arrays=GOOD)) == "E_SCHEMA"


@pytest.mark.parametrize(
    "change",
    [
        {"loss": [float("nan"), 1.0, 1.0, 1.0, 1.0]},
        {"loss": [-1.79e308, 1.0, 1.0, 1.0, 1.0]},
        {"seconds": float("inf")},
    ],
    ids=str,
)
def test_numbers_that_are_none(change: dict[str, Any]) -> None:
    assert code_of(reply(metrics=change, arrays=GOOD)) == "E_NONFINITE"


@pytest.mark.parametrize("change", [{"seconds": -1e300}, {"startup": 1e300}], ids=str)
def test_seconds_that_no_round_takes(change: dict[str, Any]) -> None:
    assert code_of(reply(metrics=change, arrays=GOOD)) == "E_COUNT"


@pytest.mark.parametrize("best", [-1, 5, 1_000_000])
def test_a_best_round_that_has_not_been(best: int) -> None:
    assert code_of(reply({"best_round": best}, arrays=GOOD)) in ("E_COUNT", "E_SCHEMA")
    assert isinstance(verdict(reply({"best_round": 4}, arrays=GOOD)), Accepted)


def test_an_update_that_changes_nothing() -> None:
    same = {name: tensor.clone() for name, tensor in EXPECTED.items()}
    assert code_of(reply(arrays=same)) == "E_UNCHANGED"
    moved = same | {"b": same["b"] + 1e-6}
    assert isinstance(verdict(reply(arrays=moved)), Accepted)
    nothing = frozenset(EXPECTED)
    assert isinstance(verdict(reply(arrays=same), still=nothing), Accepted), "nothing trains yet"
    found = verdict(reply(arrays=same), still=frozenset({"w"}))
    assert isinstance(found, Rejected)
    assert found.code == "E_UNCHANGED", "b trains"


def test_what_is_frozen_in_this_round_comes_back_as_it_went() -> None:
    moved = EXPECTED | {"b": EXPECTED["b"] + 1e-6}
    assert isinstance(verdict(reply(arrays=moved), still=frozenset({"w"})), Accepted)
    found = verdict(reply(arrays=moved), still=frozenset({"b"}))
    assert isinstance(found, Rejected)
    assert found.code == "E_NORM"
    assert "b moved" in found.detail


def test_a_site_that_described_its_counts_tells_them() -> None:
    """One reply without them would make all sites weigh equally."""
    silent = reply(metrics={"annotated": []}, arrays=GOOD)
    found = verdict(silent)
    assert isinstance(found, Rejected)
    assert (found.code, "annotated" in found.detail) == ("E_COUNT", True)
    withheld = reply(metrics={"annotated": []}, arrays=GOOD)
    assert isinstance(verdict(withheld, cases=(-1, -1, -1)), Accepted)


def test_only_a_site_that_withholds_its_counts_may_train_on_none() -> None:
    none = {"cases": 0, "annotated": []}
    assert code_of(reply(metrics=none, arrays=GOOD)) == "E_COUNT"
    assert isinstance(verdict(reply(metrics=none, arrays=GOOD), cases=(-1, -1, -1)), Accepted)


def test_a_withheld_cell_is_accepted() -> None:
    withheld = {"val.n": [-1.0, 2.0], "val.detected": [0.0, 1.0]}
    found = verdict(reply(metrics=withheld), {})
    assert isinstance(found, Accepted)
    assert found.result.scores["val"]["Brainstem"].n == -1


NUMBER = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=True, allow_infinity=True))
VALUE = st.one_of(
    NUMBER, st.lists(st.floats(), max_size=3), st.lists(st.integers(-9, 9), max_size=3)
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    change=st.dictionaries(
        st.sampled_from(
            sorted(
                Result(cases=1, annotated=(1, 1), loss=(1.0,) * 5, scores={"val": SUMS}).to_metrics(
                    PHASE.organs
                )
            )
        ),
        VALUE,
        max_size=4,
    )
)
def test_whatever_numbers_come_the_server_only_accepts_or_rejects(change: dict[str, Any]) -> None:
    found = verdict(reply(metrics=change, arrays=GOOD))
    if isinstance(found, Accepted):
        assert 1 <= found.result.cases <= 1000
        assert all(0 <= c <= found.result.cases for c in found.result.annotated)
    else:
        assert found.code in CODES


def test_what_waits_on_disk_is_what_came_and_leaves_no_file(tmp_path: Path) -> None:
    state = {"b": torch.randn(7, 3), "a": torch.arange(5), "one": torch.tensor(2.5)}
    held = on_disk(packed(state), tmp_path / "state")
    assert set(held) == set(state)
    assert all(torch.equal(held[n], state[n]) for n in state)
    assert {n: t.dtype for n, t in held.items()} == {n: t.dtype for n, t in state.items()}
    assert list((tmp_path / "state").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_what_is_written_to_it_stays_in_memory_and_changes_nothing_else(tmp_path: Path) -> None:
    state = {"a": torch.ones(4)}
    held = on_disk(packed(state), tmp_path)
    held["a"][0] = 9.0
    assert held["a"].tolist() == [9.0, 1.0, 1.0, 1.0]
    assert state["a"].tolist() == [1.0] * 4


def test_what_is_no_parcel_leaves_no_file_behind(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError):
        on_disk(b"no safetensors file", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_site_without_an_answer_is_lost_and_others_are_judged_by_name(tmp_path: Path) -> None:
    asked = Header("", "r", "p", 1)
    phase = Phase(name="p", sites=["a", "b"], organs=["Brainstem"])
    verdicts = Verdicts(asked, phase, {}, Federation(), {"a": (1, 1, 1), "b": (1, 1, 1)}, tmp_path)
    for site, told in (("a", "a"), ("b", "a")):
        content = {
            "header": ConfigRecord(replace(asked, site=told).to_config()),
            "metrics": MetricRecord(Result().to_metrics(phase.organs)),
        }
        order = Message(RecordDict(), dst_node_id=1, message_type="train")  # type: ignore[arg-type]
        verdicts(site, Message(RecordDict(content), reply_to=order))
    codes = {s: getattr(verdicts.of(s), "code", "OK") for s in ("a", "b", "c")}
    assert codes == {"a": "OK", "b": "E_STALE", "c": "E_LOST"}
