"""The child process of `simulations.cluster_nodes`: joins a Ray cluster, asks its nodes, leaves.

Started by file name. What the nodes run must not stand here: they know a started file by no name.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from core.errors import UserError
from simulations.cluster_nodes import ask


def main() -> None:
    """Reads what to ask from standard input; the last line printed is the answer, as JSON."""
    asked = json.load(sys.stdin)
    try:
        answer: Any = ask(asked["address"], asked["paths"])
    except UserError as error:
        answer = {"unfit": error.problem}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # Ray needs no farewell


if __name__ == "__main__":
    main()
