"""Contours of a whole CT: hnfed's one located crop against MONAI's sliding window over all of it.

python -m benchmarks.inference [--model MODEL --archive DIR [--cases N]] [--small] [--json FILE]

The sliding window (overlap 0.25) goes over the CT on the network's own grid, in float32, and both
sides resample by the same code there and back, so what is compared is locating against sliding.
Without a model a made-up CT of 140 x 512 x 512 voxels is contoured by a network of random weights,
in float32 and in what `train.amp: auto` is here. With one, cases of an archive are, as `hnfed
predict` does it, and the Dice of both is told. `python -m benchmarks.roi ARCHIVE` measures how much
of each organ the located crop holds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn

from benchmarks.epoch import write_case
from benchmarks.measure import AtMost, report, row
from core.archives.archive import open_archive, read_case
from core.archives.preprocess import IDENTITY, resample_image
from core.data.dataset import scale_image
from core.data.geometry import Geometry
from core.data.grid import affine, outer_corners
from core.data.resample import restore
from core.metrics.scores import dice
from core.models.build import build
from core.organs.vocabulary import NINE
from core.plan.schema import Model, Preprocess, Train
from core.training.memory import to_device
from core.training.optimisation import precision
from hnfed.predict.inference import common_preprocess, load_models, predict_volume
from hnfed.predict.model_files import resolve_model
from hnfed.predict.shipped import path_of

FASTER, SAME = 10.0, AtMost(0.005)
OVERLAP = 0.25
SMALL = Preprocess([6.0, 4.0, 4.0], [32, 32, 48]), Model(channels=[4, 8, 16])
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A CT, and what is known of it.

    Attributes:
        image: (Z, Y, X) in HU.
        geometry: its grid.
        masks: contours by organ.
    """

    image: npt.NDArray[Any]
    geometry: Geometry
    masks: Mapping[str, npt.NDArray[Any]]


def whole(geometry: Geometry, spacing_mm: Sequence[float]) -> Geometry:
    """The grid of a spacing that covers a CT, along the patient's axes."""
    matrix, origin = affine(geometry)
    points = outer_corners(geometry) @ matrix.T + origin
    low, high = points.min(0), points.max(0)
    step = np.asarray(spacing_mm, dtype=float)[::-1]
    count = np.maximum(1, np.ceil((high - low) / step - 1e-6)).astype(int)
    first = low + step / 2
    return Geometry(
        size=(int(count[2]), int(count[1]), int(count[0])),
        spacing_mm=(float(step[2]), float(step[1]), float(step[0])),
        origin_mm=(float(first[0]), float(first[1]), float(first[2])),
        direction=IDENTITY,
    )


def slid(model: nn.Module, settings: Preprocess, case: Case) -> Labels:
    """Labels by MONAI's sliding window over the whole CT."""
    grid = whole(case.geometry, settings.spacing_mm)
    image = scale_image(
        resample_image(case.image, case.geometry, grid, settings), settings.window_hu
    )
    with torch.inference_mode():
        logits = sliding_window_inference(image[None], list(settings.crop), 1, model, OVERLAP)
        assert isinstance(logits, torch.Tensor)
        probabilities = torch.softmax(logits[0], dim=0)
    return restore(probabilities, grid, case.geometry)


def made_up() -> Iterator[Case]:
    """One CT of a body in air."""
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder) / "c", 0)
        yield from read(Path(folder), NINE, 1)


def read(root: Path, organs: Sequence[str], count: int) -> Iterator[Case]:
    """The first cases of an archive."""
    archive = open_archive(root)
    for ref in itertools.islice(archive.cases, count):
        volume, _ = read_case(archive, ref, organs)
        yield Case(volume.image, volume.geometry, volume.masks)


def rows(
    models: Sequence[nn.Module], metas: Sequence[Mapping[str, Any]], cases: Iterator[Case]
) -> list[dict[str, Any]]:
    """Seconds of a CT by each, their ratio, and the Dice of each where contours are known."""
    amp = metas[0].get("amp", "off")
    kind = str(precision(Train(amp=amp), torch.device("cpu")) or torch.float32)
    settings, organs = common_preprocess(metas), metas[0]["organs"]
    spent = {"ours": 0.0, "slid": 0.0}
    scores: dict[str, list[float]] = {"ours": [], "slid": []}
    count, voxels = 0, (0, 0, 0)
    for case in cases:
        count, voxels = count + 1, case.geometry.size
        draw: dict[str, Callable[[], Labels]] = {
            "ours": partial(predict_volume, models, metas, case.image, case.geometry, "cpu"),
            "slid": partial(slid, models[0], settings, case),
        }
        for name, run in draw.items():
            begun = time.process_time()
            labels = run()
            spent[name] += time.process_time() - begun
            known = {o: m for o, m in case.masks.items() if o in organs and m.any()}
            scores[name] += [dice(labels == organs.index(o) + 1, m) for o, m in known.items()]
    size = " x ".join(map(str, voxels))
    name = f"a whole CT, {kind.removeprefix('torch.')}, {count} cases, the last of {size}"
    each = {key: seconds / count for key, seconds in spent.items()}
    found = [
        row(name, each["ours"], "CPU s", f"sliding window, {each['slid']:.4g} s",
            each["slid"] / each["ours"], FASTER)
    ]  # fmt: skip
    if scores["ours"] and any(scores["slid"]):
        ours, theirs = (math.fsum(s) / len(s) for s in scores.values())
        against = f"sliding window, {theirs:.4f}"
        found.append(row("the same: mean Dice", ours, "", against, theirs - ours, SAME))
    return found


def untrained(small: bool, amp: str) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """A network of random weights, and what a checkpoint would say of it."""
    settings, model = SMALL if small else (Preprocess(), Model())
    torch.manual_seed(0)
    network = build(model, len(NINE), settings.crop).eval()
    to_device(network, torch.device("cpu"), model.channels_last)
    meta = {"organs": list(NINE), "preprocess": asdict(settings), "model": asdict(model)}
    meta["amp"] = amp
    return [network], [meta]


def main() -> int:
    """Prints the rows; 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", metavar="MODEL", help="as of `hnfed predict`; with --archive")
    parser.add_argument("--archive", type=Path, metavar="DIR", help="cases with contours")
    parser.add_argument("--cases", type=int, default=3, help="of the archive (3)")
    parser.add_argument("--small", action="store_true", help="a small network: no target")
    parser.add_argument("--json", type=Path, help="merge the rows into this benchmarks.json")
    options = parser.parse_args()
    if (options.model is None) != (options.archive is None):
        parser.error("--model and --archive: give both or none")
    if options.model is None:
        found = [r for amp in ("off", "auto")
                 for r in rows(*untrained(options.small, amp), made_up())]  # fmt: skip
    else:
        models, metas = load_models([resolve_model(path_of(options.model))], "cpu")
        found = rows(models, metas, read(options.archive, metas[0]["organs"], options.cases))
    missed = report(found, options.json)
    return 0 if options.small else missed


if __name__ == "__main__":
    raise SystemExit(main())
