from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from simulations import cluster_nodes
from simulations.cluster import Cluster
from simulations.cluster_nodes import SAME, look, require_shared

AT = Cluster("10.0.0.1:6379")


class Nodes:
    """What two nodes answer: the second as told, without the paths that hold `lacks`."""

    def __init__(self, lacks: str = "\0", **told: Any) -> None:
        self.lacks, self.told = lacks, told
        self.asked: list[str] = []

    def __call__(self, cluster: Cluster, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert cluster == AT
        self.asked = list(asked["paths"])
        assert all(Path(path).exists() for path in self.asked)
        first = {**look(self.asked, SAME), "resources": {"CPU": 4.0}}
        missing = [path for path in self.asked if self.lacks in path]
        return {"10.0.0.1 (a)": first, "10.0.0.2 (b)": {**first, "missing": missing, **self.told}}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("run", "cache", "archive")]
    for folder in made:
        folder.mkdir()
    return made


def required(
    nodes: Nodes, folders: list[Path], monkeypatch: pytest.MonkeyPatch, **needs: float
) -> None:
    monkeypatch.setattr(cluster_nodes, "_asked", nodes)
    require_shared(AT, folders[:2], folders[2:], {"CPU": 1.0, **needs})


def test_nodes_that_see_all_are_taken_and_nothing_is_left_behind(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes()
    required(nodes, folders, monkeypatch)
    assert len(nodes.asked) == 3
    assert [list(folder.iterdir()) for folder in folders] == [[], [], []]


@pytest.mark.parametrize("name", ["run", "cache", "archive"])
def test_a_path_that_is_not_shared_is_named_with_its_node(
    folders: list[Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = [f for f in folders if f.name == name]
    with pytest.raises(UserError) as caught:
        required(Nodes(lacks=f"/{name}"), folders, monkeypatch)
    assert caught.value.field == "simulation.ray"
    assert caught.value.value == "node 10.0.0.2 (b)"
    assert caught.value.problem == f"{folder} is not there, or is another folder than here"


def test_a_node_without_hnfed_or_with_another_torch_is_named(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"node 10\.0\.0\.2 \(b\): No module named"):
        required(Nodes(error="No module named 'simulations'"), folders, monkeypatch)
    ours = look([], SAME)["versions"]
    other = {**ours, "torch": "1.0.0"}
    with pytest.raises(UserError, match=r"node 10\.0\.0\.2 \(b\): torch 1\.0\.0 there"):
        required(Nodes(versions=other), folders, monkeypatch)
    build = {**ours, "torch": ours["torch"].partition("+")[0] + "+cu130"}
    required(Nodes(versions=build), folders, monkeypatch)


def test_a_site_that_fits_no_node_is_refused(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"simulation\.cpus_per_site = 5.*has 4 CPUs"):
        required(Nodes(), folders, monkeypatch, CPU=5.0)
    with pytest.raises(UserError, match=r"simulation\.gpus_per_site = 0\.5.*has 0 GPUs"):
        required(Nodes(), folders, monkeypatch, GPU=0.5)


def test_a_node_tells_what_it_lacks_and_what_it_has(tmp_path: Path) -> None:
    seen = look([str(tmp_path), str(tmp_path / "x")], ["torch", "no-such-package"])
    assert seen["missing"] == [str(tmp_path / "x")]
    assert seen["versions"]["torch"][0].isdigit()
    assert seen["versions"]["no-such-package"] == "none"
