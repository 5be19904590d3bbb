"""A bare client of Flower's fleet API that shows whatever certificate and key it is told to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self
from unittest import mock

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode import node_auth_http_interceptor as signing
from flwr.supernode.fleet_http_client import FleetHttpClient

from hnfed.guard.kit import Kit, private_key, ssl_context
from hnfed.guard.proxy import http_options

BEAT_S = 30.0


class Fleet:
    """As much of a node as connects.

    Args:
        kit: says where the server is; its certificate and key are shown unless others are given.
        context: another TLS context.
        key: another key to sign with.
        host: another name to dial.
        proxy: by which the server is reached, see `hnfed.guard.proxy.proxy_of`.
    """

    def __init__(
        self,
        kit: Kit,
        *,
        context: ssl.SSLContext | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        host: str = "",
        proxy: str = "",
    ) -> None:
        self.key = key or private_key(kit)
        self.client = FleetHttpClient(
            f"https://{host or kit.host}:{kit.port}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                signing.NodeAuthHttpInterceptor(self.key, self.key.public_key()),
            ],
            verify=context or ssl_context(kit),
            timeout=60.0,
        )
        if context is None:  # Flower's own client cannot be told which way to take
            self.client._client.close()
            self.client._client = httpx.Client(**http_options(kit, proxy), timeout=60.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def activate(self) -> int:
        """The node's id.

        Raises:
            httpx.HTTPStatusError: refused.
            httpx.ConnectError: TLS failed.
        """
        public = public_key_to_bytes(self.key.public_key())
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=BEAT_S)
        return int(self.client.ActivateNode(request).node_id)

    def pull(self, node: int) -> int:
        """How many messages wait."""
        reply = self.client.PullMessages(PullMessagesRequest(node=Node(node_id=node)))
        return len(reply.messages_list)

    def leave(self, node: int) -> None:
        """The node goes, in good order."""
        self.client.DeactivateNode(DeactivateNodeRequest(node_id=node))


def refused(fleet: Fleet) -> int:
    """HTTP status of a refused activation; 200 where it was not refused. The client is closed."""
    with fleet:
        try:
            fleet.leave(fleet.activate())
        except httpx.HTTPStatusError as error:
            return error.response.status_code
    return 200


@contextmanager
def clock_ahead(by: timedelta) -> Iterator[None]:
    """While it lasts, signatures are dated so much later."""
    now = signing.now
    with mock.patch.object(signing, "now", side_effect=lambda: now() + by):
        yield
