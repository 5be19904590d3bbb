"""A site with its kit, five small patients, and a wire that a test holds the end of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.plan.load import plan_json
from core.plan.schema import Plan
from core.wire.messages import Order
from core.wire.partition import fingerprint, start_state
from core.wire.state import packed, unpacked
from hnfed.deploy.node import house_of
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.approvals import approve, installed
from hnfed.guard.fleet import Arrival, Run
from hnfed.guard.kit import Kit, read_kit
from hnfed.guard.node import Desk, House
from tests.client.conftest import tiny_phase, tiny_plan, write_case

ORGANS = ("Brainstem", "Parotid_L")
LENIENT = (
    "weights: any", "min_cell: 1", "fewest_cases: 1", "fewest_cases_organ: 1", "fewest_steps: 1",
    "least_augmentation: 0", "fewest_voxels_channel: 1", "models: any", "largest_clip_norm: 1000",
    "longest_s: 600",
)  # fmt: skip


@pytest.fixture(scope="session")
def own_bundle() -> bytes:
    return installed()


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients in PDDCA's layout; three of them train."""
    root = tmp_path_factory.mktemp("patients")
    lines = ["case,split"]
    for i, split in enumerate(("train", "train", "train", "val", "test")):
        write_case(root / f"DOE_Jane_{i}", i, ORGANS)
        lines.append(f"DOE_Jane_{i},{split}")
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root


@dataclass
class Said:
    config: dict[str, Any]
    metrics: dict[str, Any]
    parcel: bytes

    @property
    def code(self) -> str:
        return str(self.config["code"])

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return unpacked(self.parcel)


@dataclass
class Wire:
    """Stands for the connection: what the server would send, and what came back."""

    bundle_content: bytes
    config: dict[str, Any]
    records: dict[str, Any] = field(default_factory=dict)
    sent: list[Said] = field(default_factory=list)
    confirmed: int = 0
    pulled: int = 0
    most_bytes: int = 0

    def run(self, arrival: Arrival) -> Run:
        return Run("0" * 64, self.config)

    def bundle(self, arrival: Arrival, run: Run) -> bytes:
        return self.bundle_content

    def content(self, arrival: Arrival, most_bytes: int) -> dict[str, Any]:
        self.pulled += 1
        self.most_bytes = most_bytes
        return self.records

    def confirm(self, arrival: Arrival) -> None:
        self.confirmed += 1

    def send(self, arrival: Arrival, config: Any, metrics: Any, parcel: bytes, **_: Any) -> None:
        self.sent.append(Said(dict(config), dict(metrics), parcel))


class Hospital:
    """A site, its guard, and the wire."""

    def __init__(self, folder: Path, patients: Path, bundle: bytes, plan: Plan) -> None:
        self.folder = folder
        provision(Federation("hn", "x", 1, 2, ("north",), 30), folder / "kits")
        self.kit: Kit = read_kit(folder / "kits" / "north", "site")
        approve(self.kit, hashlib.sha256(bundle).hexdigest(), bundle)
        self.site_file = folder / "site.yaml"
        self.site_file.write_text(
            f"name: north\nroot: {patients}\nformat: pddca\ncache: {folder}/cache\n"
            f"state: {folder}/state\ndevice: cpu\n"
        )
        self.said: list[str] = []
        self.house: House = house_of(self.kit, self.site_file, self.said.append)
        self.policy(*LENIENT)
        self.plan = plan
        self.wire = Wire(bundle, self.settings(plan))
        self.desk = Desk(self.house, self.wire)  # type: ignore[arg-type]

    @property
    def state(self) -> Path:
        return self.house.state

    @property
    def log(self) -> str:
        path = self.state / "client.log"
        return path.read_text() if path.is_file() else ""

    def policy(self, *lines: str) -> None:
        (self.kit.folder / "policy.yaml").write_text("\n".join(lines) + "\n")

    def settings(self, plan: Plan, run: str = "r-000001") -> dict[str, Any]:
        empty = dict.fromkeys(("out", "resume", "tracking", "local"), "")
        return {"plan": plan_json(plan), "run_id": run, **empty}

    def ask(self, kind: str, order: dict[str, Any] | None = None, **parcels: bytes) -> Said:
        """One message through the guard; the reply that left."""
        query = {"run": "r-000001", "fingerprint": fingerprint()}
        self.wire.records = {"order": query if order is None else order, **parcels}
        message = SimpleNamespace(metadata=SimpleNamespace())
        tree = SimpleNamespace(object_id="0" * 64)
        self.desk.handle(Arrival(kind, 7, message, tree))  # type: ignore[arg-type]
        return self.wire.sent[-1]

    def order(self, round_: int = 1, task: str = "train", phase: str = "p", **more: Any) -> Any:
        made = Order("r-000001", phase, round_, task, fingerprint=fingerprint())
        return replace(made, **more).to_config()

    def start(self) -> bytes:
        return packed(start_state(self.plan, self.plan.phases[0], None))


@pytest.fixture
def hospital(tmp_path: Path, patients: Path, own_bundle: bytes) -> Hospital:
    """A site with our own bundle approved, and a plan of one shared phase."""
    return Hospital(tmp_path, patients, own_bundle, tiny_plan(tiny_phase(organs=list(ORGANS))))
