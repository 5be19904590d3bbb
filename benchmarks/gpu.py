"""What a training step costs on a GPU, beside what is usual elsewhere, and that it is the same.

python -m benchmarks.gpu [--device cuda|cpu] [--crop Z Y X] [--only SECTION ...]
    [--minutes 8] [--json FILE]

Needs torch, numpy and scipy alone; rows that need MONAI (UNETR, its networks, losses and
transforms) say so where it is not installed. On a CPU the crop is small: that shows that the script
runs, and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_steps import NETWORKS, SPACING_MM, Steps, cases, naive_steps, our_steps, wait
from benchmarks.gpu_steps import plan_of as plan
from benchmarks.measure import AtMost, report, row, seconds, unmeasured
from core.data.cached_case import Entry
from core.data.dataset import CropDataset, on_device
from core.models.build import build, cost
from core.models.stages import stage_of
from core.organs.vocabulary import NINE
from core.plan.schema import Phase, Train
from core.training.engine import Epochs, train
from core.training.memory import to_device
from core.training.optimisation import resolve_device

CROPS = {"cuda": (96, 128, 224), "cpu": (16, 32, 32)}
SMALL = (16, 32, 32)  # of the losses that a CPU computes as well
NAIVE = "naive recipe: fp32, MONAI's losses"
FASTER, FASTER_BF16, FROZEN, SAME_WEIGHTS, SAME_LOSS = 2.0, 3.0, AtMost(0.68), 1e-5, 0.02
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """Where and on what is measured.

    Attributes:
        device: of the steps.
        crop: voxels (z, y, x).
        entries: prepared cases of that crop.
        small: prepared cases of `SMALL`.
    """

    device: torch.device
    crop: Sequence[int]
    entries: Sequence[Entry]
    small: Sequence[Entry]

    @property
    def precisions(self) -> list[str]:
        """Values of `train.amp` to measure."""
        on_gpu = self.device.type == "cuda"
        return ["off", "bf16"] if on_gpu and torch.cuda.is_bf16_supported() else ["off"]

    def network(self, name: str) -> nn.Module:
        """A network of `NETWORKS`, the same at each call."""
        torch.manual_seed(0)
        return build(NETWORKS[name], len(NINE), self.crop)

    def batch(self) -> dict[str, Tensor]:
        """One sample on the device; the flags stay on the host."""
        found = {k: v[None] for k, v in self.dataset()[0].items()}
        return {k: v if k == "annotated" else v.to(self.device) for k, v in found.items()}

    def dataset(self) -> CropDataset:
        """The cases, augmented."""
        settings = plan(NETWORKS["res3dunet"], self.crop, Train())
        window = settings.preprocess.window_hu
        return CropDataset(self.entries, NINE, settings.augment, window, seed=0)

    def ours(self, name: str, amp: str) -> Steps:
        """Our steps of a network."""
        return our_steps(
            self.network(name), plan(NETWORKS[name], self.crop, Train(amp=amp)), self.batch()
        )


def peaks(bench: Bench) -> Iterator[dict[str, Any]]:
    """What the device reaches in a large product and in a convolution of the default network."""

    def run(some: Callable[[], object]) -> None:
        some()
        wait(bench.device)

    size, channels = (8192, 32) if bench.device.type == "cuda" else (512, 16)
    for amp in bench.precisions:
        dtype = torch.bfloat16 if amp == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        half = [n // 2 for n in bench.crop]
        x = torch.randn(1, channels, *half, device=bench.device, dtype=dtype)
        conv = nn.Conv3d(channels, channels, 3, padding=1).to(bench.device, dtype)
        count = half[0] * half[1] * half[2] * channels**2 * 27 * 2
        with torch.inference_mode():
            best = seconds(
                {
                    "product": partial(run, partial(torch.matmul, a, b)),
                    "convolution": partial(run, partial(conv, x)),
                }
            )
        for name, operations in (("product", 2 * size**3), ("convolution", count)):
            yield row(f"{name}, amp {amp}", operations / best[name] / 1e12, "TFLOPS")


def steps(bench: Bench) -> Iterator[dict[str, Any]]:
    """Seconds and memory of a step of each network, and what it reaches of a large product."""
    reached = {r["name"]: r["value"] for r in peaks(bench)}
    for name in NETWORKS:
        for amp in bench.precisions:
            ours = bench.ours(name, amp)
            step = f"step {name}, amp {amp}"
            best = seconds({"ours": ours})["ours"]
            yield row(f"{step}, alone", best, "s")
            gflop = 3 * cost(bench.network(name), bench.crop)["gflop"]  # backward: twice forward
            share = gflop / 1e3 / best / reached[f"product, amp {amp}"]
            yield row(f"{step}: of the product", share, "", "3 x forward's operations")
            yield memory(step, ours)


def against_naive(bench: Bench) -> Iterator[dict[str, Any]]:
    """Our step beside the naive one of the same network."""
    for name in ("res3dunet", "unetr"):
        naive = naive_steps(bench.network(name), bench.batch())
        for amp in bench.precisions:
            best = seconds({"ours": bench.ours(name, amp), "naive": naive})
            target = None
            if name == "res3dunet" and bench.device.type == "cuda":
                target = FASTER if amp == "off" else FASTER_BF16
            ratio = best["naive"] / best["ours"]
            yield row(f"step {name}, amp {amp}", best["ours"], "s", NAIVE, ratio, target)
        yield memory(f"naive step {name}", naive)


def memory(name: str, some: Steps) -> dict[str, Any]:
    """The row of a step's memory."""
    if some.batch["image"].device.type != "cuda":
        return unmeasured(f"{name}: memory", "torch counts the memory of GPUs only")
    return row(f"{name}: memory", some.memory_gb(), "GB")


