"""The parser of the command line: wrong usage is answered with cause, value and remedy."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from core.errors import suggestion
from core.text import shown_text


class Parser(argparse.ArgumentParser):
    """What argparse says of wrong usage, and what to do: the nearest word, or an example."""

    def error(self, message: str) -> NoReturn:
        """Prints usage, the error and its remedy to standard error; the exit code is 2."""
        self.print_usage(sys.stderr)
        self.exit(
            2, f"{self.prog}: error: {shown_text(message)}\n  remedy: {self._remedy(message)}\n"
        )

    def _remedy(self, message: str) -> str:
        shown = f"{self.prog} --help lists what it takes"
        if "are required" in message and (example := self._example()):
            return f"add what is missing, as in: {example}"
        if "not allowed with" in message:
            return f"give one of the two; {shown}"
        found = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (\S+)", message)
        given = next(filter(None, found.groups()), "") if found else ""
        return suggestion(given, sorted(set(_words(self)))) + shown

    def _example(self) -> str:
        lines = (self.epilog or "").splitlines()
        return next((line.strip() for line in lines if line.startswith("  hnfed ")), "")


def whole_number(text: str) -> int:
    """The value of an option that counts: 1 or more.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All options and choices of a parser, without those of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        yield from map(str, action.choices or ())
