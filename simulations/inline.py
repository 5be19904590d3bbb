"""The inline engine: the same apps in one process, one site after the other, without Ray.

For debugging, fast tests and small studies. The weights equal those of a Ray run (D6). Deadlines
are not enforced: a site that works has the only process there is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from core.processes import leave_if_told
from server.exchange import MALFORMED
from simulations.flower import RUN_ID, SERVER_NODE, Run, be, empty_run


class InlineGrid(Grid):
    """A grid without a network: a message runs at its node when its reply is asked for."""

    def __init__(self, client_app: ClientApp, contexts: Mapping[int, Context]) -> None:
        self._client_app = client_app
        self._contexts = dict(contexts)
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Run:
        """The run."""
        return empty_run()

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """One node a site."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages, in order."""
        identifiers = []
        for message in list(messages):
            identifier = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, made one by one; each is handed out once."""
        for identifier in list(message_ids):
            if identifier in self._waiting:
                yield self._answer(self._waiting.pop(identifier))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        be(node)
        try:
            reply = self._client_app(message, self._contexts[node])
        except MALFORMED as error:  # here it is a fault of the app, and no reply of a site's
            raise RuntimeError(f"a site's app failed: {error}") from error
        finally:
            be(SERVER_NODE)
        leave_if_told()  # the app may have taken a signal for an error of its own
        return reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull."""
        return self.pull_messages(self.push_messages(messages))


def run_inline(
    server_app: ServerApp, client_app: ClientApp, run_config: Mapping[str, str], sites: int
) -> None:
    """Runs the apps to their end in this process; what the ServerApp raises comes out here."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    be(SERVER_NODE)
    config: UserConfig = dict(run_config)
    contexts = {
        SERVER_NODE + 1 + i: Context(
            run_id=RUN_ID,
            node_id=SERVER_NODE + 1 + i,
            node_config={"partition-id": i, "num-partitions": sites},
            state=RecordDict(),
            run_config=config,
        )
        for i in range(sites)
    }
    server = Context(
        run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config=config
    )
    server_app(InlineGrid(client_app, contexts), server)
