"""A ClientApp whose replies pass a check before they leave their simulated site.

At a hospital the guard outside of the app does that; a simulation applies the same function, so
that what a site would refuse to send is refused here as well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

Release = Callable[[Message, Message, Context], Message]
"""``release(order, reply, context)``: the message that leaves, a refusal in place of a bad one."""


def resolved(name: str) -> Release:
    """The function that ``module:function`` names."""
    module, _, attribute = name.partition(":")
    release: Release = getattr(importlib.import_module(module), attribute)
    return release


class Released(ClientApp):
    """Runs an app, and hands each of its replies to `release`.

    Args:
        app: the ClientApp.
        release: see `Release`; must not raise.
    """

    def __init__(self, app: ClientApp, release: Release) -> None:
        super().__init__()
        self._app = app
        self._release = release

    def __call__(self, message: Message, context: Context) -> Message:
        """Runs the app on a message; returns what may leave."""
        return self._release(message, self._app(message, context), context)
