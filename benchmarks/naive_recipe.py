"""Training as it is usually written beside ours, from the same prepared cases: time and Dice.

The usual recipe: fp32, MONAI's Dataset, its transforms (RandAffined, Rand3DElasticd and intensity)
and its losses of one-hot maps, hard labels, torch's own layers and the allocator as it is. Ours has
its own losses, with the class weights that a federation's server sends. Network, first weights,
AdamW, learning rate and its schedule, and the number of steps are the same; each side runs in
processes of its own, one after the other.

python -m benchmarks.naive_recipe [--archive DIR [DIR ...]] [--seeds N ...] [--against fp32]
    [--amp bf16] [--json FILE]

Without archives, made-up cases at the default network's widths: time alone. With them, cases that
annotate all four organs: `--train` of them train, all others (`--test` at most) are scored on their
own grid; the difference is paired by patient, over the mean of the seeds, and it is enough if the
95 % interval lies above -0.01. Against `fp32` it is ours on both sides, in `--amp` and in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.augmentation import monai_pair
from benchmarks.gpu_steps import cases, label_map, naive_loss, usual_layers, wait
from benchmarks.measure import report, row
from core.data.cache import Recipe
from core.data.cached_case import Entry
from core.data.dataset import load_label
from core.models.build import build
from core.organs.vocabulary import NINE
from core.plan.schema import Augment, Model, Phase, Plan, Preprocess, Train
from core.training.engine import Epochs, train, validate
from core.training.loss_weights import frequency_weights, term_factors, voxel_counts
from core.training.losses import LossWeights
from core.training.optimisation import learning_rate

FOUR = ("Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R")
FASTER, LEAST_DICE = {"off": 2.0, "bf16": 3.0}, -0.01
CROP, REAL_CROP, REAL_SPACING_MM = (48, 64, 112), (56, 48, 48), (6.0, 4.7, 4.7)
SIDES = {"ours": "", "naive": "the usual recipe", "fp32": "ours in float32"}


def plan_of(options: Namespace) -> Plan:
    """The plan of both sides: hnfed's defaults at this crop, each sample deformed."""
    if not options.archive:
        preprocess, model = Preprocess(crop=list(options.crop or CROP)), Model()
    else:
        window = [-200.0, 300.0]
        preprocess = Preprocess(list(REAL_SPACING_MM), list(options.crop or REAL_CROP), window)
        model = Model(channels=[8, 16, 32, 64])
    settings = Train(lr=0.003, threads=options.threads, amp=options.amp)
    return Plan(
        preprocess=preprocess, augment=Augment(probability=1.0), model=model, train=settings
    )


def entries_of(options: Namespace, plan: Plan, folder: Path) -> tuple[list[Entry], list[Entry]]:
    """Cases that train and that are scored; prepared where they are not yet."""
    if not options.archive:
        (folder / "cases").mkdir(exist_ok=True)
        own = folder / "cases" / f"{options.side}-{options.seed}"
        own.mkdir()
        return cases(own, plan.preprocess.crop, options.train), []
    found = prepared(options.archive, folder / "cache", Recipe(FOUR, plan.preprocess))
    whole = sorted((e for e in found if e.annotated >= set(FOUR)), key=lambda e: e.case)
    order = np.random.default_rng(0).permutation(len(whole))  # the same division for all seeds
    chosen = [whole[i] for i in order]
    return chosen[: options.train], chosen[options.train :][: options.test]


def prepared(roots: Sequence[Path], cache: Path, recipe: Recipe) -> list[Entry]:
    """All cases of the archives, read where they are not in the cache yet."""
    from core.archives.archive import open_archive
    from core.archives.cache_build import Cache, build_cache

    found: list[Entry] = []
    for i, root in enumerate(roots):
        archive = open_archive(root)
        splits = {ref.case: "train" for ref in archive.cases}
        found += build_cache(archive, splits, Cache(cache, site=f"archive{i}"), recipe).entries
    return found


def weights_of(plan: Plan, phase: Phase, entries: Sequence[Entry], epoch: int) -> LossWeights:
    """Class weights and terms of the loss, as the server of a federation sends them."""
    classes = frequency_weights(*voxel_counts(entries, phase.organs), plan.loss)
    return LossWeights(classes, None, term_factors(plan.weighting, epoch + 1, phase.rounds))


def naive_samples(entries: Sequence[Entry], organs: Sequence[str], settings: Preprocess) -> Any:
    """MONAI's Dataset of the cases with its transforms, on the grid of the settings."""
    from monai.data.dataset import Dataset
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import (
        RandAdjustContrastd,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
        ScaleIntensityRanged,
    )

    items = []
    for entry in entries:
        shares = torch.from_numpy(load_label(entry, organs))[None]
        image = torch.from_numpy(entry.image().astype(np.float32))[None]
        items.append({"image": image, "label": label_map(shares)[0].byte()})
    low, high = settings.window_hu
    keys = ("image",)
    changes = Compose(
        [
            ScaleIntensityRanged(keys, low, high, -1.0, 1.0, clip=True),
            monai_pair(settings.spacing_mm),
            RandAdjustContrastd(keys, prob=0.5, gamma=(0.8, 1.25)),
            RandScaleIntensityd(keys, factors=0.1, prob=0.5),
            RandShiftIntensityd(keys, offsets=0.1, prob=0.5),
            RandGaussianNoised(keys, prob=0.5, std=0.05),
        ]
    )
    return Dataset(items, changes)


