"""What a CPU-hour of training buys: Dice of our network and recipe beside MONAI's, from real CTs.

python -m benchmarks.quality --archive DIR [DIR ...] --out DIR
    [--networks ours ours-whole unet dynunet dynunet-sgd] [--minutes 15 30 60] [--seed N]
    [--amp off|bf16|auto] [--lr LR] [--cases N] [--validate] [--config PLAN] [--set KEY=VALUE ...]

Each network trains alone, with one thread, until its CPU minutes are spent (ours to half an epoch
where all take as long, and at least one), data and augmentation included, preparing and scoring
not; its learning rate falls to about zero over that time, which is to be of several epochs. 24
patients with all four organs, the same whatever the seed, do not train. All are scored alike, on
each CT's own grid and without averaging over mirrored crops; the plan's own validation and test
patients may be among them. `ours` is the plan (`openkbp`) trained as one site: it mirrors, and
takes the cases that lack an organ as well, which `ours-whole` leaves out as the others must. `unet`
is MONAI's UNet with two residual units, DiceCE and Adam, as its tutorials have it but for instance
norm and the learning rate; `dynunet` its DynUNet with the same and the loss at three depths, and
`dynunet-sgd` that with nnU-Net's SGD and Nesterov's momentum, which wants more steps. All three
have the transforms of `benchmarks.naive_recipe`. `--validate` scores eight of the training cases
instead, which then do not train: a learning rate is chosen on these. `--cases` trains on so many,
drawn by a fixed seed, smaller draws within larger ones: a learning curve over cases. `--set`
changes the plan, as in `preprocess.crop=[136,56,56]`, whose grid is that of all networks. Each cell
is written to OUT as it ends, and is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import report, row
from benchmarks.naive_recipe import naive_samples, prepared, weights_of
from core.data.cache import Recipe
from core.data.cached_case import Entry
from core.plan.load import load, plan_json
from core.plan.ranges import MAX_EPOCHS
from core.plan.schema import Phase, Plan
from core.training.engine import Epochs, train, validate
from core.training.optimisation import autocast, device_settings, learning_rate, precision
from core.wire.partition import network

SCORED, VALIDATED = 24, 8  # patients
# ours: the plan's
LR = {"ours": None, "ours-whole": None, "unet": 3e-3, "dynunet": 3e-3, "dynunet-sgd": 1e-2}
LEAST_DICE = -0.01
CPU = torch.device("cpu")
# Trains a network on cases for so many CPU seconds, and returns its epochs.
Train = Callable[[nn.Module, Sequence[Entry], float], float]


def divided(entries: Sequence[Entry], organs: Sequence[str], validate_: bool) -> tuple[Any, Any]:
    """Cases that train, and those that are scored."""
    known = sorted((e for e in entries if e.annotated & set(organs)), key=lambda e: e.case)
    whole = [e for e in known if e.annotated >= set(organs)]
    order = np.random.default_rng(0).permutation(len(whole))
    kept = [whole[i].case for i in order]
    aside = kept[:SCORED] + (kept[SCORED : SCORED + VALIDATED] if validate_ else [])
    scored = aside[SCORED:] if validate_ else aside
    return (
        [e for e in known if e.case not in aside],
        [e for e in known if e.case in scored],
    )


def our_training(plan: Plan, phase: Phase, seed: int) -> tuple[nn.Module, Train]:
    """The plan's network, and its training: how many epochs there will be is told after each."""

    def run(model: nn.Module, entries: Sequence[Entry], seconds: float) -> float:
        begun, epoch, total = time.process_time(), 0, MAX_EPOCHS
        state: Mapping[str, Tensor] | None = None
        while epoch < total:
            whole = replace(phase, rounds=total, local_epochs=1)
            weights = weights_of(plan, whole, entries, epoch)
            span = Epochs(epoch, 1, seed=seed, weights=weights, optimiser_state=state)
            _, state = train(model, entries, plan, whole, CPU, span)
            epoch += 1
            spent = time.process_time() - begun
            if epoch < total - 1:  # the last one was promised to the learning rate
                total = epoch + max(round((seconds - spent) / (spent / epoch)), 0)
        return epoch

    return network(plan, phase), run


