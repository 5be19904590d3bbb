"""``--json FILE``: the result of a command as data, for scripts and monitoring."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from hnfed.screen import make_folder

SCREEN = "-"


class JsonFile:
    """Where the result goes: a file, or standard output alone.

    Args:
        name: of a file, or ``-``.
    """

    def __init__(self, name: str) -> None:
        self.path = None if name == SCREEN else Path(name)
        self.stream: TextIO = sys.stdout

    def write(self, content: Any) -> None:
        """Writes the result, whole or not at all; NaN and infinity are errors of ours."""
        from core.files import replace_file

        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        if self.path is None:
            self.stream.write(text)
        else:
            replace_file(self.path, text)


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--json`` to a command whose result is data."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=JsonFile,
        help=f"write {what} as JSON; - for standard output, all else then goes to standard error",
    )


@contextmanager
def apart(target: JsonFile | None) -> Iterator[None]:
    """Keeps what is meant for people off standard output while JSON goes there.

    Raises:
        UserError: the file cannot be written, told before the work begins.
    """
    if target is None:
        yield
    elif target.path is None:
        with redirect_stdout(sys.stderr):
            yield
    else:
        make_folder(target.path.parent, "--json")
        yield
