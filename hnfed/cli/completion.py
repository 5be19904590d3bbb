"""The subcommand `hnfed completion`: what a shell needs to complete commands, options and files."""

from __future__ import annotations

import argparse
import os
from typing import Any

from hnfed.cli.results import subcommand

SHELLS = ("bash", "zsh", "fish")
ASKED = "_ARGCOMPLETE"  # set by the shell while it asks for completions


def register(commands: Any) -> None:
    """Adds completion to those of a command line."""
    parser = subcommand(
        commands,
        "completion",
        "the lines that make a shell complete hnfed's commands and options",
        _completion,
        'eval "$(hnfed completion bash)"        # in ~/.bashrc; zsh alike in ~/.zshrc\n'
        "  hnfed completion fish > ~/.config/fish/completions/hnfed.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that asks for completions, and ends; else does nothing."""
    if ASKED in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _completion(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["hnfed"], shell=args.shell))
    return 0
