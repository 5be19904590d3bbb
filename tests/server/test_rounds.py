from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from core.models.stages import head_rows
from core.plan.schema import Federation, Guards, Loss, Phase, Plan, Strategy, Weighting
from core.wire.checkpoint import load
from core.wire.partition import (
    network,
    parts_of,
    size_bytes,
    start_state,
    still_at,
    thaw_rounds,
)
from core.wire.state import packed, rounded
from server import rounds
from server.dispatch import AWAY_SECONDS, RunFailed, RunIncomplete, _wait, quorum_of
from server.exchange import Exchange, record_of
from server.record import Recorder
from tests.weights import weights_in

ORGANS = ["Brainstem", "Parotid_L"]
Make = Callable[..., Any]


def phase(name: str = "p", **changes: Any) -> Phase:
    return Phase(**({"name": name, "sites": ["a", "b"], "organs": ORGANS, "rounds": 2} | changes))


def personal(**changes: Any) -> Phase:
    return phase(**({"freeze": "encoder", "share": "none"} | changes))


def start(plan: Plan, index: int = 0) -> dict[str, Tensor]:
    return start_state(plan, plan.phases[index], None)


# --------------------------------------------------------------------------------- what comes out


def test_weights_are_averaged_by_cases_and_head_rows_by_annotating_cases(
    federate: Make, make_plan: Make
) -> None:
    plan = make_plan(phase(rounds=1))
    run = federate(plan, cases={"a": 3, "b": 1}, annotated={"a": [3, 0], "b": [1, 1]})
    run.run()
    before, after = start(plan), run.weights("last")
    heads = set(head_rows(network(plan, plan.phases[0])))
    assert heads
    assert set(after) == set(before)
    for name, tensor in before.items():
        change = after[name] - tensor
        if name not in heads:
            assert torch.allclose(change, torch.tensor((3 * 1.0 + 1 * 4.0) / 4), atol=1e-5), name
            continue
        rows = change.reshape(3, -1)
        assert torch.allclose(rows[0], torch.tensor(1.75), atol=1e-5)  # background: all cases
        assert torch.allclose(rows[1], torch.tensor(1.75), atol=1e-5)
        assert torch.allclose(rows[2], torch.tensor(4.0), atol=1e-5)  # b alone annotates it


def test_a_head_row_that_nobody_annotates_is_kept_and_journalled(
    federate: Make, make_plan: Make
) -> None:
    plan = make_plan(phase(rounds=1))
    run = federate(plan, annotated={"a": [3, 0], "b": [1, 0]})
    run.run()
    for name in head_rows(network(plan, plan.phases[0])):
        assert torch.equal(run.weights("last")[name][2], start(plan)[name][2])
        assert not torch.equal(run.weights("last")[name][1], start(plan)[name][1])
    assert "nobody annotates Parotid_L" in run.notes()


@pytest.mark.parametrize(("cases", "named"), [(97, True), (27, False)])
def test_a_site_with_nearly_all_of_the_weight_is_named(
    federate: Make, make_plan: Make, cases: int, named: bool
) -> None:
    run = federate(make_plan(phase(rounds=1)), cases={"a": 3, "b": cases})
    run.run()
    note = "round 1: b has 97.0% of the weight, by cases that it says"
    assert (note in run.notes()) == named


def test_without_counts_from_every_site_all_weigh_equally(
    federate: Make, make_plan: Make, act: Mapping[str, Any]
) -> None:
    plan = make_plan(phase(rounds=1))

    def silent(message: Message, reply: Message) -> Message:
        del reply.content["metrics"]["annotated"]
        return reply

    def withheld(message: Message, reply: Message) -> Message:
        reply.content["metrics"]["cases"] = [-1, -1, -1]
        del reply.content["metrics"]["voxels"], reply.content["metrics"]["totals"]
        return silent(message, reply)

    run = federate(plan, acts={("b", "query", 0): [withheld], ("b", "train", 1): [silent]})
    run.run()
    for name, tensor in start(plan).items():
        change = run.weights("last")[name] - tensor
        assert torch.allclose(change, torch.tensor(2.5), atol=1e-5)
    assert "all sites weigh equally" in run.notes()