def monai_network(name: str, classes: int) -> nn.Module:
    """MONAI's network as its tutorials and nnU-Net set it up, for these crops."""
    if name == "unet":
        from monai.networks.nets.unet import UNet

        widths, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
        return UNet(3, 1, classes, widths, strides, num_res_units=2)
    from monai.networks.nets.dynunet import DynUNet

    steps = [1, 2, 2, 2]
    return DynUNet(3, 1, classes, [3] * 4, steps, steps[1:], deep_supervision=True, deep_supr_num=2)


def deeply(loss_of: Callable[[Tensor, Tensor], Tensor], said: Tensor, label: Tensor) -> Tensor:
    """The loss of one output, or of (B, heads, C, ...): each head counts half of the one before."""
    if said.ndim == 5:
        return loss_of(said, label)
    heads = said.unbind(1)
    parts = [loss_of(head, label) * 0.5**i for i, head in enumerate(heads)]
    return torch.stack(parts).sum() / sum(0.5**i for i in range(len(heads)))


def monai_training(name: str, plan: Plan, phase: Phase, lr: float) -> tuple[nn.Module, Train]:
    """One of MONAI's networks, and its usual training."""
    from monai.data.dataloader import DataLoader
    from monai.losses.dice import DiceCELoss
    from monai.utils.misc import set_determinism

    settings = replace(plan.train, lr=lr)

    def run(model: nn.Module, entries: Sequence[Entry], seconds: float) -> float:
        with device_settings(settings, CPU, plan.seed):
            set_determinism(plan.seed)  # of MONAI's transforms
            torch.use_deterministic_algorithms(False)
            return taught(model, entries, seconds)

    def taught(model: nn.Module, entries: Sequence[Entry], seconds: float) -> float:
        data = naive_samples(entries, phase.organs, plan.preprocess)
        loader = DataLoader(data, batch_size=1, shuffle=True)
        parameters = model.parameters()
        if name != "dynunet-sgd":
            optimiser: Any = torch.optim.Adam(parameters, lr, weight_decay=1e-5)
        else:
            optimiser = torch.optim.SGD(parameters, lr, 0.99, weight_decay=3e-5, nesterov=True)
        loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
        model.train()
        begun, steps, part = time.process_time(), 0, 0.0
        while part < 1:
            for batch in loader:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(settings, part, 1)
                optimiser.zero_grad()
                with autocast(settings, CPU):
                    said = model(batch["image"].as_tensor())
                loss: Any = deeply(loss_of, said.float(), batch["label"].as_tensor().long())
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 12.0)
                optimiser.step()
                steps += 1
                part = (time.process_time() - begun) / seconds
                if part >= 1:
                    break
        return steps / len(entries)

    return monai_network(name, 1 + len(phase.organs)), run


def plan_of(options: Namespace) -> Plan:
    """The plan of ours, and the grid of all."""
    plan: Plan = load(options.config, [*options.set, f"seed={options.seed}"])[0]
    first = plan.phases[0]
    lr = options.lr or first.lr or plan.train.lr
    # A warm-up would be epochs of ours, and a share of the time of the others.
    settings = replace(plan.train, threads=1, amp=options.amp, lr=lr, warmup_epochs=0.0)
    first = replace(first, lr=None, validate_hd95=False, average_mirrored=False)
    return replace(plan, train=settings, phases=[first])


