"""The same by NVFlare: FedAvgRecipe in its simulator, three threads for three sites."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from benchmarks.peers import nvflare_client
from benchmarks.peers.task import ROUNDS, SITES, checksum

if __name__ == "__main__":
    recipes = importlib.import_module("nvflare.app_opt.pt.recipes.fedavg")
    recipe = recipes.FedAvgRecipe(
        name="small",
        min_clients=SITES,
        num_rounds=ROUNDS,
        model={"class_path": "benchmarks.peers.task.Network", "args": {}},
        train_script=str(Path(nvflare_client.__file__)),
    )
    workspace = Path(sys.argv[1])
    environment = importlib.import_module("nvflare.recipe").SimEnv(
        num_clients=SITES, num_threads=SITES, workspace_root=str(workspace)
    )
    recipe.execute(environment)
    found = sorted(workspace.rglob("FL_global_model.pt"))
    if not found:
        raise SystemExit("NVFlare wrote no model")
    saved = torch.load(found[-1], weights_only=True)
    checksum({n: torch.as_tensor(t) for n, t in saved["model"].items()})