def test_the_run_folder(federate: Make) -> None:
    run = federate()
    run.run()
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert (metrics["schema"], metrics["run"], metrics["status"]) == (1, "r", "completed")
    (block,) = metrics["phases"]
    assert (block["name"], block["rounds"], block["best_round"]) == ("p", 2, 2)
    cell = block["sites"]["a"]["test"]["Brainstem"]
    assert cell == {
        "n": 2,
        "missed": 0,
        "dice": pytest.approx(0.2),
        "hd95_mm": 2.0,
        "hd95_mm_penalised": 2.0,
    }
    assert block["mean"]["dice"] == pytest.approx(0.2)
    assert block["mean"]["organs"]["Brainstem"]["n"] == 4
    assert block["bytes_to_sites"] > block["bytes_from_sites"] > 0
    for stem in ("best", "last"):
        meta = json.loads((run.out / "checkpoints" / "p" / f"{stem}.json").read_text())
        assert meta["organs"] == ORGANS
        assert meta["round"] == 2
        assert meta["splits"] == {"a": "s", "b": "s"}
    (started,) = run.events("run-start")
    assert started["resumed"] is False
    (begun,) = run.events("phase-start")
    assert begun["parameters"] == sum(v.numel() for v in start(run.fakes.plan).values())
    assert begun["frozen"] == 0
    assert [e["round"] for e in run.events("round")] == [1, 2]
    assert [e["scored_round"] for e in run.events("round")] == [0, 1]
    assert run.events("phase-end")[0]["reason"] == "all rounds done"
    assert run.events("run-end")[0]["status"] == "completed"


def test_what_is_frozen_without_weights_of_before_is_noted(federate: Make, make_plan: Make) -> None:
    run = federate(make_plan(phase(rounds=1, freeze="encoder")))
    run.run()
    assert "what it freezes has random weights: init is scratch" in run.notes()
    later = federate(make_plan(phase(rounds=1), phase("q", rounds=1, init="p", freeze="encoder")))
    later.run()
    assert not [note for note in later.notes() if "random weights" in note]


def test_the_private_part_is_private(federate: Make) -> None:
    run = federate()
    run.run()
    assert (run.out / "state").stat().st_mode & 0o077 == 0


def test_the_chosen_best_is_scored_on_test_and_exported(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=3))
    dice = {(s, r): v for s in "ab" for r, v in enumerate([0.1, 0.6, 0.3, 0.2])}
    run = federate(plan, dice=dice)
    run.run()
    (block,) = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert block["best_round"] == 1
    assert block["mean"]["dice"] == pytest.approx(0.6)
    assert block["mean_val"]["dice"] == pytest.approx(0.6)
    for name, tensor in start(plan).items():
        if name not in head_rows(network(plan, plan.phases[0])):
            assert torch.allclose(run.weights("best")[name] - tensor, torch.tensor(1.75), atol=1e-4)
            assert torch.allclose(run.weights("last")[name] - tensor, torch.tensor(5.25), atol=1e-4)


def test_patience_counts_epochs_without_gain(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=20, local_epochs=2, patience=4))
    dice = {(s, r): 0.5 if r == 1 else 0.2 for s in "ab" for r in range(30)}
    run = federate(plan, dice=dice)
    run.run()
    assert [e["round"] for e in run.events("round")] == [1, 2, 3, 4]  # w3 was scored in round 4
    assert "patience" in run.events("phase-end")[0]["reason"]
    assert run.events("phase-end")[0]["best_round"] == 1


def test_suppressed_cells_are_published_nowhere(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(), min_cell=5)
    run = federate(plan, cases={"a": 7, "b": 2}, dice={("a", 0): 0.123456, ("a", 2): 0.123456})
    run.run()
    (block,) = json.loads((run.out / "metrics.json").read_text())["phases"]
    cell = block["sites"]["a"]["test"]["Brainstem"]
    assert cell["suppressed"] is True
    assert cell["n"] is None
    assert block["mean"]["dice"] is None
    public = [p for p in run.out.rglob("*") if p.is_file() and "state" not in p.parts]
    text = b"".join(p.read_bytes() for p in public if p.suffix in (".json", ".jsonl", ".csv"))
    assert b"0.123456" not in text
    assert b"0.246912" not in text
    described = {e["site"]: e for e in run.events("site-described")}
    assert described["a"]["cases"] == {"train": 7, "val": None, "test": None}
    assert described["b"]["organs"] == {"Brainstem": None, "Parotid_L": None}


# ------------------------------------------------------------------------------ wrong replies


def spoil(name_part: str = "") -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = sorted(state)[0]
        return state | {name: torch.full_like(state[name], float("nan"))}

    return change


