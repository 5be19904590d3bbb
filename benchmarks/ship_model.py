"""Makes a model that ships of a finished simulation.

``python -m benchmarks.ship_model RUN NAME --data DIR``: 16-bit weights, their description and the
model card go to ``configs/models``. The scores on the card are those of the shipped weights on the
test cases of DIR, on each CT's own grid.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.archives.archive import open_archive
from core.archives.images.volume import Volume
from core.files import replace_file
from core.metrics.scores import outlines
from core.plan.load import CONFIGS, MODELS
from core.wire.checkpoint import load, load_meta
from hnfed.evaluate.evaluation import (
    Evaluation,
    Method,
    Outlines,
    choose_cases,
    evaluate,
    vocabulary_of,
)
from hnfed.predict.model_files import resolve_model
from hnfed.predict.segmenter import Choice, load_segmenter
from hnfed.predict.shipped import make
from hnfed.screen import Progress
from simulations.apart import prepare_sites
from simulations.run import resolve
from simulations.site_map import site_map

CARD = """# {name}

**Research only, never for clinical use.** A contour of it is a draft that a qualified person
checks slice by slice.

| | |
| --- | --- |
| organs (TG-263) | {organs} |
| network | {network}, channels {channels} |
| size | {parameters:,} parameters, {megabytes:.2f} MB as 16-bit safetensors |
| voxels | {spacing} mm (z, y, x), a region of {crop} voxels that is found in the CT |
| data | {data} |
| licence | {licence} |
| made by | {made_by} |

## Scores
{cases} test CTs of the same two sites, on which it was neither trained nor chosen, on each CT's own
grid. [low, high]: 95 % bootstrap interval over patients. A missed organ counts 0 in Dice and
nothing in HD95.

| organ | CTs | missed | Dice | [low, high] | HD95 mm |
| --- | --- | --- | --- | --- | --- |
{rows}

## What it is bad at
- Resolution: it sees voxels of {spacing} mm. Thin organs and the ends of an organ are off by a
  voxel.
- Organs that the scan cuts off, other scanners and protocols, children, and anatomy after surgery:
  not looked at.
- Its training contours followed the habits of the contributing institutions, and many cases lack
  some of the organs. Where your protocol differs, so will its contours.
- Its worst test case: {worst}.

`hnfed models` lists it, `hnfed predict --model {name}` uses it, `init: {name}` in a plan starts a
phase from it. Test scores of CTs that it was trained on are marked as contaminated.
"""


def main() -> None:
    """Makes the model, scores it, writes its card."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.ship_model")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--data", metavar="DIR", required=True, help="archive with a test split")
    parser.add_argument("--described", metavar="WORDS", required=True, help="the training data")
    parser.add_argument("--licence", metavar="WORDS", required=True)
    parser.add_argument("--made-by", metavar="WORDS", required=True, help="command and commit")
    args = parser.parse_args()
    words = {"data": args.described, "licence": args.licence, "made_by": args.made_by}
    source = resolve_model(args.run)
    folder = CONFIGS / MODELS
    digests = seen(args.run)
    path = make(source, folder, args.name, digests, words)
    result = scored(path, args.data)
    path = make(source, folder, args.name, digests, words | {"test": rows_of(result)})
    replace_file(path.with_suffix(".md"), card(path, result))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(digests)} CTs seen")


def seen(run: Path) -> list[str]:
    """Digests of the CTs that a simulation trained on or chose by."""
    _, config = resolve(str(run / "config.yaml"), ())
    prepared = prepare_sites(config, site_map(config, run))
    entries = [e for site in prepared.values() for e in site.entries]
    return [e.image_sha256 for e in entries if e.split != "test"]


def scored(path: Path, data: str) -> Evaluation:
    """The model's scores on the test cases of an archive."""
    segmenter = load_segmenter(Choice((str(path),)))
    archive = open_archive(data, vocab=vocabulary_of(segmenter.organs))

    def drawn(volume: Volume) -> tuple[Outlines, float]:
        labels, _ = segmenter(volume.image, volume.geometry)
        assert labels.shape == volume.image.shape, labels.shape
        return outlines(labels, segmenter.organs), volume.geometry.diagonal_mm()

    method = Method(segmenter.organs, drawn, "the CT's diagonal")
    return evaluate(archive, choose_cases(archive, "test", None), method, Progress())


def rows_of(result: Evaluation) -> list[dict[str, Any]]:
    """One row an organ: n, missed, Dice with its interval, HD95."""
    rows = []
    for organ, cell in result.summary["organs"].items():
        low, high = cell["intervals"].get("dice") or (None, None)
        told = {key: cell[key] for key in ("n", "missed", "dice", "hd95_mm")}
        rows.append({"organ": organ, **told, "low": low, "high": high})
    return [row for row in rows if row["n"]]


def card(path: Path, result: Evaluation) -> str:
    """The model card as Markdown."""
    state, _ = load(path)
    meta = load_meta(path)
    settings: Mapping[str, Any] = meta["model"]
    lines = [
        f"| {r['organ']} | {r['n']} | {r['missed']} | {r['dice']:.3f} | "
        f"[{r['low']:.3f}, {r['high']:.3f}] | {r['hd95_mm']:.1f} |"
        for r in meta["test"]
    ]
    by_case: dict[str, list[float]] = {}
    for score in result.scores:
        by_case.setdefault(score.case, []).append(score.dice)
    case, dice = min(by_case.items(), key=lambda item: float(np.mean(item[1])))
    worst = f"{case}, mean Dice {float(np.mean(dice)):.3f} over its organs"
    return CARD.format(
        name=path.stem,
        organs=", ".join(meta["organs"]),
        network=settings["name"],
        channels=", ".join(map(str, settings["channels"])),
        parameters=sum(t.numel() for t in state.values()),
        megabytes=path.stat().st_size / 1e6,
        spacing=" x ".join(f"{mm:g}" for mm in meta["preprocess"]["spacing_mm"]),
        crop=" x ".join(map(str, meta["preprocess"]["crop"])),
        cases=result.cases,
        rows="\n".join(lines),
        worst=worst,
        **{key: meta[key] for key in ("data", "licence", "made_by")},
    )


if __name__ == "__main__":
    main()
