"""A trained model as a MONAI bundle: weights, labels, preprocessing, model card, checksums.

The bundle runs with MONAI's own commands where hnfed is installed, and is what
`hnfed predict --model BUNDLE` takes. Format: https://docs.monai.io/en/stable/mb_specification.html.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from core.errors import UserError
from core.files import replace_file
from core.models.build import build
from core.models.stages import load_unique
from core.organs.vocabulary import BUILT_IN
from core.provenance import hnfed_version, versions
from core.run_records import number
from core.tracking.foreign_run import of_run
from core.wire import checkpoint
from core.wire.described import input_of
from hnfed.evaluate.statistics import estimate
from hnfed.predict.formats import CONTOUR_FORMATS
from hnfed.predict.model_files import described, resolve_model
from hnfed.predict.prediction import predict
from hnfed.predict.segmenter import Choice
from hnfed.report.run import read_run

SCHEMA_URL = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
SUMS = "SHA256SUMS"
FIGURES = ("n", "missed", "dice", "hd95_mm")
USE = (
    "Research. Contours of organs at risk on planning CT of head and neck, as a first draft that a "
    "qualified person checks slice by slice. No medical device."
)


def export(run: Path, out: Path, phase: str | None = None, site: str | None = None) -> list[Path]:
    """Writes the best model of a run as a MONAI bundle.

    Args:
        run: run folder.
        out: folder of the bundle; new or empty.
        phase: of the run; by default the last that has weights.
        site: whose own weights, where a phase has such.

    Returns:
        The files, relative to `out`.

    Raises:
        UserError: no such weights, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("--output", out, "name a folder that is new or empty")
    source = resolve_model(run, phase, site)
    state, meta = checkpoint.load(source)
    checkpoint.require_described(meta, source)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hnfed-", dir=out) as aside:
        files = _fill(Path(aside), run, source, state, meta)
        for part in sorted(Path(aside).iterdir()):  # whole, or not at all
            part.replace(out / part.name)
    return files


def _fill(
    out: Path, run: Path, source: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> list[Path]:
    """Writes a bundle's files into a folder; returns them, relative to it."""
    kept = described(meta) | {key: meta[key] for key in ("plan_hash",) if key in meta}
    checkpoint.save(out / "models", "best", state, kept)
    with of_run(run):
        scores = _scores(run, str(meta.get("phase", "")))
    if source.parent.parent.parent.name == "sites":  # one site's own weights: only it judged them
        scores = [row for row in scores if row["site"] == source.parent.parent.name]
    texts = {
        "configs/metadata.json": _json(_metadata(meta)),
        "configs/inference.json": _json(_inference()),
        "configs/preprocessing.json": _json(meta["preprocess"]),
        "labels.json": _json(_labels(meta["organs"])),
        "docs/README.md": _card(meta, scores),
    }
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(out / name, text)
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    sums = [f"{hashlib.sha256((out / p).read_bytes()).hexdigest()}  {p.as_posix()}" for p in files]
    replace_file(out / SUMS, "\n".join(sums) + "\n")
    return [*files, Path(SUMS)]


def network(root: str) -> torch.nn.Module:
    """The network of a bundle, its weights loaded, in evaluation mode. Called by MONAI.

    Args:
        root: folder of the bundle.
    """
    state, meta = checkpoint.load(Path(root) / "models" / "best.safetensors")
    organs, preprocess, settings = input_of(meta)
    model = build(settings, len(organs), preprocess.crop)
    load_unique(model, state)
    return model.eval()


def run(root: str, source: str, output: str, formats: Sequence[str] | str = ("nrrd",)) -> int:
    """What `monai.bundle run` does: `hnfed predict` with the bundle's model.

    Args:
        root: folder of the bundle.
        source: CT, or folder of CTs.
        output: folder for the contours.
        formats: as for `hnfed predict`; a list, or names joined by commas.
    """
    chosen = formats.split(",") if isinstance(formats, str) else list(formats)
    for name in chosen:
        if name not in CONTOUR_FORMATS:
            raise UserError("formats", name, f"use {', '.join(CONTOUR_FORMATS)}")
    return predict(Path(source), Path(output), Choice((root,)), formats=chosen)


def _metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    organs, crop = list(meta["organs"]), list(meta["preprocess"]["crop"])
    low, high = meta["preprocess"]["window_hu"]
    used = versions()
    channels = {"0": "background"} | {str(i): o for i, o in enumerate(organs, start=1)}
    return {
        "schema": SCHEMA_URL,
        "version": hnfed_version(),
        "changelog": {hnfed_version(): f"phase {meta.get('phase')}, round {meta.get('round')}"},
        "monai_version": used.get("monai", ""),
        "pytorch_version": used.get("torch", ""),
        "numpy_version": used.get("numpy", ""),
        "required_packages_version": {"hnfed": hnfed_version()},
        "task": "Segmentation of organs at risk on head-and-neck CT",
        "description": f"{', '.join(organs)}; trained across institutions with hnfed",
        "authors": "the institutions of the federation",
        "copyright": "the institutions of the federation",
        "data_type": "nrrd, nifti, dicom",
        "intended_use": USE,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": crop,
                    "dtype": "float32",
                    "value_range": [-1, 1],
                    "is_patch_data": False,
                    "channel_def": {"0": f"HU, window {low:g} to {high:g} scaled to -1 to 1"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1 + len(organs),
                    "spatial_shape": crop,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": channels,
                }
            },
        },
    }


def _inference() -> dict[str, Any]:
    return {
        "bundle_root": ".",
        "input": "ct.nrrd",
        "output": "contours",
        "formats": ["nrrd"],
        "network_def": {"_target_": "hnfed.predict.monai_bundle.network", "root": "@bundle_root"},
        "run": [
            {
                "_target_": "hnfed.predict.monai_bundle.run",
                "root": "@bundle_root",
                "source": "@input",
                "output": "@output",
                "formats": "@formats",
            }
        ],
    }


def _labels(organs: Sequence[str]) -> dict[str, Any]:
    return {
        organ: {
            "label": i,
            "tg263": organ if organ in BUILT_IN else None,
            "colour": list(BUILT_IN[organ].colour) if organ in BUILT_IN else [200, 200, 200],
        }
        for i, organ in enumerate(organs, start=1)
    }


def _scores(run: Path, phase: str) -> list[dict[str, Any]]:
    """Published test scores of the phase: a row a site and organ, of known numbers alone.

    Intervals where the cases are at hand: in a simulation. The folder may come from anywhere, and
    nothing is escaped on the card.
    """
    if not (run / "metrics.json").is_file():  # a site's own folder
        return []
    folder = read_run(run, pictures=False)
    rows = []
    for block in folder.metrics.get("phases", []):
        if block.get("name") != phase:
            continue
        for site, splits in block.get("sites", {}).items():
            for organ, cell in splits.get("test", {}).items():
                row: dict[str, Any] = {key: number(cell.get(key)) for key in FIGURES}
                row |= {"site": site, "organ": organ, "low": None, "high": None}
                cases = folder.tests.get((site, phase), ())
                values = [case.dice for case in cases if case.organ == organ]
                if row["n"] and len(values) == row["n"]:
                    found = estimate([[value] for value in values])
                    row |= {"low": found.low, "high": found.high}
                rows.append(row)
    return rows


def _card(meta: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> str:
    text = resources.files("hnfed.predict").joinpath("bundle_card.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(  # Markdown, no page: nothing to escape
        autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(text)
    organs = list(meta["organs"])
    sites = sorted({row["site"] for row in scores})
    return template.render(meta=meta, organs=organs, scores=scores, sites=sites, use=USE)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