WRONG: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "error": ("E_ERROR", lambda a: a["error"]()),
    "names": ("E_SCHEMA", lambda a: a["arrays"](lambda s: dict(sorted(s.items())[1:]))),
    "shapes": ("E_SCHEMA", lambda a: a["arrays"](lambda s: {k: v[None] for k, v in s.items()})),
    "dtype": ("E_SCHEMA", lambda a: a["arrays"](lambda s: {k: v.double() for k, v in s.items()})),
    "far": (
        "E_NORM",
        lambda a: a["arrays"](lambda s: {k: torch.full_like(v, 3.4e38) for k, v in s.items()}),
    ),
    "far in one": ("E_NORM", lambda a: a["arrays"](lambda s: s | {(n := max(s)): s[n] + 1e4})),
    "nan": ("E_NONFINITE", lambda a: a["arrays"](spoil())),
    "counts": ("E_COUNT", lambda a: a["metrics"](cases=10**6)),
    "stale": ("E_STALE", lambda a: a["header"](round=7)),
    "own code": ("E_MEMORY", lambda a: a["header"](code="E_MEMORY")),
    "no weights": ("E_SCHEMA", lambda a: a["drop"]("arrays")),
    "no header": ("E_SCHEMA", lambda a: a["drop"]("header")),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_reply_is_rejected_and_the_round_goes_on_with_the_other_site(
    federate: Make, make_plan: Make, act: Mapping[str, Any], kind: str
) -> None:
    code, wrong = WRONG[kind]
    plan = make_plan(phase(rounds=1), guards=Guards(max_cases=1000))
    run = federate(plan, acts={("b", "train", 1): [wrong(act)]})
    run.run()
    (event,) = run.events("round")
    assert event["accepted"] == ["a"]
    assert event["rejected"] == {"b": code}
    (rejected,) = run.events("rejected", round=1)
    assert (rejected["site"], rejected["code"]) == ("b", code)
    for name, tensor in start(plan).items():
        assert torch.allclose(run.weights("last")[name] - tensor, torch.tensor(1.0), atol=1e-5)
    assert "Jane" not in (run.out / "journal.jsonl").read_text()