def against_dynunet(bench: Bench) -> Iterator[dict[str, Any]]:
    """Our step of the default network beside that of DynUNet with its widths, both by us."""
    for amp in bench.precisions:
        variants = {name: bench.ours(name, amp) for name in ("res3dunet", "MONAI DynUNet")}
        best = seconds(variants)
        ratio = best["MONAI DynUNet"] / best["res3dunet"]
        yield row(f"res3dunet, amp {amp}", best["res3dunet"], "s", "MONAI DynUNet", ratio)


def loader(bench: Bench) -> Iterator[dict[str, Any]]:
    """A sample of one thread, augmented and copied, beside a step: above 1 the GPU never waits."""
    number = iter(range(1_000_000))
    places = ["cpu"] if bench.device.type == "cpu" else ["cpu", "site"]

    def sample(data: CropDataset) -> None:
        found = data[next(number) % len(data)]
        for key in ("image", "label"):
            on_device(found[key], bench.device)
        wait(bench.device)

    for place in places:
        data = bench.dataset()
        data.device = torch.device("cpu") if place == "cpu" else bench.device
        name = f"sample, copied, augment.device {place}"
        for amp in bench.precisions:
            step = bench.ours("res3dunet", amp)
            best = seconds({"sample": partial(sample, data), "step": step})
            ratio = best["step"] / best["sample"]
            yield row(name, best["sample"], "s", f"step, amp {amp}", ratio)


def naive_loader(bench: Bench) -> Iterator[dict[str, Any]]:
    """The augmentation of MONAI for a sample, which the naive recipe waits for."""
    from benchmarks.augmentation import SETTINGS, monai_pair
    from core.data.augment import augment

    data = unchanged(bench.dataset())[0]
    image, label, theirs = data["image"], data["label"], monai_pair()
    best = seconds(
        {
            "ours": lambda: augment(image, label, SETTINGS, SPACING_MM, 0),
            "monai": lambda: theirs({"image": image, "label": label.amax(dim=0, keepdim=True)}),
        }
    )
    ratio = best["monai"] / best["ours"]
    yield row("deformation of a sample", best["ours"], "s", "MONAI's affine + elastic", ratio)


def unchanged(data: CropDataset) -> CropDataset:
    """The same cases as they are."""
    return CropDataset(data.entries, data.organs, None, data.window_hu, data.seed)


