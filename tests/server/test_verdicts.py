from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from safetensors import SafetensorError

from core.plan.schema import Guards, Phase
from core.wire.messages import Header, Result
from core.wire.state import packed
from server.verdicts import Verdicts, on_disk

pytestmark = pytest.mark.usefixtures("task_identity")


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
    verdicts = Verdicts(asked, phase, {}, Guards(), {"a": (1, 1, 1), "b": (1, 1, 1)}, tmp_path)
    for site, told in (("a", "a"), ("b", "a")):
        content = {
            "header": ConfigRecord(replace(asked, site=told).to_config()),
            "metrics": MetricRecord(Result().to_metrics(phase.organs)),
        }
        order = Message(RecordDict(), dst_node_id=1, message_type="train")  # type: ignore[arg-type]
        verdicts(site, Message(RecordDict(content), reply_to=order))
    codes = {s: getattr(verdicts.of(s), "code", "OK") for s in ("a", "b", "c")}
    assert codes == {"a": "OK", "b": "E_STALE", "c": "E_LOST"}
