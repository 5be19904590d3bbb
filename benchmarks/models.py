"""What the shipped networks cost: parameters, GFLOP, kept activations, seconds, by crop size.

python -m benchmarks.models [--full] [--json FILE]

`--full` runs the paper's crop (96, 128, 224) forward and backward for both networks (minutes, about
8 GB). The counts of that crop are printed in any case: they need no computation.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import report, row
from core.models.build import build, cost
from core.plan.schema import Loss, Model
from core.training.losses import segmentation_loss

ORGANS = 9
PAPER = (96, 128, 224)
CROPS = ((16, 32, 32), (32, 48, 64), (96, 48, 64))
NETWORKS = (Model(), Model(norm="group"), Model(channels_last=False), Model(name="unetr"))


def rows(crops: Sequence[Sequence[int]] = CROPS, *, full: bool = False) -> list[dict[str, Any]]:
    """Counts each network at each crop, and times forward and forward + backward once warm."""
    found = []
    for settings in NETWORKS:
        label = f"{settings.name} {settings.norm} norm"
        label += "" if settings.channels_last else ", channels first,"
        for crop in [*crops, PAPER]:
            torch.manual_seed(0)
            name = f"{label} {'x'.join(map(str, crop))}"
            try:
                model = build(settings, ORGANS, crop)
            except ValueError:
                continue  # not a multiple of this network's strides
            counts = cost(model, crop)
            found += [
                row(f"{name} parameters", counts["parameters"], ""),
                row(f"{name} forward", counts["gflop"], "GFLOP"),
                row(f"{name} activations", counts["activation_bytes"] / 1e6, "MB"),
            ]
            if tuple(crop) != PAPER or full:
                found += _timed(model, settings, crop, name)
    return found


def _timed(
    model: torch.nn.Module, settings: Model, crop: Sequence[int], name: str
) -> list[dict[str, Any]]:
    layout = torch.channels_last_3d if settings.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).train()  # type: ignore[call-overload]
    image = torch.randn((1, 1, *crop)).to(memory_format=layout)
    label = torch.nn.functional.one_hot(torch.randint(0, 1 + ORGANS, (1, *crop)), 1 + ORGANS)
    shares = label.movedim(-1, 1)[:, 1:].byte() * 255
    annotated = torch.ones((1, ORGANS), dtype=torch.bool)
    best = {"forward": float("inf"), "forward + backward": float("inf")}
    for _ in range(1 if tuple(crop) == PAPER else 3):
        start = time.perf_counter()
        logits = model(image)
        best["forward"] = min(best["forward"], time.perf_counter() - start)
        total = segmentation_loss(logits, shares, annotated, Loss()).total
        total.backward()  # type: ignore[no-untyped-call]
        best["forward + backward"] = min(best["forward + backward"], time.perf_counter() - start)
        assert total.isfinite()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
        model.zero_grad()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return [
        *(row(f"{name} {what}, with the loss", s, "s") for what, s in best.items()),
        row(f"{name} peak memory of the process so far", peak_gb, "GiB"),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="run the paper's crop as well")
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    found = rows(full=options.full)
    report(found, options.json)


if __name__ == "__main__":
    main()