def test_an_average_that_is_unusable_is_not_committed(
    federate: Make, make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes it so: the weights of before are kept and the run goes on."""
    plan = make_plan(phase(rounds=2))
    run = federate(plan)
    real, broken = rounds.aggregate, [True, False]

    def aggregate(*arguments: Any) -> Any:
        made = real(*arguments)
        if broken.pop(0):
            state = {name: tensor * float("inf") for name, tensor in made.state.items()}
            return replace(made, state=state)
        return made

    monkeypatch.setattr(rounds, "aggregate", aggregate)
    run.run()
    assert "round 1: the average of" in run.notes()
    for name, tensor in start(plan).items():
        step = run.weights("last")[name] - tensor
        assert 0 < float(step.min()) <= float(step.max()) < 5, "the second round's step alone"


def test_weights_where_none_may_travel_are_rejected(federate: Make, make_plan: Make) -> None:
    plan = make_plan(personal(rounds=1))

    def leaks(message: Message, reply: Message) -> Message:
        reply.content["arrays"] = ArrayRecord({"w": torch.ones(1)})
        return reply

    run = federate(plan, acts={("b", "train", 1): [leaks]})
    run.run()
    assert run.events("round")[0]["rejected"] == {"b": "E_SCHEMA"}
    assert run.events("rejected")[0]["detail"] == "weights where none may travel"


def test_too_few_sites_are_asked_again(
    federate: Make, make_plan: Make, act: Mapping[str, Any]
) -> None:
    plan = make_plan(phase(rounds=1), min_sites=2, round_retries=2)
    wrong = [act["error"](), act["error"]()]
    run = federate(plan, acts={("b", "train", 1): wrong})
    run.run()
    assert run.fakes.seen.count(("a", "train", 1)) == 3
    assert run.events("round")[0]["accepted"] == ["a", "b"]
    assert run.notes().count("asked again") == 2
    sent = sum(e["bytes"] for e in run.events("sent"))
    (block,) = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert block["bytes_to_sites"] > sent  # also those of the attempts that failed


def test_a_site_that_is_not_connected_is_given_time_to_come_back(
    federate: Make, make_plan: Make, act: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    plan = make_plan(phase(rounds=1), min_sites=2)
    run = federate(plan, acts={("b", "train", 1): [act["error"](5), act["error"](2)],
                               ("b", "test", 1): [act["error"](5)]})  # fmt: skip
    monkeypatch.setattr("server.dispatch.AWAY_SECONDS", 40.0)
    monkeypatch.setattr("server.dispatch.time.sleep", waited.append)
    run.run()
    assert [35 < seconds <= 40 for seconds in waited] == [True, True], "not after another error"
    assert [e["detail"] for e in run.events("rejected")][::2] == [
        "the site is not connected; Flower error 5"] * 2  # fmt: skip


def test_the_wait_begins_when_the_site_was_found_away(
    monkeypatch: pytest.MonkeyPatch, act: Mapping[str, Any], task_identity: None
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("server.dispatch.time.sleep", waited.append)
    order = Message(RecordDict(), dst_node_id=1, message_type="train")
    away = act["error"](5)(order, order)
    done = Exchange({"b": away}, seconds={"b": 90.0}, lasted=100.0)
    assert _wait(done, done.lasted) == AWAY_SECONDS - 10.0 == waited[0]
    assert _wait(Exchange({"b": away}, seconds={"b": 1.0}, lasted=100.0), 100.0) == 0.0
    assert _wait(Exchange(lasted=1.0), 1.0) == 0.0


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_too_few_sites_too_often_is_a_failed_run_that_can_be_resumed(
    federate: Make, make_plan: Make, act: Mapping[str, Any], bits: int
) -> None:
    plan = make_plan(phase(rounds=3), min_sites=2, round_retries=1, update_bits=bits)
    whole = federate(plan, "whole")
    whole.run()
    run = federate(plan, acts={("b", "train", 2): [act["error"](), act["error"]()]})
    with pytest.raises(RunFailed, match=r"(?s)b: E_ERROR.*--resume"):
        run.run()
    assert json.loads((run.out / "metrics.json").read_text())["status"] == "failed"
    assert run.events("run-end")[0]["status"] == "failed"
    assert [e["round"] for e in run.events("round")] == [1]
    run.fakes.seen.clear()
    run.run(resume=True)
    assert ("a", "train", 1) not in run.fakes.seen
    assert run.events("run-start")[1]["resumed"] is True
    assert json.loads((run.out / "metrics.json").read_text())["status"] == "completed"
    for stem in ("best", "last"):
        for name, tensor in whole.weights(stem).items():
            assert torch.equal(run.weights(stem)[name], tensor)


def lacking(run: Any) -> tuple[str, list[int]]:
    """Status of a run, and its committed rounds."""
    status = json.loads((run.out / "metrics.json").read_text())["status"]
    assert run.events("run-end")[-1]["status"] == status
    return status, [e["round"] for e in run.events("round")]


def test_a_simulated_site_may_miss_one_round_not_two(
    federate: Make, make_plan: Make, act: Mapping[str, Any]
) -> None:
    plan = make_plan(phase(rounds=5))

    def died(*rounds: int) -> dict[tuple[str, str, int], list[Any]]:
        return {("b", "train", r): [act["error"](0)] for r in rounds}

    run = federate(plan, "one", acts=died(2, 4))
    run.local = "{}"
    run.run()
    assert lacking(run) == ("completed", [1, 2, 3, 4, 5])
    assert [e["detail"] for e in run.events("rejected")] == [
        "the site's process died (memory?); Flower error 0"
    ] * 2
    run = federate(plan, "two", acts=died(2, 3))
    run.local = "{}"
    with pytest.raises(RunIncomplete, match=r"(?s)round 3.*b: E_ERROR.*memory.*--resume"):
        run.run()
    assert lacking(run) == ("incomplete", [1, 2])
    assert (run.out / "checkpoints" / "p" / "last.safetensors").is_file()
    run.run(resume=True)
    assert lacking(run) == ("completed", [1, 2, 3, 4, 5])


@pytest.mark.parametrize("patience", [50, 2])
def test_a_simulated_site_may_not_miss_the_last_round(
    federate: Make, make_plan: Make, act: Mapping[str, Any], patience: int
) -> None:
    """The last one is known as such only when it is through where patience ends the phase."""
    dice = {(s, r): 0.9 if r == 0 else 0.5 for s in "ab" for r in range(9)}
    rounds = 3 if patience == 50 else 9
    plan = make_plan(phase(rounds=rounds, patience=patience))
    whole = federate(plan, "whole", dice=dict(dice))
    whole.run()
    last = len(whole.events("round"))
    assert last == 3
    wrong = {("b", "train", last): [act["error"](0)]}
    run = federate(plan, dice=dict(dice), acts=wrong)
    run.local = "{}"
    with pytest.raises(RunIncomplete, match="last round"):
        run.run()
    assert lacking(run) == ("incomplete", [1, 2])
    run.run(resume=True)
    assert lacking(run) == ("completed", [1, 2, 3])
    for name, tensor in whole.weights("last").items():
        assert torch.equal(run.weights("last")[name], tensor)


@pytest.mark.parametrize("task", ["validate", "test"])
def test_a_simulation_is_scored_at_every_site(
    federate: Make, make_plan: Make, act: Mapping[str, Any], task: str
) -> None:
    plan = make_plan(phase(rounds=1), round_retries=1)
    wrong = {("b", task, 1): [act["error"](0), act["error"](0)]}
    run = federate(plan, acts=wrong)
    run.local = "{}"
    with pytest.raises(RunIncomplete, match=f"task {task}.*b: E_ERROR"):
        run.run()
    assert lacking(run) == ("incomplete", [1])
    run.run(resume=True)
    assert lacking(run)[0] == "completed"


def test_a_real_federation_goes_on_without_a_site(
    federate: Make, make_plan: Make, act: Mapping[str, Any]
) -> None:
    wrong = {("b", "train", r): [act["error"](0)] for r in (2, 3)}
    run = federate(make_plan(phase(rounds=3)), acts=wrong)
    run.run()
    assert lacking(run) == ("completed", [1, 2, 3])


def test_sites_that_never_came_fail_the_phase(federate: Make, make_plan: Make) -> None:
    run = federate(make_plan(phase(), min_sites=2), code="other-code")
    with pytest.raises(RunFailed, match="did not come"):
        run.run()
    assert {(e["site"], e["code"]) for e in run.events("rejected")} == {
        ("a", "E_CODE"),
        ("b", "E_CODE"),
    }


def test_a_crash_after_a_commit_loses_nothing(
    federate: Make, make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(phase(rounds=4))
    dice = {(s, r): [0.1, 0.5, 0.3, 0.2, 0.4][r] for s in "ab" for r in range(5)}
    whole = federate(plan, "whole", dice=dice)
    whole.run()
    run = federate(plan, dice=dice)
    say = Recorder.say

    def crash(self: Recorder, event: Mapping[str, Any]) -> None:
        if event["event"] == "sent" and event["round"] == 3:
            raise OSError("no space left on device")
        say(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "say", crash)
        with pytest.raises(OSError):
            run.run()
    run.run(resume=True)
    assert [e["round"] for e in run.events("round")] == [1, 2, 3, 4]
    for stem in ("best", "last"):
        for name, tensor in whole.weights(stem).items():
            assert torch.equal(run.weights(stem)[name], tensor)
    blocks = [json.loads((f.out / "metrics.json").read_text())["phases"] for f in (whole, run)]
    for block in (blocks[0][0], blocks[1][0]):
        del block["seconds"]
    assert blocks[0] == blocks[1]
    assert blocks[1][0]["best_round"] == 1


def test_a_finished_phase_is_taken_over(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=1), phase("q", rounds=1, init="p", freeze="encoder"))
    run = federate(plan)
    run.run()
    (run.out / "state" / "q.done.json").unlink()
    before = json.loads((run.out / "metrics.json").read_text())
    run.fakes.seen.clear()
    run.run(resume=True)
    after = json.loads((run.out / "metrics.json").read_text())
    assert after["phases"][0] == before["phases"][0]
    assert [b["name"] for b in after["phases"]] == ["p", "q"]
    assert all(task == "test" for _, task, _ in run.fakes.seen)


@pytest.mark.parametrize("task", ["validate", "test"])
def test_a_site_that_fails_to_score_is_asked_again(
    federate: Make, make_plan: Make, act: Mapping[str, Any], task: str
) -> None:
    run = federate(make_plan(phase(rounds=1)), acts={("b", task, 1): [act["error"]()]})
    run.run()
    assert run.fakes.seen.count(("a", task, 1)) == 1
    assert run.fakes.seen.count(("b", task, 1)) == 2
    (block,) = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert block["sites"]["b"]["test"]["Brainstem"]["n"] == 2


def test_a_phase_without_test_scores_is_not_done_and_can_be_resumed(
    federate: Make, make_plan: Make, act: Mapping[str, Any]
) -> None:
    plan = make_plan(phase(rounds=1), min_sites=2, round_retries=1)
    run = federate(plan, acts={("b", "test", 1): [act["error"](), act["error"]()]})
    with pytest.raises(RunFailed, match=r"(?s)task test.*b: E_ERROR.*--resume"):
        run.run()
    assert json.loads((run.out / "metrics.json").read_text())["phases"] == []
    run.run(resume=True)
    (block,) = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert block["sites"]["b"]["test"]["Brainstem"]["n"] == 2


def test_weights_name_the_splits_of_all_they_began_from(federate: Make, make_plan: Make) -> None:
    later = phase(name="q", sites=["a"], init="p", rounds=1)
    run = federate(make_plan(phase(rounds=1), later))
    run.run()
    meta = json.loads((run.out / "checkpoints" / "q" / "best.json").read_text())
    assert set(meta["splits"]) == {"a", "b"}


# ---------------------------------------------------------------------- what travels, and when


def test_the_base_travels_once_and_frozen_weights_do_not_change(
    federate: Make, make_plan: Make
) -> None:
    plan = make_plan(phase(rounds=3, freeze="encoder"))
    run = federate(plan)
    run.run()
    assert sorted(s for s, _ in run.fakes.pushed) == ["a", "b"]
    frozen = parts_of(network(plan, plan.phases[0]), plan, plan.phases[0]).frozen
    assert frozen
    for name, tensor in start(plan).items():
        same = torch.equal(run.weights("last")[name], tensor)
        assert same == (name in frozen)
    sent = {e["bytes"] for e in run.events("sent")}
    whole = sum(v.numel() * 4 for v in start(plan).values())
    assert len(sent) == 1
    assert sent.pop() < whole
    assert run.events("rejected") == []


def test_a_site_that_lost_its_base_gets_it_again(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=2, freeze="encoder"))
    run = federate(plan)

    def forget(message: Message, reply: Message) -> Message:
        run.fakes.bases["b"].clear()
        return reply

    run.fakes.acts[("b", "train", 1)] = [forget]
    run.run()
    assert sorted(s for s, _ in run.fakes.pushed) == ["a", "b", "b"]
    assert run.events("rejected") == []


def test_a_personal_phase_leaves_scores_only(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=1), personal(name="q", sites=["b"], init="p", rounds=3))
    run = federate(plan, dice={("b", 3): 0.7}, stop_after={"b": 2})
    run.run()
    assert sorted(p.name for p in (run.out / "checkpoints" / "q").iterdir()) == ["best.json"]
    block = json.loads((run.out / "metrics.json").read_text())["phases"][1]
    assert block["best_rounds"] == {"b": 2}
    assert block["rounds"] == 2  # the site itself stopped
    assert "patience" in run.events("phase-end", phase="q")[0]["reason"]
    assert {e["bytes"] for e in run.events("sent", phase="q")} == {0}
    assert run.fakes.pushed.count(("b", run.fakes.pushed[-1][1])) == 1
    meta = json.loads((run.out / "checkpoints" / "q" / "best.json").read_text())
    assert meta["round"] == 2
    assert set(meta["score"]) == {"b"}


def test_a_quorum_never_asks_for_more_sites_than_a_phase_has(
    federate: Make, make_plan: Make
) -> None:
    plan = make_plan(
        phase(rounds=1), personal(name="q", sites=["b"], init="p", rounds=1), min_sites=2
    )
    assert quorum_of(plan, plan.phases[0]) == 2
    assert quorum_of(plan, plan.phases[1]) == 1
    assert quorum_of(Plan(federation=Federation(min_sites=0)), phase()) == 1
    federate(plan).run()


def test_class_frequencies_travel_only_where_they_are_used(federate: Make, make_plan: Make) -> None:
    seen: list[tuple[str, Any]] = []

    def watch(message: Message, reply: Message) -> Message:
        order = dict(message.content["order"])
        seen.append((order["phase"], (order.get("voxels"), order.get("totals"))))
        return reply

    plan = make_plan(phase(rounds=1), personal(name="q", sites=["b"], init="p", rounds=1))
    plan = replace(plan, loss=Loss(class_weight="paper"))
    federate(plan, acts={("b", "train", 1): [watch, watch]}).run()
    assert seen == [("p", ([40.0, 40.0], [16384.0, 16384.0])), ("q", (None, None))]
    seen.clear()
    plan = replace(make_plan(phase(rounds=1)), loss=Loss(class_weight="none"))
    federate(plan, "none", acts={("b", "train", 1): [watch]}).run()
    assert seen == [("p", (None, None))]


def test_a_site_whose_cases_rule_the_class_weights_is_noted(
    federate: Make, make_plan: Make
) -> None:
    plan = replace(make_plan(phase(rounds=1)), loss=Loss(class_weight="paper"))
    for cases, noted in (({"a": 3, "b": 300}, True), ({"a": 3, "b": 4}, False)):
        run = federate(plan, "many" if noted else "few", cases=cases)
        run.run()
        assert ("class weights follow b, by the cases that it says it has" in run.notes()) is noted


def test_sites_that_tell_no_scores_run_all_rounds(federate: Make, make_plan: Make) -> None:
    run = federate(make_plan(phase(rounds=3, patience=1)), tells_scores=False)
    run.run()
    assert [e["round"] for e in run.events("round")] == [1, 2, 3]
    assert run.events("phase-end")[0]["best_round"] == 3
    assert run.notes().count("no site tells val scores") == 1
    (block,) = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert block["mean"]["dice"] is None
    assert block["sites"] == {"a": {"test": {}, "val": {}}, "b": {"test": {}, "val": {}}}


def test_sites_without_val_cases_run_all_rounds(federate: Make, make_plan: Make) -> None:
    run = federate(make_plan(phase(rounds=2, patience=1)), val_cases=0)
    run.run()
    assert run.events("phase-end")[0]["best_round"] == 2


def test_an_unfinished_temporary_file_is_no_round(federate: Make, tmp_path: Path) -> None:
    run = federate()
    run.run()
    folder = run.out / "state" / "p"
    (folder / "round-00009.safetensors").write_bytes(b"cut off")
    (run.out / "state" / "p.done.json").unlink()
    run.run(resume=True)
    assert json.loads((run.out / "metrics.json").read_text())["status"] == "completed"


# ----------------------------------------------------------- what stays in a phase that is shared


def test_kept_parts_never_travel_after_the_base(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=3, keep=["norm"]))
    run = federate(plan, dice={("a", 2): 0.9, ("b", 2): 0.9})
    run.run()
    parts = parts_of(network(plan, plan.phases[0]), plan, plan.phases[0])
    size = size_bytes(start(plan), parts.shared)
    assert parts.personal
    assert {e["bytes"] for e in run.events("sent")} == {size}
    assert sorted(p.name for p in (run.out / "checkpoints" / "p").iterdir()) == ["best.json"]
    block = json.loads((run.out / "metrics.json").read_text())["phases"][0]
    assert block["best_rounds"] == {"a": block["best_round"], "b": block["best_round"]}


def test_a_phase_after_one_with_kept_parts_begins_at_the_site(
    federate: Make, make_plan: Make
) -> None:
    plan = make_plan(
        phase(rounds=1, keep=["norm"]), personal(name="q", sites=["b"], init="p", rounds=1)
    )
    run = federate(plan)
    run.run()
    assert run.events("phase-end", phase="q")
    assert {e["bytes"] for e in run.events("sent", phase="q")} == {0}


def test_no_rounds_apply_what_was_learnt_elsewhere(federate: Make, make_plan: Make) -> None:
    learnt = phase(rounds=1, sites=["a"])
    applied = phase(name="q", sites=["b"], init="p", rounds=0)
    plan = make_plan(learnt, applied)
    run = federate(plan, dice={("b", 0): 0.4})
    run.run()
    blocks = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert (blocks[1]["rounds"], blocks[1]["best_round"]) == (0, 0)
    assert blocks[1]["mean"]["dice"] == pytest.approx(0.4)
    assert set(blocks[1]["sites"]) == {"b"}
    assert {e["kind"] for e in run.events("sent", phase="q")} == {"validate", "test"}
    before, _ = load(run.out / "checkpoints" / "p" / "best.safetensors")
    after, _ = load(run.out / "checkpoints" / "q" / "best.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_a_phase_that_is_not_tested_opens_no_test_case(federate: Make, make_plan: Make) -> None:
    """A site's own best is scored and written all the same; a shared phase has its val scores."""
    own = personal(name="q", sites=["b"], init="p", rounds=2, test=False)
    plan = make_plan(phase(rounds=1, test=False), own)
    run = federate(plan, dice={("b", 1): 0.9, ("b", 2): 0.2})
    run.run()
    assert not [order for order in run.fakes.seen if order[1] == "test"]
    assert [o for o in run.fakes.seen if o[1] == "finish"] == [("b", "finish", 2)]
    blocks = json.loads((run.out / "metrics.json").read_text())["phases"]
    assert [b["tested"] for b in blocks] == [False, False]
    assert [b["mean"]["dice"] for b in blocks] == [None, None]
    assert all(b["mean_val"]["dice"] is not None for b in blocks)
    assert [e.get("trainable") for e in run.events("round")] == [4863, 1623, None]


# ------------------------------------------------------------------------------------ in 16 bits


def test_organ_weights_of_few_cases_are_told_in_no_round(federate: Make, make_plan: Make) -> None:
    weighting = Weighting(by="dice")
    told = []
    for folder, cell in (("few", 3), ("enough", 2)):  # of a site; each has two
        plan = make_plan(phase(rounds=4, validate_every=2), min_cell=cell)
        run = federate(replace(plan, weighting=weighting), folder=folder)
        run.run()
        told.append([bool(event["weights"]["organs"]) for event in run.events("round")])
    assert told == [[False] * 4, [True] * 4]


def test_a_loss_of_few_cases_is_not_published(federate: Make, make_plan: Make) -> None:
    run = federate(make_plan(phase(rounds=2), min_cell=4))  # a trains on 3 cases, b on 1
    run.run()
    assert [event["loss"] for event in run.events("round")] == [{}, {}]
    one = federate(make_plan(phase(rounds=2), min_cell=3), folder="one")
    one.run()
    assert [event["loss"]["total"] for event in one.events("round")] == [1.0, 1.0]


def test_a_site_with_nearly_all_validation_cases_is_named(federate: Make, make_plan: Make) -> None:
    def without(message: Message, reply: Message) -> Message:
        metrics = reply.content["metrics"]
        for key in [k for k in metrics if k.startswith("val.")]:
            metrics[key] = [0.0] * len(metrics[key])
        return reply

    words, plan = "of the validation cases, whose scores choose", make_plan(phase(rounds=2))
    calm = federate(plan)
    calm.run()
    assert words not in calm.notes()
    run = federate(plan, folder="one", acts={("b", "train", 1): [without]})
    run.run()
    assert run.notes().count(f"a has 100.0% {words}") == 1


def test_what_is_frozen_until_later_gets_no_noise(federate: Make, make_plan: Make) -> None:
    thawing = phase(rounds=2, freeze="encoder", thaw={"encoder": 2})
    plan = make_plan(thawing, strategy=Strategy(name="dp", noise_multiplier=1.0, clip_norm=1.0))
    model = network(plan, thawing)
    still = still_at(thaw_rounds(model, plan, thawing), 1)
    assert still

    def honest(message: Message, reply: Message) -> Message:
        state = weights_in(reply.content["arrays"])
        came = weights_in(message.content["arrays"])
        reply.content["arrays"] = record_of(packed(state | {n: came[n] for n in still}))
        return reply

    run = federate(plan, acts={(s, "train", 1): [honest] for s in "ab"})
    run.run()
    first, second = run.fakes.came[0], run.fakes.came[2]
    assert all(torch.equal(first[n], second[n]) for n in still)
    assert not any(torch.equal(first[n], second[n]) for n in first.keys() - still)


def on_grid(state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(t, t.half().float()) for t in state.values())


def test_in_16_bits_sites_get_what_is_kept_and_sums_are_made_in_32(
    federate: Make, make_plan: Make
) -> None:
    wide = federate(make_plan(phase()), folder="wide")
    wide.run()
    plan = make_plan(phase(), update_bits=16)
    run = federate(plan, add={"a": 1e-3, "b": 4e-3})
    run.run()
    assert not on_grid(start(plan))  # what is drawn is rounded before the first order
    assert all(map(on_grid, run.fakes.came))
    assert on_grid(run.weights("last"))
    first = {n: t.half().float() for n, t in start(plan).items()}
    replies = [{n: (t + a).half().double() for n, t in first.items()} for a in (1e-3, 4e-3)]
    for name, tensor in run.fakes.came[2].items():  # of the second round
        mean = (3 * replies[0][name] + replies[1][name]) / 4
        assert torch.allclose(tensor.double(), mean, rtol=2**-11, atol=2**-24), name
    (told,), (before,) = run.events("phase-start"), wide.events("phase-start")
    assert told["shared_bytes"] * 2 == before["shared_bytes"]
    ours, theirs = (r.events("round", round=2)[0]["bytes_to_sites"] for r in (run, wide))
    assert ours < 0.9 * theirs  # of so small a network names and orders are a good part


def test_in_8_bits_what_rounding_takes_is_carried_on(federate: Make, make_plan: Make) -> None:
    plan = make_plan(phase(rounds=5), update_bits=8)
    adds = {"a": 3e-5, "b": 9e-5}  # far less than a step of the weights
    run, wide = federate(plan, add=adds), federate(make_plan(phase(rounds=5)), "wide", add=adds)
    run.run()
    wide.run()
    came = run.fakes.came[::2]  # of one site
    assert all(torch.equal(t, rounded(state, 8)[n]) for state in came for n, t in state.items())
    exact, sent = wide.weights("last"), run.weights("last")
    moved = off = 0.0
    for name, tensor in sent.items():
        step = float(tensor.abs().max()) / 127
        assert torch.allclose(tensor, exact[name], rtol=0, atol=0.6 * step + 1e-6), name
        moved += float((exact[name] - start(plan)[name]).sum())
        off += float((tensor - exact[name]).sum())
    assert abs(off) < 0.2 * abs(moved)  # in rounds by themselves nearly all of it would be lost
    for event in run.events("round"):  # of the mean, before it is rounded
        assert {round(m["cosine"], 2) for m in event["updates"].values()} == {1.0}
    (told,), (before,) = run.events("phase-start"), wide.events("phase-start")
    assert told["shared_bytes"] < 0.4 * before["shared_bytes"]


def test_a_reply_of_32_bits_in_a_run_of_16_is_refused(federate: Make, make_plan: Make) -> None:
    def widened(message: Message, reply: Message) -> Message:
        state = weights_in(reply.content["arrays"], 16)
        reply.content["arrays"] = record_of(packed(state))
        return reply

    plan = make_plan(phase(rounds=1), update_bits=16)
    run = federate(plan, acts={("b", "train", 1): [widened]})
    run.run()
    (told,) = run.events("rejected")
    assert (told["site"], told["code"]) == ("b", "E_SCHEMA")
