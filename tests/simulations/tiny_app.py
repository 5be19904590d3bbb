"""The app of a few lines that tests run on Ray: its project, and the beginning of its server."""

from __future__ import annotations


def pyproject(prefix: str = "", pattern: str = "**/*.py", keys: tuple[str, ...] = ("out",)) -> str:
    """A project whose packages are PREFIXserver and PREFIXclient, with these keys of settings."""
    settings = "\n".join(f'{key} = ""' for key in keys)
    return f"""
[project]
name = "tiny"
version = "0.1.0"
description = "An app of a few lines"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "test"
fab-include = ["{prefix}server/{pattern}", "{prefix}client/{pattern}"]
[tool.flwr.app.components]
serverapp = "{prefix}server.app:app"
clientapp = "{prefix}client.app:app"
[tool.flwr.app.config]
{settings}
"""


# A server that has an order for each of two sites; what it does with them follows.
TWO_ORDERS = """
import json, os, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while len(ids := list(grid.get_node_ids())) < 2:
        time.sleep(0.05)
    messages = [Message(RecordDict({"c": ConfigRecord({"x": 1})}), i, "train") for i in ids]
"""