def train_naively(
    model: nn.Module,
    entries: Sequence[Entry],
    plan: Plan,
    organs: Sequence[str],
    epochs: int,
    options: Namespace,
) -> None:
    """The usual loop, with the plan's learning rate."""
    from monai.data.dataloader import DataLoader
    from monai.utils.misc import set_determinism

    settings = plan.train
    set_determinism(plan.seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = naive_samples(entries, organs, plan.preprocess)
    loader = DataLoader(data, batch_size=1, shuffle=True, num_workers=options.workers)
    usual_layers(model).to(options.device).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    loss_of = naive_loss()
    for epoch in range(epochs):
        for step, batch in enumerate(loader):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, epoch + step / len(entries), epochs)
            optimiser.zero_grad()
            image = batch["image"].as_tensor().to(options.device)
            label: Tensor = batch["label"].as_tensor().to(options.device).long()
            loss: Any = loss_of(model(image), label)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimiser.step()


def one(options: Namespace, folder: Path) -> dict[str, Any]:
    """Trains one side with one seed; CPU seconds a step, and Dice by (patient, organ)."""
    plan = plan_of(options)
    if options.side != "ours":  # a GPU scores in it, too
        plan = replace(plan, train=replace(plan.train, amp="off"))
    organs = FOUR if options.archive else NINE
    epochs, phase = options.epochs, Phase(name="p", organs=list(organs), rounds=options.epochs)
    entries, tested = entries_of(options, plan, folder)
    torch.manual_seed(options.seed)
    model = build(plan.model, len(organs), plan.preprocess.crop)
    device = torch.device(options.device)

    def run(model: nn.Module, entries: Sequence[Entry], epochs: int) -> None:
        if options.side != "naive":
            weights = weights_of(plan, phase, entries, 0)
            span = Epochs(0, epochs, seed=options.seed, weights=weights)
            train(model, entries, plan, phase, device, span)
        else:
            seeded = replace(plan, seed=options.seed)
            train_naively(model, entries, seeded, organs, epochs, options)
        wait(device)

    if device.type == "cuda":  # its start, and the choice of its kernels
        run(copy.deepcopy(model), entries[:1], 1)
    clock, wall = time.process_time(), time.perf_counter()
    run(model, entries, epochs)
    steps = epochs * len(entries)
    cpu, wall = (time.process_time() - clock) / steps, (time.perf_counter() - wall) / steps
    scores = validate(model, tested, plan, phase, device) if tested else []
    dice = {e.case: [float("nan")] * len(organs) for e in tested}
    for score in scores:
        dice[score.case][organs.index(score.organ)] = score.dice
    return {"cpu": cpu, "wall": wall, "dice": list(dice.values())}


def measured(options: Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs all, and yields the rows."""
    sides, other = ("ours", options.against), SIDES[options.against]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    words = [*sys.argv[1:], "--folder", str(folder)]
    for seed in options.seeds:
        for side in sides:
            command = [sys.executable, "-m", "benchmarks.naive_recipe", *words]
            command += ["--side", side, "--seed", str(seed)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            found[side].append(json.loads(told.splitlines()[-1]))
            last = found[side][-1]
            mean = f", Dice {np.nanmean(last['dice']):.4f}" if last["dice"] else ""
            print(f"{side}, seed {seed}: {last['cpu']:.3f} CPU s a step{mean}", flush=True)
    for clock in ("cpu", "wall") if options.device == "cpu" else ("wall",):
        ours, naive = (min(r[clock] for r in found[side]) for side in sides)
        name = f"training, a step, amp {options.amp}, {options.device} ({clock}, {options.against})"
        target = FASTER[options.amp] if options.against == "naive" else None
        yield row(name, ours, "s", other, naive / ours, target)
    if options.archive:
        tables = [np.mean([r["dice"] for r in found[side]], axis=0) for side in sides]
        from hnfed.evaluate.statistics import paired

        more = paired(*tables)
        assert more.value is not None
        assert more.low is not None
        about = f"{more.patients} patients, 95 % interval {more.low:.4f} to {more.high:.4f}"
        yield row(f"Dice, ours - {other}", more.value, "", about, more.low, LEAST_DICE)


def main() -> int:
    """Prints the rows; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=4, metavar="CASES")
    parser.add_argument("--test", type=int, default=40, metavar="CASES")
    parser.add_argument("--crop", type=int, nargs=3, metavar=("Z", "Y", "X"))
    parser.add_argument("--amp", choices=tuple(FASTER), default="off", help="ours alone")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0, of both sides")
    parser.add_argument("--workers", type=int, default=0, help="processes of the usual loader")
    parser.add_argument("--against", choices=("naive", "fp32"), default="naive")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps prepared cases here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one(options, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return report(list(measured(options, folder)), options.json)


if __name__ == "__main__":
    raise SystemExit(main())
