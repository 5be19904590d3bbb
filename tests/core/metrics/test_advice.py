"""What a site is advised to use: by validation alone, and never by what was withheld."""

from __future__ import annotations

from typing import Any

import pytest

from core.metrics.advice import advise, kind_of
from hnfed.report.advice import command_to_test, sentence, table

PLANNED: list[dict[str, Any]] = [
    {
        "name": "pre", "sites": ["a", "b"], "organs": ["X", "Y", "Z"], "share": "all",
        "init": "scratch",
    },
    {"name": "c-local", "init": "scratch", "freeze": "none"},
    {"name": "c-fine-tuned", "init": "pre", "freeze": "none"},
    {"name": "c-frozen", "init": "pre", "freeze": ["encoder"]},
]  # fmt: skip
for _own in PLANNED[1:]:
    _own |= {"sites": ["a"], "organs": ["X", "Y"], "share": "none", "local_epochs": 2}


def cell(dice: float | None, n: int = 20) -> dict[str, Any]:
    withheld: dict[str, Any] = {"suppressed": True} if dice is None else {}
    return {"n": None if dice is None else n, "dice": dice} | withheld


def block(name: str, test: float = 0.0, **dice: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "sites": {"a": {"val": {o: cell(d) for o, d in dice.items()}, "test": {"X": cell(test)}}},
    }


def events(name: str, seconds: float, rounds: int = 2) -> list[dict[str, Any]]:
    return [
        e | {"phase": name, "round": r}
        for r in range(1, rounds + 1)
        for e in (
            {"event": "accepted", "site": "a", "seconds_compute": seconds, "bytes": 5,
             "bytes_to_site": 7},
            {"event": "round", "accepted": ["a"]},
        )
    ]  # fmt: skip


def advice(**val: tuple[float | None, float | None]) -> dict[str, Any]:
    blocks = [
        block(n.replace("_", "-"), test=1 - (v[0] or 0), X=v[0], Y=v[1]) for n, v in val.items()
    ]
    told = events("c-local", 4.0) + events("c-fine-tuned", 3.0) + events("c-frozen", 2.0)
    found = advise(PLANNED, blocks, told)
    assert len(found) == 1
    return found[0]


def test_the_best_on_validation_is_chosen_whatever_test_says() -> None:
    entry = advice(pre=(0.5, 0.5), c_local=(0.4, 0.4), c_fine_tuned=(0.7, 0.6), c_frozen=(0.6, 0.6))
    assert (entry["choice"], entry["phase"], entry["second"]) == (
        "fine-tuned", "c-fine-tuned", "c-frozen",
    )  # fmt: skip
    assert entry["margin"] == pytest.approx(0.05)
    assert [o["kind"] for o in entry["options"]] == ["global", "local", "fine-tuned", "frozen"]
    assert [round(o["dice"], 3) for o in entry["options"]] == [0.5, 0.4, 0.65, 0.6]
    tuned = entry["options"][2]
    assert (tuned["epochs"], tuned["seconds"]) == (4, 6.0)
    assert (tuned["bytes_to_site"], tuned["bytes_from_site"]) == (14.0, 10.0)
    assert "0.050 better" in sentence(entry)
    command = command_to_test(entry, "runs/x")
    assert "--phase c-fine-tuned" in command
    assert "--site a" in command
    assert "--organs" not in command


def test_equal_scores_go_to_what_costs_less() -> None:
    entry = advice(c_local=(0.6, 0.6), c_fine_tuned=(0.6, 0.6), c_frozen=(0.6, 0.6))
    assert (entry["choice"], entry["second"]) == ("frozen", "c-fine-tuned")
    entry = advice(pre=(0.6, 0.6), c_local=(0.6, 0.6), c_frozen=(0.6, 0.6))
    assert entry["choice"] == "global"  # its cost is spent
    assert "cheaper" in sentence(entry)


def test_the_shared_model_is_tested_on_the_organs_of_the_choice_only() -> None:
    entry = advice(pre=(0.9, 0.9), c_local=(0.6, 0.6))
    assert entry["phase"] == "pre"
    assert command_to_test(entry, "r").endswith("--organs X Y")
    entry["organs"] = ["X", "$(id)"]  # the journal of a folder from elsewhere
    told = command_to_test(entry, "x$(id)")
    assert told.endswith("--organs X '$(id)'")
    assert "--model 'x$(id)' " in told


def test_an_organ_that_is_withheld_is_left_out_by_name() -> None:
    entry = advice(c_local=(0.6, None), c_frozen=(0.5, 0.99))
    assert entry["choice"] == "local"
    assert entry["left_out"] == {"Y": "withheld"}
    assert "Y (withheld)" in sentence(entry)


def test_nothing_published_means_no_choice_and_says_so() -> None:
    entry = advice(c_local=(None, None), c_frozen=(None, None))
    assert entry["choice"] is None
    assert "too few validation cases" in sentence(entry)
    assert "withheld" in table([entry], "r")


def test_few_cases_and_unfinished_phases_are_named() -> None:
    blocks = [block("c-local", X=0.5, Y=0.5), block("c-frozen", X=0.6, Y=0.6)]
    blocks[0]["sites"]["a"]["val"]["X"]["n"] = 3
    entry = advise(PLANNED, blocks, [])[0]
    words = sentence(entry)
    assert "3 validation cases" in words
    assert "c-fine-tuned" in words
    assert "not finished" in words


def test_one_model_is_no_choice() -> None:
    assert advise(PLANNED[:2], [block("pre"), block("c-local", X=0.5, Y=0.5)], [])[0]["options"]
    assert advise(PLANNED[1:2], [block("c-local", X=0.5, Y=0.5)], []) == []
    assert advise(PLANNED[:1], [block("pre", X=0.5)], []) == []


def test_kinds() -> None:
    assert [kind_of(p) for p in PLANNED] == ["global", "local", "fine-tuned", "frozen"]
    alone = {"sites": ["a"], "share": "all", "init": "scratch"}
    assert kind_of(alone) == "local"  # one site in a shared phase is that site alone
