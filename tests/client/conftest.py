"""A tiny institution on disk: a cylinder in air with two bright balls, in PDDCA's layout."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import app
from core.archives.images.volume import write_image, write_mask
from core.archives.preparing import count_codes, keep, prepare
from core.data.cached_case import Entry
from core.data.geometry import Geometry
from core.data.site import Site, Source
from core.errors import Finding
from core.plan.load import plan_json
from core.plan.schema import Augment, Federation, Model, Phase, Plan, Preprocess, Train
from core.wire.messages import Order
from core.wire.partition import fingerprint, network, parts_of, start_state, state_hash
from core.wire.state import packed
from server.exchange import record_of

BALLS = {"Brainstem": ((13, 12, 12), 3.0, 150.0), "Parotid_L": ((10, 11, 16), 2.5, 260.0)}
SPLITS = ("train", "train", "train", "val", "test")
PATIENT = "DOE_Jane_1950"


def write_case(folder: Path, seed: int, organs: tuple[str, ...]) -> None:
    rng = np.random.default_rng(seed)
    size = (20, 24, 24)
    geometry = Geometry(size, (8.0, 8.0, 8.0), (10.0 * seed, -90.0, 5.0))
    z, y, x = np.indices(size)
    body = np.hypot((y - 12) / 8.0, (x - 12) / 9.0) < 1
    image = np.where(body, 20.0, -1000.0) + rng.normal(0, 10, size)
    for organ, (centre, radius, hu) in BALLS.items():
        middle = np.array(centre) + rng.uniform(-1, 1, 3)
        mask = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < radius**2
        image[mask] = hu
        if organ in organs:
            write_mask(folder / "structures" / f"{organ}.nrrd", mask, geometry)
    write_image(folder / "img.nrrd", image.astype(np.int16), geometry)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients named after `PATIENT`; the second annotates the brainstem only. Read only."""
    root = tmp_path_factory.mktemp("archive")
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "split"])
        for i, split in enumerate(SPLITS):
            organs = ("Brainstem",) if i == 1 else tuple(BALLS)
            write_case(root / f"{PATIENT}_{i}", i, organs)
            writer.writerow([f"{PATIENT}_{i}", split])
    return root


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def site(tmp_path: Path, archive: Path, shared_cache: Path) -> Site:
    """A site with a fresh state; the cache is shared, and filled once."""
    return Site(
        name="north",
        sources=(Source(root=str(archive)),),
        device="cpu",
        cache=shared_cache,
        run_folder=tmp_path / "state" / "run",
        base_folder=tmp_path / "state" / "base",
        secret=b"secret",
        simulated=True,
    )


@pytest.fixture
def prepared(site: Site, make_plan: Callable[..., Plan]) -> Site:
    _, findings = filled(site, make_plan())
    return replace(site, left_out=count_codes(findings))


def filled(site: Site, plan: Plan) -> tuple[tuple[Entry, ...], tuple[Finding, ...]]:
    """The site's cases, prepared as by installed code; what was found."""
    made = prepare(site, plan)
    keep(site, made)
    return made.entries, made.findings


def tiny_plan(*phases: Phase, **changes: Any) -> Plan:
    plan = Plan(
        preprocess=Preprocess(spacing_mm=[8.0, 8.0, 8.0], crop=[16, 16, 16]),
        augment=Augment(enabled=False),
        model=Model(channels=[4, 8]),
        train=Train(threads=1, deterministic=True, lr=0.01),
        federation=Federation(min_cell=1),
        phases=list(phases) or [tiny_phase()],
    )
    return replace(plan, **changes)


def tiny_phase(name: str = "p", **changes: Any) -> Phase:
    values = {"name": name, "sites": ["north"], "organs": list(BALLS), "rounds": 3}
    return Phase(**(values | changes))


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    return tiny_plan


@pytest.fixture(scope="session")
def make_phase() -> Callable[..., Phase]:
    return tiny_phase


MakePlan = Callable[..., Plan]
MakePhase = Callable[..., Phase]


class Node:
    """A site's side of the wire: orders in, replies out."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self.site = site
        self.plan = plan
        self.config: dict[str, Any] = {"plan": plan_json(plan), "run_id": "run", "local": "{}"}
        self.node_config: dict[str, Any] = {"partition-id": 0}

    @property
    def context(self) -> Context:
        return Context(
            run_id=1,
            node_id=2,
            node_config=self.node_config,
            state=RecordDict(),
            run_config=self.config,
        )

    def ask(
        self,
        kind: str,
        order: Order | None = None,
        bits: int = 32,
        **arrays: dict[str, torch.Tensor],
    ) -> Message:
        content: dict[str, Any] = {k: record_of(packed(v, bits)) for k, v in arrays.items()}
        content["order"] = ConfigRecord((order or self.order()).to_config())
        message = Message(RecordDict(content), 2, kind)
        message.metadata.__dict__["_message_id"] = "1"
        return app(message, self.context)

    def order(self, phase: str = "p", round_: int = 1, task: str = "train", **more: Any) -> Order:
        return Order("run", phase, round_, task, **({"fingerprint": fingerprint()} | more))

    def start(self, index: int = 0) -> dict[str, torch.Tensor]:
        return start_state(self.plan, self.plan.phases[index], None)

    def base(self, index: int = 0) -> tuple[dict[str, torch.Tensor], str]:
        phase = self.plan.phases[index]
        names = parts_of(network(self.plan, phase), self.plan, phase).base
        base = {n: self.start(index)[n] for n in names}
        return base, state_hash(base)


@pytest.fixture
def node(
    prepared: Site, make_plan: MakePlan, task_identity: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Node]:
    """Makes nodes that find the site of the test."""

    def make(*phases: Phase) -> Node:
        made = Node(prepared, make_plan(*phases))
        monkeypatch.setattr("client.app.simulated_site", lambda *a: made.site)
        return made

    return make


MakeNode = Callable[..., Node]


def code(reply: Message) -> str:
    return str(reply.content["header"]["code"])


def everything(reply: Message) -> bytes:
    """Every byte of a reply that is text, number or array."""
    parts = [repr(reply.metadata).encode()]
    for key, record in reply.content.items():
        parts.append(key.encode())
        if isinstance(record, ArrayRecord):
            parts += [k.encode() + v.data for k, v in record.items()]
        else:
            parts.append(repr(dict(record)).encode())
    return b"\n".join(parts)


def order(round_: int = 1, task: str = "train", **changes: Any) -> Order:
    return Order("run", "p", round_, task, **changes)


def start(plan: Plan) -> dict[str, torch.Tensor]:
    return start_state(plan, plan.phases[0], None)


def watched(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, pick: Callable[..., Any]
) -> list[Any]:
    """What `pick` takes of the arguments of each call of `module.NAME`, call by call."""
    given: list[Any] = []
    real = getattr(module, name)

    def watch(*args: Any, **options: Any) -> Any:
        given.append(pick(*args, **options))
        return real(*args, **options)

    monkeypatch.setattr(module, name, watch)
    return given
