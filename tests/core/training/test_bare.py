"""Training needs torch, numpy and scipy; what reads images or networks elsewhere is not loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BARRED = (
    "SimpleITK", "monai", "flwr", "ray", "omegaconf", "yaml", "safetensors", "pydicom", "wandb",
)  # fmt: skip
BARE = f"""
import sys, tempfile
from pathlib import Path

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BARRED!r}:
            raise ImportError(f"{{name}} is barred", name=name)

sys.meta_path.insert(0, Barred())
import benchmarks.gpu
from benchmarks.gpu_steps import NETWORKS, cases, plan_of
from core.models.build import build
from core.organs.vocabulary import NINE
from core.plan.schema import Phase, Train
from core.training.engine import Epochs, train

crop = (16, 16, 16)
plan = plan_of(NETWORKS["res3dunet"], crop, Train())
model = build(plan.model, len(NINE), crop)
with tempfile.TemporaryDirectory() as folder:
    entries = cases(Path(folder), crop, 1)
    phase = Phase(name="p", organs=list(NINE))
    print(train(model, entries, plan, phase, "cpu", Epochs(0, 1, 0))[0].steps, "step")
try:
    build(NETWORKS["unetr"], len(NINE), crop)
except ImportError as error:
    print(error)
"""


def test_training_needs_torch_numpy_and_scipy() -> None:
    found = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    step, refused = found.stdout.splitlines()
    assert (step, refused.startswith("monai"), refused.endswith("barred")) == ("1 step", True, True)
