"""A running Ray cluster that a simulation, or the cells of a study, join; looked at before.

Who reaches an open cluster can run code on it, so one that asks for no token is refused. What is
asked here is asked over gRPC alone: Ray's own library ends the process where versions differ.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from core.errors import UserError
from core.plan.schema import Simulation

ANSWER_SECONDS = 8.0  # three questions at most: within 30 s it is known what is wrong
OPEN, CLOSED = "RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token"
# Ray keeps its settings here; of those that others have set, joining needs the token alone.
TOKEN, TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
VALUE = "/ray.rpc.InternalKVGcsService/InternalKVGet"
FIELD = "simulation.ray"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that answered.

    Attributes:
        address: HOST:PORT of its head.
        is_open: it asks for no token, and the configuration takes that.
    """

    address: str
    is_open: bool = False

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """What a process that joins it has in its environment, made of that of this one."""
        kept = {n: v for n, v in given.items() if not n.startswith("RAY_")}
        tokens = {n: given[n] for n in (TOKEN, TOKEN_FILE) if n in given and not self.is_open}
        mode = dict([(OPEN if self.is_open else CLOSED).split("=")])
        return {**kept, **tokens, **mode, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0",
                "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}  # fmt: skip


def cluster_of(simulation: Simulation, *, needed: bool = False) -> Cluster | None:
    """The cluster that a configuration names, reached and found fit; None where it names none.

    Args:
        simulation: of the configuration.
        needed: without a name the cluster that this machine belongs to is taken, as by ``auto``.

    Raises:
        UserError: no cluster answers there, it asks for no token, it takes none of ours, or it has
            another Ray or Python.
    """
    address = simulation.ray or ("auto" if needed else "")
    if not address:
        return None
    if address == "auto":
        address = address_here()
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        is_open = _answers(channel, address, "")
        token = "" if is_open else own_token(address)
        if token and not _answers(channel, address, token):
            problem = "this cluster has another token than ours"
            raise UserError(FIELD, address, _token_remedy(), problem=problem)
        _require_versions(address, _metadata(channel, address, token))
    if is_open and not simulation.ray_insecure:
        raise UserError(
            FIELD,
            address,
            f"start the cluster with {CLOSED} on each node, and with one token for all; or set "
            "simulation.ray_insecure=true where nobody else reaches it",
            problem="it asks for no token: whoever reaches this address can run code there",
        )
    return Cluster(address, is_open)


def address_here() -> str:
    """HOST:PORT of the cluster that this machine belongs to, as Ray finds it.

    Raises:
        UserError: it belongs to none.
    """
    from ray._private.services import get_ray_address_from_environment

    try:
        found: str = get_ray_address_from_environment("auto", None)
    except ConnectionError:
        remedy = "start Ray on this machine (ray start), or give HOST:PORT of the cluster's head"
        raise UserError(FIELD, "auto", remedy, problem="no Ray runs here") from None
    return found


def own_token(address: str) -> str:
    """The token of this account, from where Ray looks for it, in its order.

    Raises:
        UserError: there is none.
    """
    if given := os.environ.get(TOKEN, "").strip():
        return given
    path = Path(os.environ.get(TOKEN_FILE) or Path.home() / ".ray" / "auth_token")
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token:
        problem = f"this cluster asks for a token, and there is none in {path}"
        raise UserError(FIELD, address, _token_remedy(), problem=problem)
    return token


def _token_remedy() -> str:
    return f"put the cluster's token into ~/.ray/auth_token, or name its file in {TOKEN_FILE}"


def _answers(channel: grpc.Channel, address: str, token: str) -> bool:
    """Whether the head tells its nodes to whoever has that token ("": none).

    Raises:
        UserError: nothing answers, or something that is no head of a Ray cluster.
    """
    gcs = _messages()
    try:
        _call(
            channel, NODES, gcs.GetAllNodeInfoRequest(), gcs.GetAllNodeInfoReply.FromString, token
        )
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise _no_cluster(address, error) from None
    return True


def _metadata(channel: grpc.Channel, address: str, token: str) -> dict[str, Any]:
    gcs = _messages()
    wanted = gcs.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
    try:
        reply = _call(channel, VALUE, wanted, gcs.InternalKVGetReply.FromString, token)
        found = json.loads(reply.value or b"{}")
    except grpc.RpcError as error:
        raise _no_cluster(address, error) from None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _messages() -> Any:
    """Of the head's services; Ray makes these classes as it is imported, and types know none."""
    return importlib.import_module("ray.core.generated.gcs_service_pb2")


def _call(
    channel: grpc.Channel, method: str, request: Any, read: Callable[[bytes], Any], token: str
) -> Any:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    call = channel.unary_unary(method, lambda message: message.SerializeToString(), read)
    return call(request, timeout=ANSWER_SECONDS, metadata=metadata)


def _no_cluster(address: str, error: grpc.RpcError) -> UserError:
    remedy = "give HOST:PORT of the head as `ray start --head` prints it (6379 by default), and "
    remedy += "look whether this machine reaches it"
    return UserError(
        FIELD, address, remedy, problem=f"no Ray cluster answers there ({error.code().name})"
    )


def _require_versions(address: str, metadata: Mapping[str, Any]) -> None:
    import ray

    here = {"Ray": ray.__version__, "Python": platform.python_version()}
    there = {"Ray": metadata.get("ray_version"), "Python": metadata.get("python_version")}
    if here == there:
        return
    words = [", ".join(f"{n} {v or 'unknown'}" for n, v in side.items()) for side in (there, here)]
    raise UserError(
        FIELD,
        address,
        "start the cluster from the environment that hnfed is installed in, the same on each node",
        problem=f"the cluster has {words[0]}; here are {words[1]}",
    )
