"""The site's connection to the server's SuperLink: the one file here with Flower's private imports.

Flower's own node starts programs for the code that it is sent, and listens on a port for them. Here
is its protocol alone: messages, runs and app bundles come in as values, each within a bound that
is kept while it is read; nothing is unpacked, started or written.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_CALL_TIMEOUT, HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import (
    fab_from_proto,
    message_from_proto,
    message_to_proto,
    run_from_proto,
)
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext, _wrap_interceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

FLOWER = "1.42"  # whose protocol this is; tests/hnfed/guard/test_fleet.py fails when Flower moves
MIB = 2**20
MOST_BUNDLE = 10 * MIB
MOST_OBJECT = 6 * MIB  # Flower cuts arrays at 5 MiB
MOST_OF = {"GetFab": MOST_BUNDLE + MIB, "PullObject": MOST_OBJECT, "GetRun": 4 * MIB}
MOST = MIB  # bytes of any other answer
MOST_NODES, DEEPEST = 20_000, 8  # of a message's tree of objects
CALL_SECONDS, ANSWER_SECONDS = 30.0, 300.0  # of silence within an answer; of a whole one
PATIENCE_SECONDS = 240.0  # a server that cannot be reached for longer: the node begins anew
OBJECT_SECONDS = 600.0  # how long the server may take to have all objects of a message
AT_ONCE = 2  # requests
LONGEST_DELAY = 8.0
ARRAY = "weights"  # the one array of a record, a parcel of tensors


class FleetError(RuntimeError):
    """The server cannot be reached, refuses this node, or sends what no server of ours does."""


class MessageError(FleetError):
    """A message or bundle of another form or size than any of ours; the connection is sound."""


class RunOverError(FleetError):
    """The run has ended meanwhile; nobody waits for an answer."""


@dataclass(frozen=True)
class Arrival:
    """A message that has come; of its content nothing is here yet.

    Attributes:
        kind: Flower's type of the message; not checked.
        run: Flower's number of the run.
        message, tree: Flower's own.
    """

    kind: str
    run: int
    message: Message = field(repr=False)
    tree: ObjectTree = field(repr=False)


@dataclass(frozen=True)
class Run:
    """What the server says of a run.

    Attributes:
        bundle: Flower's name of the app bundle, a hash; not checked.
        config: run configuration that was given with it.
    """

    bundle: str
    config: Mapping[str, Any]


Content = dict[str, dict[str, Any] | bytes]


class Connection:
    """To the SuperLink, as an activated node; made by `connect`.

    Attributes:
        node: Flower's number of this node.
    """

    def __init__(
        self, client: FleetHttpClient, public_key: bytes, heard: Callable[[], None]
    ) -> None:
        self._client = client
        self._heard = heard
        self._over = threading.Event()
        self._lost = ""
        answer = self._ask(
            client.ActivateNode,
            ActivateNodeRequest(
                public_key=public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
            ),
        )
        self._node = Node(node_id=answer.node_id)
        self.node = int(answer.node_id)
        threading.Thread(target=self._beat, daemon=True).start()

    def receive(self) -> Arrival | None:
        """The next message; None where none waits.

        Raises:
            FleetError: the server cannot be reached, or does not know this node any more.
        """
        if self._lost:
            raise FleetError(self._lost)
        answer = self._ask(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list or not answer.message_object_trees:
            return None
        try:
            message = message_from_proto(answer.messages_list[0])
        except Exception as error:  # whatever its parser stumbles over
            raise FleetError(f"a message of another form ({type(error).__name__})") from error
        kind, run = message.metadata.message_type, message.metadata.run_id
        return Arrival(str(kind), int(run), message, answer.message_object_trees[0])

    def run(self, arrival: Arrival) -> Run:
        """What the server says of a message's run."""
        request = GetRunRequest(node=self._node, run_id=arrival.run)
        run = run_from_proto(self._ask(self._client.GetRun, request).run)
        return Run(str(run.fab_hash), dict(run.override_config))

    def bundle(self, arrival: Arrival, run: Run) -> bytes:
        """The run's app bundle, unopened."""
        request = GetFabRequest(node=self._node, hash_str=run.bundle, run_id=arrival.run)
        content = fab_from_proto(self._ask(self._client.GetFab, request).fab).content
        if len(content) > MOST_BUNDLE:
            raise MessageError("a app bundle larger than any of ours")
        return content

    def content(self, arrival: Arrival, most_bytes: int) -> Content:
        """Pulls what a message holds, and confirms it.

        Args:
            arrival: from `receive`.
            most_bytes: that all of it may take; counted while it comes in, and again before arrays
                are put together from their pieces.

        Returns:
            By record: the values of a record of settings or numbers, or an array's bytes.

        Raises:
            FleetError: it is larger, or of another form.
        """
        names = list(dict.fromkeys(_names(arrival.tree)))
        pulled = self._pull(arrival.run, names, most_bytes)
        self.confirm(arrival)
        return _records(arrival.tree.object_id, pulled, most_bytes)

    def confirm(self, arrival: Arrival) -> None:
        """Tells the server that a message need not be kept."""
        request = ConfirmMessageReceivedRequest(
            node=self._node, run_id=arrival.run, message_object_id=arrival.tree.object_id
        )
        self._ask(self._client.ConfirmMessageReceived, request)

    def send(
        self,
        arrival: Arrival,
        config: Mapping[str, Any],
        metrics: Mapping[str, Any],
        parcel: bytes = b"",
        *,
        seconds: float = 0.0,
    ) -> None:
        """Answers a message.

        Args:
            arrival: from `receive`.
            config: settings of the record ``header``.
            metrics: numbers of the record ``metrics``.
            parcel: the array of the record ``arrays``; none where it is empty.
            seconds: that the work took.
        """
        content = RecordDict(
            {"header": ConfigRecord(dict(config)), "metrics": MetricRecord(dict(metrics))}
        )
        if parcel:
            array = Array("uint8", (len(parcel),), "safetensors", parcel)
            content["arrays"] = ArrayRecord({ARRAY: array})
        reply = Message(content, reply_to=arrival.message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[seconds],
            )
            answer = self._ask(self._client.PushMessages, request)
            objects = get_all_nested_objects(reply)
            wanted = {n: objects[n].deflate() for n in answer.objects_to_push if n in objects}

        def push(name: str) -> None:
            request = PushObjectRequest(
                node=self._node,
                run_id=arrival.run,
                object_id=name,
                object_content=wanted[name],
                session_id=answer.session_id,
            )
            if not self._ask(self._client.PushObject, request).stored:
                raise FleetError("the server did not take a part of the reply")

        _at_once(push, list(wanted))

    def close(self) -> None:
        """Says good-bye, as far as the server listens."""
        self._over.set()
        with contextlib.suppress(httpx.HTTPError, RuntimeError, ValueError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node))
        self._client.close()

    def _pull(self, run: int, names: list[str], most_bytes: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        lock, total = threading.Lock(), 0
        limit = time.monotonic() + OBJECT_SECONDS

        def pull(name: str) -> None:
            nonlocal total
            request = PullObjectRequest(node=self._node, run_id=run, object_id=name)
            while not (answer := self._ask(self._client.PullObject, request)).object_available:
                if not answer.object_found or time.monotonic() > limit:
                    raise FleetError("the server lacks a part of the message")
                time.sleep(1.0)
            with lock:
                total += len(answer.object_content)
                if total > most_bytes:
                    raise MessageError(f"a message of more than {most_bytes} bytes")
                found[name] = answer.object_content

        _at_once(pull, names)
        return found

    def _ask(self, call: Callable[[Any], Any], request: Any) -> Any:
        """One call, made again while the server cannot be reached."""
        begun, delay = time.monotonic(), 1.0
        while True:
            try:
                answer = call(request)
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
                if "certificate" in said.lower():
                    raise FleetError(said) from error
            except httpx.HTTPStatusError as error:
                said = _words(error)
                if error.response.status_code == httpx.codes.FORBIDDEN:
                    raise RunOverError(said) from error
                if error.response.status_code not in (429, 502, 503, 504):
                    raise FleetError(said) from error
            except httpx.DecodingError as error:
                raise MessageError(str(error)) from error
            except ValueError as error:
                raise FleetError("an answer of another form") from error
            else:
                self._heard()
                return answer
            if time.monotonic() - begun > PATIENCE_SECONDS or self._over.is_set():
                raise FleetError(said)
            time.sleep(delay * random.uniform(0.8, 1.2))
            delay = min(2 * delay, LONGEST_DELAY)

    def _beat(self) -> None:
        """Tells the server at intervals that this node is there."""
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        wait = 0.0
        while not self._over.wait(wait):
            wait = (HEARTBEAT_DEFAULT_INTERVAL - HEARTBEAT_CALL_TIMEOUT) * random.uniform(0.7, 0.9)
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self._lost = "the server does not know this node any more"
                    return
                self._heard()
            except httpx.HTTPStatusError as error:
                if error.response.status_code in (401, 403):
                    self._lost = _words(error)
                    return
                wait = 5.0
            except (httpx.HTTPError, ValueError, RuntimeError):
                wait = 5.0


def connect(
    address: str,
    key: ec.EllipticCurvePrivateKey,
    options: Mapping[str, Any],
    *,
    heard: Callable[[], None] = lambda: None,
) -> Connection:
    """Dials the server and activates this node.

    Args:
        address: ``host:port``.
        key: the node's private key.
        options: arguments of `httpx.Client`: ``verify``, what proves the server to this site and
            this site to the server; a proxy.
        heard: called, by any thread, whenever the server has answered.

    Raises:
        FleetError: it cannot be reached for some minutes, or refuses the key.
    """
    public = key.public_key()
    client = _Client(
        f"https://{address}",
        [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, public)],
        options,
    )
    return Connection(client, public_key_to_bytes(public), heard)


