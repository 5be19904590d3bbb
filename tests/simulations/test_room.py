"""How many simulated sites run at a time, and on which GPUs: a step of the plan is taken first."""

from __future__ import annotations

import pytest

from core.errors import UserError
from core.plan.load import load
from core.plan.schema import Config, Plan
from simulations import room
from simulations.foresight import told_device
from simulations.launch import Clients
from simulations.memory_probe import Rehearsal

GB = 10**9


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "cpus", lambda: 16)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def config_of(*words: str) -> Config:
    return load("smoke", ["train.batch=2", "simulation.cpus_per_site=2", *words])[0]


def given(gpus: int, peak_gb: float, *words: str) -> tuple[Clients, list[str]]:
    """What 24 sites are given on GPUs of 10 GB, and which devices the step was tried on."""
    tried: list[str] = []

    def probe(plan: Plan, device: str) -> Rehearsal:
        tried.append(device)
        return Rehearsal(int(peak_gb * GB), 1.0, 10 * GB)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: gpus)
        config = config_of(*words)
        clients = room.room_for(config, 24, "", probe)
        assert told_device(config) == ("cuda" if gpus else config.simulation.device)
    return clients, tried


@pytest.mark.parametrize(
    ("gpus", "peak_gb", "words", "expected", "tried"),
    [
        (2, 3, (), (1.0, 2, "0,1"), "cuda:0"),
        (4, 3, ("simulation.device=cuda:1,3",), (2.0, 1, "1,3"), "cuda:1,3"),
        (4, 3, ("simulation.gpus_per_site=2",), (2.0, 2, "0,1,2,3"), "cuda:0,1"),
        (4, 3, ("simulation.device=cuda:2",), (1.0, 1, "2"), "cuda:2"),
        (1, 3, ("simulation.gpus_per_site=0.5",), (0.5, 2, "0"), "cuda:0"),
        (1, 3, ("simulation.gpus_per_site=0.1",), (0.5, 2, "0"), "cuda:0"),
        (2, 9, ("simulation.gpus_per_site=0.25",), (1.0, 2, "0,1"), "cuda:0"),
        (8, 1, ("simulation.gpus_per_site=0.25",), (0.25, 8, "0,1,2,3,4,5,6,7"), "cuda:0"),
    ],
)
def test_sites_on_gpus(
    gpus: int, peak_gb: float, words: tuple[str, ...], expected: tuple[float, int, str], tried: str
) -> None:
    clients, devices = given(gpus, peak_gb, *words)
    assert (clients.gpus, clients.side_by_side, clients.visible) == expected
    assert devices == [tried]
    assert (clients.sites, clients.cpus) == (24, 2)


def test_sites_of_several_processes_on_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    clients, tried = given(0, 0, "simulation.device=cpu:2", "simulation.cpus_per_site=1")
    assert (clients.cpus, clients.side_by_side, clients.gpus, clients.visible) == (2, 8, 0.0, "")
    assert tried == []


def test_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert given(2, 1, "simulation.device=cuda:1")[0].visible == "GPU-7"


def test_a_site_with_more_gpus_than_cases_in_a_batch() -> None:
    with pytest.raises(UserError, match=r"simulation.device: cuda:0,1$") as caught:
        given(3, 1, "simulation.device=cuda:0,1,2")
    assert caught.value.field == "train.batch"
