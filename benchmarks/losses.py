"""The shared-softmax loss against MONAI's three losses: time, memory, and that both are the same.

python -m benchmarks.losses [--crop Z Y X] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.losses.dice import GeneralizedDiceLoss
from monai.losses.focal_loss import FocalLoss
from torch import nn

from benchmarks.measure import AtMost, report, row, seconds
from core.plan.schema import Loss
from core.training.losses import segmentation_loss

ORGANS = 9
CROP = (96, 128, 224)
FASTER, LEANER = 3.0, 0.45  # targets: times as fast, share of the extra memory
Batch = tuple[torch.Tensor, torch.Tensor]


def batch(crop: Sequence[int], seed: int = 0) -> Batch:
    """Returns logits (1, 10, Z, Y, X) and a label map with blocks of nine organs."""
    torch.manual_seed(seed)
    label = torch.zeros((1, *crop), dtype=torch.int64)
    for organ in range(1, ORGANS + 1):
        size = [max(1, n // 10) for n in crop]
        at = [int(torch.randint(0, n - s + 1, ())) for n, s in zip(crop, size, strict=True)]
        z, y, x = (slice(a, a + s) for a, s in zip(at, size, strict=True))
        label[0, z, y, x] = organ
    logits = torch.randn((1, 1 + ORGANS, *crop)).scatter_add_(
        1, label[:, None], torch.full((1, 1, *crop), 2.0)
    )
    return logits.requires_grad_(), label


def ours(data: Batch) -> torch.Tensor:
    """Cross entropy + focal + generalised Dice over one shared log-softmax."""
    annotated = torch.ones((1, ORGANS), dtype=torch.bool)
    config = Loss(ce=1.0, focal=1.0, gdice=1.0, dice=0.0, dice_background=True)
    logits, label = data
    shares = torch.stack([(label == i).byte() * 255 for i in range(1, 1 + ORGANS)], dim=1)
    return segmentation_loss(logits, shares, annotated, config).total


def monai(data: Batch) -> torch.Tensor:
    """The same three terms as torch and MONAI have them."""
    logits, label = data
    value: torch.Tensor = nn.functional.cross_entropy(logits, label)
    gdice = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    focal = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)
    value = value + gdice(logits, label[:, None])
    value = value + (1 + ORGANS) * focal(logits, label[:, None])
    return value.mean()


VARIANTS: dict[str, Callable[[Batch], torch.Tensor]] = {"ours": ours, "monai": monai}


def rows(crop: Sequence[int] = CROP, repeats: int = 3) -> list[dict[str, Any]]:
    """Measures forward + backward at `crop`; asserts equal values and gradients first."""
    data = batch(crop)
    value, gradient = {}, {}
    for name, loss in VARIANTS.items():
        total = loss(data)
        value[name] = total.item()
        (gradient[name],) = torch.autograd.grad(total, data[0])
    scale = float(gradient["monai"].abs().max())
    off = float((gradient["ours"] - gradient["monai"]).abs().max()) / scale
    relative = abs(value["ours"] / value["monai"] - 1)
    del gradient
    assert relative < 1e-4, value
    assert off < 1e-4, off

    def step(loss: Callable[[Batch], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(data), data[0])

    wall = seconds({name: step(loss) for name, loss in VARIANTS.items()}, repeats)
    cpu = seconds({name: step(loss) for name, loss in VARIANTS.items()}, repeats, cpu=True)
    memory = {name: _peak_mb(name, crop) for name in VARIANTS}
    at = "x".join(map(str, crop))
    against = "MONAI CE + GeneralizedDice + Focal"
    return [
        row(f"loss {at} cpu", cpu["ours"], "s", against, cpu["monai"] / cpu["ours"], FASTER),
        row(f"loss {at} wall", wall["ours"], "s", against, wall["monai"] / wall["ours"]),
        row(
            f"loss {at} extra peak memory",
            memory["ours"],
            "MB",
            against,
            memory["ours"] / memory["monai"],
            AtMost(LEANER),
        ),
        row(f"loss {at} value, relative difference", relative, "", against),
        row(f"loss {at} gradient, difference / max", off, "", against),
    ]


def _peak_mb(name: str, crop: Sequence[int]) -> float:
    """Extra peak memory (resident, Linux) of one forward + backward in its own process."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--peak", name]
    done = subprocess.run(
        [*command, "--crop", *map(str, crop)], check=True, capture_output=True, text=True
    )
    return float(json.loads(done.stdout))


def _print_peak(name: str, crop: Sequence[int]) -> None:
    small = batch((8, 8, 16))
    torch.autograd.grad(VARIANTS[name](small), small[0])  # lazy imports and thread pools
    data = batch(crop)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is used now
    before = _resident_peak_kb()
    torch.autograd.grad(VARIANTS[name](data), data[0])
    print(json.dumps((_resident_peak_kb() - before) / 1024))


def _resident_peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, nargs=3, default=CROP, metavar=("Z", "Y", "X"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        _print_peak(options.peak, options.crop)
        return
    found = rows(options.crop, options.repeats)
    report(found, options.json)


if __name__ == "__main__":
    main()
