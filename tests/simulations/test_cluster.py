"""A Ray cluster is looked at before it is joined; the heads here are a few lines of gRPC."""

from __future__ import annotations

import importlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from core.errors import UserError
from core.plan.schema import Simulation
from simulations import cluster
from simulations.cluster import Cluster, cluster_of

SECRET = "1" * 64
SAME = {"ray_version": ray.__version__, "python_version": platform.python_version()}
Head = Callable[..., str]


@pytest.fixture
def head() -> Iterator[Head]:
    """Starts a head that wants a token ("": none) and tells these versions; returns its address."""
    gcs: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
    servers = []

    def start(token: str = SECRET, versions: dict[str, str] = SAME, *, ray_: bool = True) -> str:
        def answer(reply: Any) -> Any:
            def method(_: bytes, context: grpc.ServicerContext) -> bytes:
                given = dict(context.invocation_metadata()).get("authorization", "")
                if token and given != f"Bearer {token}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
                return bytes(reply.SerializeToString())

            return grpc.unary_unary_rpc_method_handler(method)

        value = gcs.InternalKVGetReply(value=json.dumps(versions).encode())
        services = {
            "ray.rpc.NodeInfoGcsService": {"GetAllNodeInfo": answer(gcs.GetAllNodeInfoReply())},
            "ray.rpc.InternalKVGcsService": {"InternalKVGet": answer(value)},
        }
        server = grpc.server(ThreadPoolExecutor(2))
        for name, methods in services.items() if ray_ else ():
            handler = grpc.method_handlers_generic_handler(name, methods)
            server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token."""
    for name in (cluster.TOKEN, cluster.TOKEN_FILE, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def refused(address: str, **more: Any) -> UserError:
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        cluster_of(Simulation(ray=address, **more))
    assert time.monotonic() - begun < 30
    assert caught.value.field == "simulation.ray"
    return caught.value


def test_without_an_address_nothing_is_asked() -> None:
    assert cluster_of(Simulation()) is None


@pytest.mark.parametrize("where", ["variable", "file", "home"])
def test_a_cluster_with_our_token_and_versions_is_joined(
    head: Head, home: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "variable":
        monkeypatch.setenv(cluster.TOKEN, SECRET)
    else:
        path = home / ".ray" / "auth_token" if where == "home" else home / "elsewhere"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{SECRET}\n")
        monkeypatch.setenv(cluster.TOKEN_FILE, str(path) if where == "file" else "")
    address = head()
    assert cluster_of(Simulation(ray=address)) == Cluster(address)


def test_without_the_token_or_with_another_it_is_refused(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = head()
    told = refused(address)
    assert "there is none in" in str(told)
    assert cluster.TOKEN_FILE in told.remedy
    monkeypatch.setenv(cluster.TOKEN, "2" * 64)
    assert "another token than ours" in str(refused(address))


def test_an_open_cluster_is_refused_unless_the_configuration_takes_it(head: Head) -> None:
    address = head("")
    told = refused(address)
    assert str(told.value) == address
    assert "asks for no token" in str(told)
    assert "RAY_AUTH_MODE=token" in told.remedy
    assert "simulation.ray_insecure=true" in told.remedy
    found = cluster_of(Simulation(ray=address, ray_insecure=True))
    assert found == Cluster(address, is_open=True)


@pytest.mark.parametrize(
    ("key", "other"), [("ray_version", "2.40.0"), ("python_version", "3.10.2")]
)
@pytest.mark.parametrize("token", ["", SECRET])
def test_another_ray_or_python_is_refused_with_both_versions(
    head: Head, key: str, other: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.TOKEN, SECRET)
    text = str(refused(head(token, {**SAME, key: other}), ray_insecure=True))
    assert other in text
    assert SAME[key] in text


def test_where_no_cluster_answers_it_is_said_in_time(head: Head) -> None:
    assert "no Ray cluster answers there (UNIMPLEMENTED)" in str(refused(head(ray_=False)))
    assert "no Ray cluster answers there (UNAVAILABLE)" in str(refused("127.0.0.1:9"))
    text = str(refused("nowhere.invalid:6379"))
    assert "no Ray cluster answers there" in text
    assert "versions" not in text


def test_auto_without_a_ray_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> str:
        raise ConnectionError

    monkeypatch.setattr("ray._private.services.get_ray_address_from_environment", none)
    assert "no Ray runs here" in str(refused("auto"))


def test_what_a_joining_process_is_told_of_ray_is_the_token_alone() -> None:
    given = {"PATH": "/bin", "RAY_ADDRESS": "x:1", "RAY_TMPDIR": "/x", cluster.TOKEN: SECRET}
    closed, is_open = Cluster("h:1").environment(given), Cluster("h:1", True).environment(given)
    for made in (closed, is_open):
        assert made["PATH"] == "/bin"
        assert not {"RAY_ADDRESS", "RAY_TMPDIR"} & set(made)
        assert made["RAY_USAGE_STATS_ENABLED"] == "0"
    assert (closed["RAY_AUTH_MODE"], closed[cluster.TOKEN]) == ("token", SECRET)
    assert is_open["RAY_AUTH_MODE"] == "disabled"
    assert cluster.TOKEN not in is_open