class _Client(FleetHttpClient):
    """Flower's client with a bound on every answer, and no redirection or compression."""

    def __init__(self, url: str, interceptors: list[Any], options: Mapping[str, Any]) -> None:
        super().__init__(url, interceptors=interceptors, verify=options["verify"])
        self._client.close()
        self._client = httpx.Client(
            timeout=CALL_SECONDS,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            **options,
        )

    def _send(self, context: ProtobufRequestContext, *, stream: bool = False) -> httpx.Response:
        most = MOST_OF.get(context.rpc_method.rpartition("/")[2], MOST)

        def send(current: ProtobufRequestContext) -> httpx.Response:
            return bounded(self._client.send(current.request, stream=True), most)

        call: Callable[[ProtobufRequestContext], httpx.Response] = send
        for interceptor in reversed(self._interceptors):
            call = _wrap_interceptor(interceptor, call)
        return call(context)


def bounded(response: httpx.Response, most: int) -> httpx.Response:
    """The answer, read to its end, of at most so many bytes and so many seconds.

    Raises:
        httpx.HTTPError: it is longer, or compressed.
    """
    limit, content = time.monotonic() + ANSWER_SECONDS, bytearray()
    try:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.DecodingError("a compressed answer", request=response.request)
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > most or time.monotonic() > limit:
                raise httpx.DecodingError("an answer without end", request=response.request)
    finally:
        response.close()
    headers = [(k, v) for k, v in response.headers.multi_items() if k != "content-length"]
    return httpx.Response(
        response.status_code, headers=headers, content=bytes(content), request=response.request
    )


