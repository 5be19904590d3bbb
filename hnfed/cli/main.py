"""The command `hnfed`: the only place that sees all; imports what a subcommand needs as it runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hnfed.installation import require_linux, require_machine, require_torch

require_machine()  # before anything that another system or Python could not read

from hnfed.packages import require_one_environment, require_own  # noqa: E402

require_one_environment(Path(sys.argv[0]), Path())
require_own()  # before any of them is imported: their names are common ones

import hnfed.cli.archive  # noqa: E402
import hnfed.cli.config  # noqa: E402
import hnfed.cli.results  # noqa: E402
import hnfed.cli.server  # noqa: E402
import hnfed.cli.simulate  # noqa: E402
from core.errors import UserError  # noqa: E402
from core.os_refusals import in_words  # noqa: E402
from core.text import shown_text  # noqa: E402
from hnfed.cli import completion, doctor, init, join, models, site, watch  # noqa: E402
from hnfed.cli.completion import complete  # noqa: E402
from hnfed.cli.json_output import apart  # noqa: E402
from hnfed.cli.parser import Parser  # noqa: E402

RELEASE = "hnfed.guard.simulated:release"  # what a simulated site's replies pass
# How a library that does not come into memory, or gets no thread, says so.
NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't start new thread")
EXAMPLES = """examples:
  hnfed simulate demo
  hnfed simulate openkbp simulation.data=DIR --out runs/openkbp
  hnfed grid transfer simulation.data=DIR --list
  hnfed predict -i ct.nrrd -o contours --model openkbp-base
  hnfed config show demo"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code (0 done, 1 failed, 2 wrong usage, 130, 143)."""
    _quiet_environment()
    if arguments is None:  # the command itself
        # Python and what it starts would look for modules in the folder where the command was
        # typed: pools of processes begin as `python -c`.
        os.environ["PYTHONSAFEPATH"] = "1"
    _print_any_name()
    parser = _parser()
    complete(parser)
    options = _parsed(parser, arguments)
    if not hasattr(options, "handler"):
        parser.print_help()
        return 2
    require_linux(_command(arguments))
    require_torch()
    return _obeyed(options)


def _obeyed(options: argparse.Namespace) -> int:
    """The exit code of a handler; what it raises is told on one screen."""
    from core.processes import Stopped, leave_by_signal

    leave_by_signal()
    try:
        return _handled(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"hnfed: error: {shown_text(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hnfed: interrupted; what was done is kept", file=sys.stderr)
        return 130
    except Stopped as stopped:  # a second signal, while what was started is ended
        return 128 + stopped.number
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if options.debug:
            raise
        if told := _explained(error):
            print(f"hnfed: error: {shown_text(told)}", file=sys.stderr)
            return 1
        print(
            f"hnfed: error: unexpected {type(error).__name__}: {shown_text(str(error)[:500])}\n"
            "  remedy: run the command again with --debug and report what it prints",
            file=sys.stderr,
        )
        return 1


def _explained(error: Exception) -> UserError | None:
    """What of an unforeseen error a user can act on: the operating system's no, short memory."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        remedy = (
            "end other programs, use fewer --jobs, lift the limit (ulimit -v, ulimit -u, the "
            "container's), or take a machine with more memory"
        )
        return UserError("memory", str(error)[:200] or "used up", remedy)
    return in_words(error) if isinstance(error, OSError) else None


def _handled(options: argparse.Namespace) -> int:
    from core.processes import leave_if_told

    try:
        with apart(getattr(options, "json", None)):
            return int(options.handler(options))
    finally:
        leave_if_told()  # a library may have taken a signal for an error of its own, or for none


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; KEY=VALUE may stand anywhere behind the subcommand, not in one row only."""
    options, rest = parser.parse_known_args(arguments)
    strange = [text for text in rest if text.startswith("-") or "=" not in text]
    if strange or (rest and not hasattr(options, "overrides")):
        of_command = getattr(options, "parser", parser)
        of_command.error(f"unrecognized arguments: {' '.join(strange or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _command(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else arguments
    return next((word for word in given if not word.startswith("-")), "")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hnfed",
        description="Federated organ segmentation for head-and-neck CT.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    parser.add_argument("--version", action=_Version, help="show versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    hnfed.cli.simulate.register(commands, RELEASE)
    for part in (
        init,
        doctor,
        hnfed.cli.archive,
        site,
        join,
        hnfed.cli.server,
        watch,
        hnfed.cli.results,
    ):
        part.register(commands)
    models.register(commands)
    hnfed.cli.config.register(commands)
    completion.register(commands)
    return parser


class _Version(argparse.Action):
    """Prints the versions that a report of an error needs; imports none of the packages."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from core.provenance import versions

        found = dict.fromkeys(("hnfed", "torch", "flwr"), "not installed") | versions()
        told = {"": "hnfed", "Python ": "python", "torch ": "torch", "flwr ": "flwr"}
        print("hnfed " + ", ".join(f"{word}{found[name]}" for word, name in told.items()))
        parser.exit()


def _print_any_name() -> None:
    """Names that the terminal's encoding does not have are printed all the same, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quiet_environment() -> None:
    """No telemetry and no look for updates from any library, whatever their defaults."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


if __name__ == "__main__":
    raise SystemExit(main())
