"""One training step of a plan on made-up voxels: what memory and time it takes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from core.errors import UserError
from core.plan.load import plan_from_json, plan_json
from core.plan.schema import Plan
from core.training.engine import part_losses
from core.training.losses import LossWeights
from core.training.optimisation import (
    DeviceMemoryError,
    Proximal,
    device_settings,
    make_optimiser,
    make_scaler,
    memory_advice,
    resolve_device,
    take_step,
    to_device,
)
from core.wire.partition import network

REMEDY = "set model.checkpointing=true, train.accumulate=train.batch, or a smaller preprocess.crop"


@dataclass(frozen=True)
class Rehearsal:
    """What one step took.

    Attributes:
        peak_bytes: of the process (CPU), or of the tensors on the GPU.
        seconds: of the second step, the first one warms up.
    """

    peak_bytes: int
    seconds: float


def rehearse(plan: Plan, device: str = "auto") -> Rehearsal:
    """Takes two training steps in a process of their own, nothing frozen, and measures them.

    Crop, batch, network, precision and optimiser are the plan's; the organs are those of its phase
    with the most of them. A frozen phase and validation take less.

    Args:
        plan: what is to be trained.
        device: ``auto | cpu | cuda:N``.

    Raises:
        UserError: the memory does not suffice, or the plan cannot be run on this device.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, device], env={**os.environ, "PYTHONPATH": paths},
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
    target = resolve_device(device)
    phase = max(plan.phases, key=lambda p: len(p.organs))
    organs, cases = len(phase.organs), plan.train.batch
    with device_settings(plan.train, target, plan.seed), memory_advice():
        model = to_device(network(plan, phase), target, plan.model.channels_last).train()
        scaler = make_scaler(plan.train, target)
        optimiser = make_optimiser(plan.train, list(model.parameters()))
        batch = {
            "image": torch.rand(cases, 1, *plan.preprocess.crop, device=target) * 2 - 1,
            "label": torch.randint(organs + 1, (cases, *plan.preprocess.crop), device=target),
            "annotated": torch.ones(cases, organs, dtype=torch.bool, device=target),
        }
        seconds = 0.0
        for _ in range(2):
            started = time.perf_counter()
            losses = part_losses(model, batch, plan, LossWeights(), [])
            take_step(losses, optimiser, scaler, Proximal({}, None), plan.train.clip_norm)
            seconds = time.perf_counter() - started
    if target.type == "cuda":
        return Rehearsal(torch.cuda.max_memory_reserved(target), seconds)
    return Rehearsal(_peak_of_process(), seconds)


def _peak_of_process() -> int:
    """Largest resident size so far (Linux: of this program alone, unlike `ru_maxrss`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _main(device: str) -> int:
    try:
        print(json.dumps(asdict(_steps(plan_from_json(sys.stdin.read()), device))))
    except UserError as error:
        told = {"field": error.field, "value": str(error.value), "remedy": error.remedy}
        print(json.dumps(told | {"problem": error.problem}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