def _words(error: httpx.HTTPStatusError) -> str:
    """What Flower says of a refusal: its number and its public words."""
    told = FlowerError.from_json(error.response.text)
    known = f" [code: {told.code}] {told.message[:200]}" if told is not None else ""
    return f"HTTP {error.response.status_code}{known}"


def _at_once(work: Callable[[str], None], names: list[str]) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    try:
        for done in concurrent.futures.as_completed([pool.submit(work, n) for n in names]):
            done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _names(tree: ObjectTree, depth: int = 0, seen: list[int] | None = None) -> Iterator[str]:
    """Names of a tree's objects, of which there are not too many."""
    seen = [0] if seen is None else seen
    seen[0] += 1
    if depth > DEEPEST or seen[0] > MOST_NODES:
        raise MessageError("a message of too many parts")
    for child in tree.children:
        yield from _names(child, depth + 1, seen)
    yield tree.object_id


def _records(name: str, pulled: dict[str, bytes], most_bytes: int) -> Content:
    """The records of a message from its objects."""
    try:
        for content in pulled.values():
            validate_object_content(content)
        _require_small(pulled, most_bytes)
        message = inflate_object_from_contents(name, pulled)
        if not isinstance(message, Message) or not message.has_content():
            raise ValueError("no content")
        return {key: _plain(record) for key, record in message.content.items()}
    except MessageError:
        raise
    except Exception as error:  # whatever its parser stumbles over
        raise MessageError(f"a message of another form ({type(error).__name__})") from error


def _require_small(pulled: Mapping[str, bytes], most_bytes: int) -> None:
    """An array names its pieces one by one, and may name one piece a thousand times."""
    total = 0
    for content in pulled.values():
        kind, children, length = get_object_head_values_from_object_content(content)
        if kind == "Array":
            listed = json.loads(content[len(content) - length :])["arraychunk_ids"]
            total += sum(len(pulled[children[index]]) for index in listed)
        if total > most_bytes:
            raise MessageError(f"a message of more than {most_bytes} bytes")


def _plain(record: Any) -> dict[str, Any] | bytes:
    if isinstance(record, ConfigRecord | MetricRecord):
        return dict(record)
    (array,) = record.values()
    data: bytes = array.data
    return data
