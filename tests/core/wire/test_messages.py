from __future__ import annotations

import json
from typing import Any

import pytest
from flwr.app import ConfigRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.metrics.scores import OrganSum
from core.wire.messages import (
    CODES,
    NEED_BASE,
    OK,
    WITHHELD,
    Description,
    Header,
    Order,
    Result,
    published,
    withhold,
)

ORGANS = ("Brainstem", "Parotid_L")


def through_flower(record: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """What arrives at the other end; Flower refuses types that it does not know."""
    return dict(record(values))


@pytest.mark.parametrize(
    "order",
    [
        Order("r", "p", 1, "train"),
        Order("r", "p", 9, "test", "b" * 64, 8, 7, "f" * 64, [1.5, 0.0], [2.0, 3.0]),
    ],
)
def test_an_order_travels(order: Order) -> None:
    assert Order.from_config(through_flower(ConfigRecord, order.to_config())) == order


def test_an_order_with_more_keys_is_read_and_one_with_less_is_not() -> None:
    config = Order("r", "p", 1, "train").to_config()
    assert Order.from_config(config | {"later": 1}).round == 1
    del config["phase"]
    with pytest.raises(TypeError):
        Order.from_config(config)


def test_a_header_travels_and_its_types_are_checked() -> None:
    header = Header("a", "r", "p", 3, NEED_BASE, True, 2)
    config = through_flower(ConfigRecord, header.to_config())
    assert Header.from_config(config) == header
    assert Header("a", "r", "p", 3).code == OK
    for key, wrong in (("site", 1), ("round", "3"), ("round", True), ("stopped", 1), ("code", b"")):
        with pytest.raises(TypeError):
            Header.from_config(config | {key: wrong})
    del config["code"]
    with pytest.raises(KeyError):
        Header.from_config(config)


SUMS = st.builds(
    OrganSum,
    n=st.integers(0, 1000),
    detected=st.integers(0, 1000),
    dice=st.floats(0, 1000),
    hd95_mm=st.floats(0, 1e5),
    penalised_mm=st.floats(0, 1e5),
)
SCORES = st.fixed_dictionaries(dict.fromkeys(ORGANS, SUMS))
RESULTS = st.builds(
    Result,
    cases=st.integers(0, 10**6),
    annotated=st.one_of(st.just(()), st.tuples(st.integers(0, 99), st.integers(0, 99))),
    loss=st.one_of(st.just(()), st.tuples(*[st.floats(0, 99)] * 5)),
    steps=st.integers(0, 99),
    skipped=st.integers(0, 99),
    seconds=st.floats(0, 1e6),
    scores=st.fixed_dictionaries({}, optional={"val": SCORES, "test": SCORES}),
)


@given(RESULTS)
def test_a_result_travels(result: Result) -> None:
    metrics = through_flower(MetricRecord, result.to_metrics(ORGANS))
    assert Result.from_metrics(metrics, ORGANS) == result


@pytest.mark.parametrize(
    "change",
    [
        {"annotated": [1]},
        {"loss": [1.0]},
        {"val.n": [1.0]},
        {"val.n": [1.0, 2.0, 3.0]},
        {"val.dice": [float("nan"), 1.0]},
        {"cases": float("nan")},
    ],
    ids=str,
)
def test_a_result_of_another_form_is_an_error(change: dict[str, Any]) -> None:
    good = Result(cases=1, scores={"val": dict.fromkeys(ORGANS, OrganSum(1, 1, 0.5, 1.0, 1.0))})
    with pytest.raises(ValueError):
        Result.from_metrics(good.to_metrics(ORGANS) | change, ORGANS)
    with pytest.raises(KeyError):
        Result.from_metrics({}, ORGANS)


def test_a_description_travels() -> None:
    full = Description(
        "a", "f", "h", (3, 2, 1), (3, 0), (1.5, 0.0), (9.0, 0.0), {"E_X": 2}, {"torch": "2.13"}
    )
    shy = Description("a", "f", "h", (3, 2, 1), (), (), (), {}, {})
    for description in (full, shy):
        config, metrics = description.to_records()
        config = through_flower(ConfigRecord, config)
        metrics = through_flower(MetricRecord, metrics)
        assert Description.from_records(config, metrics) == description


def test_every_reason_code_is_explained() -> None:
    assert {OK, NEED_BASE} < set(CODES)
    assert all(text for text in CODES.values())


def sums(n: int, dice: float = 0.5) -> OrganSum:
    return OrganSum(n, n, dice * n, 3.0 * n, 3.0 * n)


def test_a_site_empties_small_cells_itself() -> None:
    cells = {"X": sums(4, 0.123), "Y": sums(5), "Z": sums(0)}
    left = withhold(cells, 5)
    assert left == {"X": WITHHELD, "Y": cells["Y"], "Z": cells["Z"]}
    assert left["X"].dice == left["X"].hd95_mm == left["X"].penalised_mm == 0
    assert withhold(cells, 1) == cells


def test_published_figures_hide_small_cells_of_every_site() -> None:
    sites = {"a": {"X": sums(6, 0.8)}, "b": {"X": sums(2, 0.123456)}}
    cells, mean = published(sites, ["X"], 5)
    assert cells["a"]["X"]["dice"] == pytest.approx(0.8)
    assert cells["b"]["X"] == {
        "n": None,
        "missed": None,
        "dice": None,
        "hd95_mm": None,
        "hd95_mm_penalised": None,
        "suppressed": True,
    }
    assert mean["organs"]["X"]["n"] == 6
    assert mean["dice"] == pytest.approx(0.8)
    assert "0.1234" not in json.dumps([cells, mean])


def test_two_small_sites_are_pooled_where_together_they_are_enough() -> None:
    sites = {"a": {"X": sums(3, 0.9)}, "b": {"X": sums(3, 0.3)}}
    _, mean = published(sites, ["X"], 5)
    assert mean["dice"] == pytest.approx(0.6)
    assert mean["organs"]["X"]["n"] == 6


def test_withheld_cells_are_published_as_suppressed() -> None:
    cells, mean = published({"a": {"X": WITHHELD}}, ["X"], 5)
    assert cells["a"]["X"]["suppressed"] is True
    assert mean["dice"] is None


def test_a_site_that_tells_nothing_has_no_cells() -> None:
    cells, mean = published({"a": {}, "b": {"X": sums(5)}}, ["X"], 1)
    assert set(cells) == {"b"}
    assert mean["n"] == 5


@pytest.mark.parametrize(
    "change",
    [
        {"run": "/etc/cron.d/x"},
        {"run": "a/b"},
        {"run": ".."},
        {"run": 3},
        {"phase": "../../planted"},
        {"phase": "base"},
        {"base_hash": "../../../secret"},
        {"base_hash": "B" * 64},
        {"round": -1},
        {"round": True},
        {"round": 10**12},
        {"base_round": 1.5},
        {"best_round": "1"},
        {"task": "delete"},
        {"fingerprint": "a/b"},
        {"voxels": [float("nan")]},
        {"totals": [1.0] * 1000},
        {"organ_factors": "many"},
    ],
    ids=str,
)
def test_an_order_with_a_name_that_is_none_is_refused(change: dict[str, Any]) -> None:
    config = Order("r", "p", 1, "train", "b" * 64).to_config()
    with pytest.raises(UserError) as caught:
        Order.from_config(config | change)
    assert caught.value.field in change
    assert Order.from_config({"run": "r", "phase": "", "round": 0, "task": ""}).phase == ""


@pytest.mark.parametrize("change", [{"site": "a/b"}, {"run": ".."}, {"phase": "a\x1bb"}], ids=str)
def test_a_header_with_a_name_that_is_none_is_refused(change: dict[str, Any]) -> None:
    config = Header("a", "r", "p", 3).to_config()
    with pytest.raises(UserError):
        Header.from_config(config | change)
    assert Header.from_config(Header("", "", "", 0, "E_INTERNAL").to_config()).site == ""


@pytest.mark.parametrize(
    "change", [{"site": "../a"}, {"split_hash": "\x1b[2K"}, {"version.a/b": "1"}], ids=str
)
def test_a_description_with_a_name_that_is_none_is_refused(change: dict[str, Any]) -> None:
    config, metrics = Description("a", "f", "h", (3, 2, 1), (), (), (), {}, {}).to_records()
    with pytest.raises(UserError):
        Description.from_records(config | change, metrics)


@pytest.mark.parametrize(
    "told",
    [{"left_out.DOE": 1}, {f"left_out.E_{'A' * (i % 40)}{'B' * (i // 40)}": 1 for i in range(101)}],
    ids=("a word", "too many"),
)
def test_a_description_with_other_than_a_few_reason_codes_is_refused(told: dict[str, int]) -> None:
    config, metrics = Description("a", "f", "h", (3, 2, 1), (), (), (), {}, {}).to_records()
    with pytest.raises(ValueError, match="left_out"):
        Description.from_records(config, metrics | told)