def frozen(bench: Bench) -> Iterator[dict[str, Any]]:
    """A step with the encoder frozen beside a whole one."""
    settings = plan(NETWORKS["res3dunet"], bench.crop, Train())
    model = bench.network("res3dunet")
    stages = stage_of(model, settings.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = stages[name] != "encoder"
    variants = {
        "frozen": our_steps(model, settings, bench.batch()),
        "whole": bench.ours("res3dunet", "off"),
    }
    best = seconds(variants)
    ratio = best["frozen"] / best["whole"]
    yield row("step, encoder frozen", best["frozen"], "s", "whole step", ratio, FROZEN)


def distributed(bench: Bench) -> Iterator[dict[str, Any]]:
    """Weights after three steps under torch's DDP with one process beside those without."""
    name = "DDP of one process: weights' largest difference"
    if not torch.distributed.is_available():
        yield unmeasured(name, "this torch has no torch.distributed")
        return
    from torch import distributed as dist
    from torch._C._distributed_c10d import HashStore
    from torch.nn.parallel import DistributedDataParallel

    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    settings = plan(NETWORKS["res3dunet"], bench.crop, Train(deterministic=True))
    # DDP lays out its gradients as the weights lie when it is made.
    plain = to_device(bench.network("res3dunet"), bench.device, settings.model.channels_last)
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(copy.deepcopy(plain))
        for model in (plain, wrapped):
            some = our_steps(model, settings, bench.batch())
            for _ in range(3):
                some()
    finally:
        dist.destroy_process_group()
    pairs = zip(plain.parameters(), wrapped.module.parameters(), strict=True)
    off = max(float((a - b).detach().abs().max()) for a, b in pairs)
    yield row(name, off, "", backend, off, AtMost(SAME_WEIGHTS))


def losses(bench: Bench) -> Iterator[dict[str, Any]]:
    """The mean loss of steps 41 to 50 beside the CPU's, both in fp32."""
    name = "loss of steps 41 to 50: difference"
    if bench.device.type == "cpu":
        yield unmeasured(name, "the device is the CPU itself")
        return
    settings = plan(NETWORKS["res3dunet"], SMALL, Train(lr=5e-4, matmul="highest"))
    phase = Phase(name="p", organs=list(NINE), rounds=1, local_epochs=50 // len(bench.small))
    last = 10 // len(bench.small)
    ends = {}
    for device in (bench.device, torch.device("cpu")):
        torch.manual_seed(0)
        model = build(settings.model, len(NINE), SMALL)
        first = Epochs(0, phase.local_epochs - last, seed=0)
        _, state = train(model, bench.small, settings, phase, device, first)
        rest = replace(first, first=first.count, count=last, optimiser_state=state)
        ends[device.type] = train(model, bench.small, settings, phase, device, rest)[0]
    ours, theirs = ends[bench.device.type].loss["total"], ends["cpu"].loss["total"]
    off = abs(ours / theirs - 1)
    yield row(name, off, "", "the CPU's", off, AtMost(SAME_LOSS))


SECTIONS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "DDP": distributed,
    "losses after 50 steps": losses,
    "frozen encoder": frozen,
    "data loader": loader,
    "naive data loader": naive_loader,
    "peaks": peaks,
    "against the naive recipe": against_naive,
    "steps": steps,
    "against DynUNet": against_dynunet,
}


def rows(
    device: torch.device, minutes: float, crop: Sequence[int], only: Sequence[str] = tuple(SECTIONS)
) -> Rows:
    """All rows; what cannot be measured, or no longer, has its row with the reason."""
    end = time.monotonic() + 60 * minutes
    found: Rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("crop", "small")]
        for folder in folders:
            folder.mkdir()
        bench = Bench(device, crop, cases(folders[0], crop, 2), cases(folders[1], SMALL, 2))
        for name in only:
            print(f"{name} ...", flush=True)
            found += measured(name, SECTIONS[name](bench), end)
    return found


def measured(name: str, section: Iterator[dict[str, Any]], end: float) -> Iterator[dict[str, Any]]:
    """The rows of a section until `end` (of `time.monotonic`), or until one cannot be had."""
    while time.monotonic() < end:
        try:
            found = next(section, None)
        except (ImportError, RuntimeError) as error:
            yield unmeasured(name, str(error).splitlines()[0][:100])
            return
        if found is None:
            return
        yield found
    yield unmeasured(f"{name}: the rest", "the time was up")


def main() -> int:
    """Prints the table; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(CROPS), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--crop", type=int, nargs=3, metavar=("Z", "Y", "X"))
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    device = resolve_device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    crop = options.crop or CROPS[device.type]
    shown = " x ".join(map(str, crop))
    print(f"torch {torch.__version__} on {where}, crop {shown}", flush=True)
    found = rows(device, options.minutes, crop, options.only)
    return report(found, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
