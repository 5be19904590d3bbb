"""What each node of a Ray cluster sees: the folders that a run shares, and hnfed itself.

`require_shared` starts `simulations.cluster_visit`, which joins the cluster, asks and leaves.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import UserError
from simulations.cluster import FIELD, Cluster

NODE_SECONDS, PROCESS_SECONDS = 60.0, 100.0
SAME = ("torch", "flwr", "numpy")  # other versions of these would give other weights
ROOT = Path(__file__).resolve().parents[1]
VISIT = ROOT / "simulations" / "cluster_visit.py"
Seen = dict[str, Any]


def require_shared(
    cluster: Cluster, written: Sequence[Path], read: Sequence[Path], needs: Mapping[str, float]
) -> None:
    """Requires that every node of a cluster has the folders of a run, and room for a site.

    Args:
        cluster: that answered.
        written: folders that exist here and are written to: they must be the very same there.
        read: folders that must exist there.
        needs: ``CPU`` and ``GPU`` of one site, or of one cell.

    Raises:
        UserError: names the node, and the first path that it lacks.
    """
    with ExitStack() as stack:
        marks = [stack.enter_context(_mark(folder)) for folder in written]
        asked = {"address": cluster.address, "paths": [str(p) for p in [*marks, *read]]}
        answer = _asked(cluster, asked)
    here = look([], SAME)
    for node, seen in answer.items():
        if "error" in seen:
            raise _unfit(node, seen["error"], "install the same hnfed there, at the same path")
        for path in seen["missing"]:
            folder = Path(path).parent if Path(path) in marks else Path(path)
            remedy = "put it on a path that all nodes share, or stop Ray on that node"
            raise _unfit(node, f"{folder} is not there, or is another folder than here", remedy)
        for name in SAME:
            there, ours = (s["versions"][name] for s in (seen, here))
            if _plain(there) != _plain(ours):
                remedy = "install the same versions on all nodes"
                raise _unfit(node, f"{name} {there} there, {ours} here", remedy)
    for name, key in (("CPU", "simulation.cpus_per_site"), ("GPU", "simulation.gpus_per_site")):
        most = max((float(seen["resources"].get(name, 0)) for seen in answer.values()), default=0)
        if needs.get(name, 0) > most:
            problem = f"the largest node of the cluster at {cluster.address} has {most:g} {name}s"
            raise UserError(key, needs[name], f"give at most {most:g}", problem=problem)


def look(paths: Sequence[str], packages: Sequence[str]) -> Seen:
    """What this machine has of these paths and packages; runs on each node."""
    versions = {}
    for name in packages:
        versions[name] = "none"
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"missing": [p for p in paths if not os.path.exists(p)], "versions": versions}


def joined(cluster: Cluster, variables: Mapping[str, str]) -> None:
    """Joins the cluster with this process, whose environment is `Cluster.environment`'s.

    Args:
        cluster: that answered.
        variables: environment of what this process starts there.

    Raises:
        UserError: this machine is no node of it.
    """
    import ray

    try:
        ray.init(address=cluster.address, runtime_env={"env_vars": dict(variables)})
    except (RuntimeError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"make this machine a node of it: ray start --address={cluster.address}"
        problem = f"it cannot be joined from here ({reason})"
        raise UserError(FIELD, cluster.address, remedy, problem=problem) from None


def python_path() -> str:
    """This process's, for those that it starts on other nodes."""
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, sys.path)]))


@contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """A file with a name that no other folder has."""
    path = folder / f".shared-{secrets.token_hex(8)}"
    path.touch(0o600)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _asked(cluster: Cluster, asked: Mapping[str, Any]) -> dict[str, Seen]:
    environment = cluster.environment(os.environ) | {"PYTHONPATH": python_path()}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(VISIT)], input=json.dumps(asked), env=environment, text=True,
            capture_output=True, timeout=PROCESS_SECONDS, check=False,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        problem = f"it cannot be joined from here within {PROCESS_SECONDS:g} s"
    except (IndexError, ValueError):
        problem = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
    else:
        if "unfit" not in found:
            return dict(found)
        problem = found["unfit"]
    remedy = f"make this machine a node of it: ray start --address={cluster.address}"
    raise UserError(FIELD, cluster.address, remedy, problem=problem)


def _unfit(node: str, problem: str, remedy: str) -> UserError:
    return UserError(FIELD, f"node {node}", remedy, problem=problem)


def _plain(version: str) -> str:
    """Without the name of a build: ``2.13.0+cpu`` computes as ``2.13.0``."""
    return version.partition("+")[0]


def ask(address: str, paths: Sequence[str]) -> dict[str, Seen]:
    """Asks every living node of the cluster, itself for `look`, which must be importable there.

    Returns:
        By the node's address what it sees and its resources, or ``error``.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    joined(Cluster(address), {"PYTHONPATH": python_path()})
    everything: Any = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in everything if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    answers = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        answers[node["NodeID"]] = task.options(scheduling_strategy=strategy).remote(paths, SAME)
    ready, _ = ray.wait(list(answers.values()), num_returns=len(nodes), timeout=NODE_SECONDS)
    found: dict[str, Seen] = {}
    for node in nodes:
        answer, seen = answers[node["NodeID"]], {"error": f"no answer in {NODE_SECONDS:g} s"}
        if answer in ready:
            try:
                seen = ray.get(answer)
            except Exception as error:
                seen = {"error": " ".join(str(error).split())[-200:]}
        name = node["NodeManagerAddress"]
        host = node["NodeManagerHostname"]
        found[f"{name} ({host})"] = {**seen, "resources": node["Resources"]}
    return found
