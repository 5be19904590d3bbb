"""Several processes give the weights and scores of one, and none of them outlives its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data.cached_case import Entry
from core.errors import UserError
from core.models.stages import unique_state
from core.plan.schema import Loss, Plan
from core.training import engine, optimisation, ranks
from core.training.losses import LossWeights
from core.training.optimisation import NonFiniteError
from core.training.ranks import Group, devices_of, name_of, numbers_in, require_batch
from tests.core.training.conftest import ORGANS, model_of, plan_of

CORES = len(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(CORES < 2, reason="one core alone: no second process on it")
WEIGHTS = LossWeights([0.1, 0.6, 0.3], [1.0, 2.0], {"dice": 0.5})


@pytest.fixture(autouse=True, scope="module")
def _none_stays() -> Iterator[None]:
    yield
    ranks.end_others()


def trained(
    entries: list[Entry], plan: Plan, device: str, **options: Any
) -> tuple[dict[str, Tensor], engine.TrainResult, dict[str, Tensor]]:
    """Weights, figures and optimiser's memory after an epoch, from weights of a fixed seed."""
    model = model_of(plan)
    frozen = options.pop("frozen", "")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not (frozen and name.startswith(frozen))
    epochs = engine.Epochs(**{"first": 0, "count": 1, "seed": 7, "weights": WEIGHTS} | options)
    phase = replace(plan.phases[0], rounds=4)
    result, memory = engine.train(model, entries, plan, phase, device, epochs)
    return unique_state(model), result, memory


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


@pytest.mark.parametrize(
    ("cases", "train", "loss"),
    [
        pytest.param(5, {"batch": 3}, {}, id="the last batch has fewer cases"),
        pytest.param(4, {"batch": 3}, {}, id="the last batch has one case for two processes"),
        pytest.param(5, {"batch": 4, "accumulate": 2}, {}, id="in parts"),
        pytest.param(
            4, {"batch": 4, "accumulate": 4, "clip_norm": 0.1},
            {"form": "one_vs_rest", "gdice": 1.0, "focal": 1.0}, id="every term, clipped",
        ),
    ],
)  # fmt: skip
def test_an_epoch_equals_that_of_one_process(
    entries: list[Entry], cases: int, train: dict[str, Any], loss: dict[str, Any]
) -> None:
    """Partial labels (the second case lacks an organ), augmentation and weights of organs on."""
    plan = plan_of(augment=True, **{"lr": 2e-2, "optimizer": "sgd", **train})
    plan = replace(plan, loss=replace(Loss(dice=1.0), **loss))
    assert any(set(e.annotated) < set(ORGANS) for e in entries[:cases])
    one, alone, memory = trained(entries[:cases], plan, "cpu")
    two, shared, other = trained(entries[:cases], plan, "cpu:2")
    assert apart(one, unique_state(model_of(plan))) > 1e-4, "it trained"
    assert apart(one, two) <= 1e-5
    assert apart(memory, other) <= 1e-5
    assert (shared.steps, shared.skipped_nonfinite) == (alone.steps, 0)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-6)


def test_two_processes_take_the_steps_of_one_with_two_parts(entries: list[Entry]) -> None:
    """The same sums in the same order: AdamW, which enlarges any rounding, sees none either."""
    plan = plan_of(augment=True, batch=2)
    parts = replace(plan, train=replace(plan.train, accumulate=2))
    one, _, memory = trained(entries[:5], parts, "cpu")
    two, _, other = trained(entries[:5], plan, "cpu:2")
    assert apart(one, two) <= 1e-7
    assert apart(memory, other) <= 1e-7


def test_what_an_epoch_brings_along(entries: list[Entry]) -> None:
    """The optimiser's memory, the pull to the weights that came in, and frozen parts."""
    plan = plan_of(batch=2, accumulate=2)
    start = {n: p.detach() + 0.1 for n, p in model_of(plan).named_parameters()}
    _, _, memory = trained(entries[:2], plan, "cpu", frozen="down.0")
    given = {"first": 1, "frozen": "down.0", "proximal": (0.5, start)}
    one, alone, _ = trained(entries[:3], plan, "cpu", optimiser_state=copy(memory), **given)
    two, shared, _ = trained(entries[:3], plan, "cpu:2", optimiser_state=copy(memory), **given)
    assert apart(one, two) <= 1e-7
    assert apart(one, trained(entries[:3], plan, "cpu", **given)[0]) > 1e-4, "the memory counts"
    assert alone.loss["proximal"] > 0
    assert shared.loss == pytest.approx(alone.loss, rel=1e-6)
    before = unique_state(model_of(plan))
    kept = {n for n in before if n.startswith("down.0")}
    assert kept
    assert all(torch.equal(two[n], before[n]) for n in kept)


def copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_what_is_frozen_is_not_summed(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    summed: list[int] = []

    def board(path: Path, rows: int, count: int) -> Tensor:
        numbers.append(count)
        return real_board(path, rows, count)

    def total(group: Group, tensors: list[Tensor]) -> None:
        summed.append(sum(t.numel() for t in tensors))
        real_sum(group, tensors)

    real_board, real_sum = ranks._board, Group.sum
    monkeypatch.setattr(ranks, "_board", board)
    monkeypatch.setattr(Group, "sum", total)
    trained(entries[:2], plan_of(batch=2), "cpu:2", frozen=("down", "up"))
    head = [
        p for n, p in model_of(plan_of()).named_parameters() if not n.startswith(("down", "up"))
    ]
    most = sum(p.numel() for p in head) + len(head) + 1
    assert numbers == [most]
    assert max(summed) == most


@pytest.mark.parametrize("cases", [1, 5])
def test_scores_equal_to_the_digit(entries: list[Entry], cases: int) -> None:
    plan = plan_of()
    model, drawn = model_of(plan), []
    for device in ("cpu", "cpu:2"):
        maps: list[tuple[str, bytes]] = []
        scores = engine.validate(
            model, entries[:cases], plan, plan.phases[0], device,
            lambda entry, labelmap, maps=maps: maps.append((entry.case, labelmap.tobytes())),
        )  # fmt: skip
        drawn.append((scores, maps))
    assert drawn[0] == drawn[1]
    assert len(drawn[0][1]) == cases


def test_a_step_that_is_not_finite_in_one_process_is_taken_by_none(
    entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first case of each batch is this process's; the others are the other's."""
    plan, real = plan_of(batch=2), engine.segmentation_loss
    steps: list[int] = []

    def infinite(logits: Tensor, *given: Any) -> Any:
        steps.append(len(steps))
        terms = real(logits, *given)
        return replace(terms, total=terms.total * torch.inf) if len(steps) == 1 else terms

    monkeypatch.setattr(engine, "segmentation_loss", infinite)
    _, result, _ = trained(entries[:4], plan, "cpu:2")
    assert (result.steps, result.skipped_nonfinite) == (1, 1)


def test_an_error_of_either_process_ends_both(
    entries: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's comes out here with its own words; the next call begins afresh."""
    broken = replace(entries[1], folder=tmp_path / "absent")
    plan = plan_of()
    with pytest.raises(UserError, match="prepare the archive again"):
        engine.validate(model_of(plan), [entries[0], broken], plan, plan.phases[0], "cpu:2")
    assert ranks._waiting == []
    assert engine.validate(model_of(plan), entries[:2], plan, plan.phases[0], "cpu:2")
    monkeypatch.setattr(engine, "LARGEST_LOSS", 0.0)  # in this process, not in the other
    with pytest.raises(NonFiniteError):
        trained(entries[:2], plan_of(batch=2), "cpu:2")
    assert ranks._waiting == []


def test_one_that_is_killed_ends_the_call_and_all_others(entries: list[Entry]) -> None:
    plan = plan_of(batch=2)
    model = model_of(plan)
    engine.validate(model, entries[:2], plan, plan.phases[0], "cpu:2")
    (link,) = ranks._waiting
    assert link.process is not None
    pid = link.process.pid

    def kill(entry: Entry, labelmap: Any) -> None:
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(UserError, match="process 1 of 0 to 1 was killed") as caught:
        engine.validate(model, entries[:6], plan, plan.phases[0], "cpu:2", kill)
    assert caught.value.field == "device"
    assert not Path(f"/proc/{pid}").exists()
    assert ranks._waiting == []


def test_one_that_died_as_it_waited_is_replaced(entries: list[Entry]) -> None:
    plan = plan_of(batch=2)
    trained(entries[:2], plan, "cpu:2")
    (link,) = ranks._waiting
    assert link.process is not None
    link.process.kill()
    link.process.wait()
    assert trained(entries[:2], plan, "cpu:2")[1].steps == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_none_outlives_the_one_that_asked(tmp_path: Path, number: int) -> None:
    """Ctrl-C comes to all of them, as from a terminal; rank 0 tells them to end."""
    program = (
        "import signal, time; from core.training import ranks\n"
        "import torch\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored below `nohup`
        "def mine(group):\n"
        "    print(ranks._waiting[0].process.pid, flush=True); time.sleep(600)\n"
        "ranks.together(mine, (time.sleep, ()), ranks.devices_of('cpu:2'), 1)\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        pid = int(process.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        process.wait(30)
    finally:
        process.kill()
        process.stdout.close()
    limit = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert list(tmp_path.iterdir()) == [], "nor does a file stay"


def test_a_sum_is_the_same_in_every_process() -> None:
    rows = torch.rand(3, 7)
    board = torch.zeros(4, 7)
    board[:3] = rows

    class Here(Group):
        def meet(self) -> None:
            """The others have written already, and each adds up its part."""

    parts = []
    for rank in range(3):
        tensors = [
            rows[rank, :2].clone(),
            rows[rank, 2:6].clone().view(2, 2),
            rows[rank, 6].clone(),
        ]
        Here(rank, (torch.device("cpu"),) * 3, (), board).sum(tensors)
        parts.append(board[3].clone())
    assert torch.equal(parts[-1], rows.sum(dim=0))


def test_gradients_that_nobody_has_stay_absent() -> None:
    class Two(Group):
        def sum(self, tensors: Any) -> None:
            for tensor in tensors:
                tensor.mul_(2)

    group = Two(0, (torch.device("cpu"),) * 2)
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    parameters[0].grad = torch.ones(2)
    assert ranks.sum_gradients(group, parameters, True)
    assert torch.equal(parameters[0].grad, torch.full((2,), 2.0))
    assert parameters[1].grad is None
    assert not ranks.sum_gradients(group, parameters, False)
    assert not ranks.sum_gradients(ranks.ALONE, parameters, False)


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for threads, processes, expected in ((6, 2, 3), (1, 2, 1), (0, 4, max(1, before // 4))):
        with optimisation.device_settings(
            plan_of(threads=threads).train, torch.device("cpu"), 0, processes
        ):
            assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == before


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("auto", "cuda:0,1"), ("cuda", "cuda:0,1"), ("cuda:1", "cuda:1"), ("cuda:1,0", "cuda:1,0"),
        ("cpu", "cpu"), ("cpu:1", "cpu"), ("cpu:2", "cpu:2"),
    ],
)  # fmt: skip
def test_devices(device: str, name: str) -> None:
    assert name_of(devices_of(device)) == name


def test_auto_without_a_gpu_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_of("auto") == (torch.device("cpu"),)
    with pytest.raises(UserError, match="shows 0 CUDA devices") as caught:
        devices_of("cuda")
    assert caught.value.remedy == "use auto or cpu"


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:2", "shows 2 CUDA devices"), ("cuda:0,7", "name GPUs from 0 to 1"),
        ("cuda:0,0", "named twice"), ("cuda:-1", "write auto"), ("cuda:", "write auto"),
        ("cuda:0,", "write auto"), ("cuda:²", "write auto"), ("cuda:99999", "write auto"),
        ("cpu:0", "at least 1 process"), ("cpu:-2", "write auto"), ("cpu:1,2", "write auto"),
        (f"cpu:{CORES + 1}", f"{CORES} cores can be used here"), ("auto:1", "write auto"),
        ("tpu", "write auto"), ("", "write auto"),
    ],
)  # fmt: skip
def test_devices_that_are_refused(device: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        devices_of(device)
    assert (caught.value.field, caught.value.value) == ("device", device)
    assert caught.value.remedy


def test_a_batch_has_a_case_for_each_process(entries: list[Entry]) -> None:
    require_batch(2, devices_of("cpu:2"))
    with pytest.raises(UserError, match=r"train.batch to 2, or write device: cpu$") as caught:
        trained(entries[:2], plan_of(batch=1), "cpu:2")
    assert (caught.value.field, caught.value.value) == ("train.batch", 1)
    assert numbers_in("cpu:2") == (2,)