def one(options: Namespace, name: str, minutes: float) -> dict[str, Any]:
    """Trains one network for its CPU minutes; Dice by organ of each scored patient."""
    plan = plan_of(options)
    phase = plan.phases[0]
    lr = options.lr or LR[name] or plan.train.lr
    recipe = Recipe(tuple(phase.organs), plan.preprocess)
    found = prepared(options.archive, options.out / "cache", recipe)
    trained, scored = divided(found, phase.organs, options.validate)
    if name != "ours":
        trained = [e for e in trained if e.annotated >= set(phase.organs)]
    if options.cases:
        order = np.random.default_rng(1).permutation(len(trained))
        trained = [trained[i] for i in sorted(order[: options.cases])]
    torch.manual_seed(options.seed)
    if name.startswith("ours"):
        model, run = our_training(plan, phase, options.seed)
    else:
        model, run = monai_training(name, plan, phase, lr)
    begun = time.process_time()
    epochs = run(model, trained, 60 * minutes)
    spent = time.process_time() - begun
    dice: dict[str, dict[str, float]] = {e.case: {} for e in scored}
    for score in validate(model, scored, plan, phase, CPU):
        dice[score.case][score.organ] = score.dice
    return {
        "network": name,
        "minutes": minutes,
        "seed": options.seed,
        "set": options.set,
        "lr": lr,
        "precision": str(precision(plan.train, CPU) or torch.float32).removeprefix("torch."),
        "cases": len(trained),
        "epochs": epochs,
        "cpu_minutes": spent / 60,
        "dice": list(dice.values()),
    }


def cell_path(options: Namespace, name: str, minutes: float) -> Path:
    """Where a cell is written."""
    plan = plan_of(options)
    lr = options.lr or LR[name] or plan.train.lr
    kind = f"-cases{options.cases}" if options.cases else ""
    kind += "-validation" if options.validate else ""
    known = [plan_json(plan), *(str(root.resolve()) for root in options.archive)]
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()[:6]
    stem = f"{name}-{minutes:g}-seed{options.seed}-lr{lr:g}{kind}-{digest}"
    return Path(options.out / f"{stem}.json")


def measured(options: Namespace) -> Iterator[dict[str, Any]]:
    """Runs the cells that are not there yet, each in a process of its own; yields the rows."""
    words = sys.argv[1:]
    for minutes in options.minutes:
        cells: dict[str, Mapping[str, Any]] = {}
        for name in options.networks:
            path = cell_path(options, name, minutes)
            if not path.exists():
                command = [sys.executable, "-m", "benchmarks.quality", *words]
                command += ["--one", name, "--minutes", str(minutes)]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                beside = path.with_suffix(".part")
                beside.write_bytes(told.splitlines()[-1])
                beside.replace(path)
            cells[name] = json.loads(path.read_text())
        yield from compared(minutes, cells)


def compared(minutes: float, cells: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of one budget: mean Dice of each, and ours beside the others, paired by patient."""
    from hnfed.evaluate.statistics import paired

    tables = {k: [list(case.values()) for case in cell["dice"]] for k, cell in cells.items()}
    for name, cell in cells.items():
        mean = math.fsum(np.ravel(tables[name])) / np.size(tables[name])
        about = (
            f"{cell['cpu_minutes']:.1f} CPU min, {cell['epochs']:.1f} epochs of {cell['cases']} "
            f"cases, lr {cell['lr']:g}, {cell['precision']}"
        )
        yield row(f"{name}, {minutes:g} CPU minutes: Dice", mean, "", about)
    for name in (k for k in cells if k != "ours" and "ours" in cells):
        more = paired(np.array(tables["ours"]), np.array(tables[name]))
        assert more.value is not None
        assert more.low is not None
        about = f"{more.patients} patients, 95 % interval {more.low:.4f} to {more.high:.4f}"
        title = f"ours - {name}, {minutes:g} CPU minutes"
        target = None if name == "ours-whole" else LEAST_DICE  # the ratio is the interval's low end
        yield row(title, more.value, "", about, more.low, target)


def main() -> int:
    """Prints the rows; 1 where another network may have 0.01 more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of cells and cases")
    parser.add_argument("--networks", nargs="+", choices=tuple(LR), default=list(LR))
    parser.add_argument("--minutes", type=float, nargs="+", default=[15, 30, 60])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", default="auto", choices=("off", "bf16", "auto"), help="of all")
    parser.add_argument("--lr", type=float, help="instead of the networks' own")
    parser.add_argument("--cases", type=int, help="train on so many")
    parser.add_argument("--validate", action="store_true", help="score eight training cases")
    parser.add_argument("--config", default="openkbp", help="plan of ours, and the grid of all")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the plan")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=tuple(LR), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        print(json.dumps(one(options, options.one, options.minutes[0])))
        return 0
    return report(list(measured(options)), options.json)


if __name__ == "__main__":
    raise SystemExit(main())
