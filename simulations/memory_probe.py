"""One training step of a plan on made-up voxels: what memory and time it takes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from core.data.augment import augment
from core.errors import UserError
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import Phase, Plan
from core.training.engine import part_losses
from core.training.losses import LossWeights
from core.training.memory import to_device
from core.training.optimisation import (
    DeviceMemoryError,
    Proximal,
    device_settings,
    make_optimiser,
    make_scaler,
    memory_advice,
    take_step,
)
from core.training.ranks import Group, devices_of, require_batch, together
from core.wire.partition import network

PROGRAM = "from simulations.memory_probe import main; main()"
REMEDY = "set model.checkpointing=true, train.accumulate=train.batch, or a smaller preprocess.crop"


@dataclass(frozen=True)
class Rehearsal:
    """What one step took.

    Attributes:
        peak_bytes: of all processes (CPU), or of the tensors on the GPU that holds most.
        seconds: of the second step, the first one warms up.
        free_bytes: before it, on the GPU that had least; 0 on a CPU.
    """

    peak_bytes: int
    seconds: float
    free_bytes: int = 0


def rehearse(plan: Plan, device: str = "auto") -> Rehearsal:
    """Takes two training steps in processes of their own, nothing frozen, and measures them.

    Crop, batch, network, precision and optimiser are the plan's; the organs are those of its phase
    with the most of them. A frozen phase and validation take less.

    Args:
        plan: what is to be trained.
        device: as for `devices_of`; each process takes its share of the batch, as in training.

    Raises:
        UserError: the memory does not suffice, or the plan cannot be run on this device.
    """
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, device], env={**os.environ, "PYTHONPATH": paths},
        input=plan_json(plan), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return Rehearsal(**json.loads(done.stdout))
    if done.returncode == -signal.SIGKILL:
        problem = "the system ended the step, as it does when memory runs out"
        raise DeviceMemoryError("device memory", "exhausted", REMEDY, problem=problem)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        told = {"field": "device", "value": device, "remedy": REMEDY, "problem": last}
    raise UserError(**told)


def _steps(plan: Plan, device: str) -> Rehearsal:
    devices = devices_of(device)
    require_batch(plan.train.batch, devices)

    def first(group: Group) -> list[Rehearsal]:
        own = _own_steps(group, plan)
        return [own, *(group.receive(rank) for rank in range(1, group.size))]

    if len(devices) == 1:
        return _own_steps(Group(devices=devices), plan)
    parameters = list(network(plan, _largest(plan)).parameters())
    numbers = sum(p.numel() for p in parameters) + len(parameters) + 1
    found = together(first, (_beside, (plan,)), devices, numbers)
    peaks, seconds = [f.peak_bytes for f in found], max(f.seconds for f in found)
    if devices[0].type == "cpu":
        return Rehearsal(sum(peaks), seconds)
    return Rehearsal(max(peaks), seconds, min(f.free_bytes for f in found))


def _beside(group: Group, plan: Plan) -> None:
    group.send(_own_steps(group, plan))


def _largest(plan: Plan) -> Phase:
    return max(plan.phases, key=lambda p: len(p.organs))


def _own_steps(group: Group, plan: Plan) -> Rehearsal:
    target, phase = group.device, _largest(plan)
    organs, cases = len(phase.organs), len(group.share(range(plan.train.batch)))
    free = torch.cuda.mem_get_info(target)[0] if target.type == "cuda" else 0
    with device_settings(plan.train, target, plan.seed, group.size), memory_advice():
        model = to_device(network(plan, phase), target, plan.model.channels_last).train()
        scaler = make_scaler(plan.train, target)
        optimiser = make_optimiser(plan.train, list(model.parameters()))
        batch = {
            "image": torch.rand(cases, 1, *plan.preprocess.crop, device=target) * 2 - 1,
            "label": torch.zeros(cases, organs, *plan.preprocess.crop, device=target).byte(),
            "annotated": torch.ones(cases, organs, dtype=torch.bool, device=target),
        }
        seconds = 0.0
        for _ in range(2):
            started = time.perf_counter()
            losses = part_losses(model, batch, plan, LossWeights(), [], group)
            pull, norm = Proximal({}, None), plan.train.clip_norm
            take_step(losses, optimiser, scaler, pull, norm, group)
            seconds = time.perf_counter() - started
        if target.type == "cuda":
            taken = torch.cuda.max_memory_reserved(target) + _augmenting(batch, plan, target)
            return Rehearsal(taken, seconds, free)
    return Rehearsal(_peak_of_process(), seconds)


def _augmenting(batch: Mapping[str, Tensor], plan: Plan, device: torch.device) -> int:
    """Bytes of a GPU that the next sample takes while a step is computed: deformed, and waiting."""
    if not plan.augment.enabled or plan.augment.device != "site":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    always = replace(plan.augment, probability=1.0)
    augment(batch["image"][0], batch["label"][0], always, plan.preprocess.spacing_mm, plan.seed)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _peak_of_process() -> int:
    """Largest resident size so far (Linux: of this program alone, unlike `ru_maxrss`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main() -> None:
    """The process that takes the steps: a plan on standard input, the figures on its output."""
    try:
        found = asdict(_steps(plan_from_json(sys.stdin.read()), sys.argv[1]))
    except UserError as error:
        told = {"field": error.field, "value": str(error.value), "remedy": error.remedy}
        print(json.dumps(told | {"problem": error.problem}))
        sys.exit(1)
    print(json.dumps(found))
