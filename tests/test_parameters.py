"""What a function may ask for: six arguments at most, and no namespace of a command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "client", "server", "simulations", "hnfed", "benchmarks")
MOST = 6


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax of each file of code."""
    for path in (p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many arguments a caller may give; fields of a dataclass are no function's."""
    given = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return len(given) - (bool(given) and given[0].arg in ("self", "cls"))


def long_lists(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of functions with more than `MOST` parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > MOST:
            yield node.lineno, node.name


def test_no_function_has_more_than_six_parameters() -> None:
    found = [(name, *at) for name, tree in trees() for at in long_lists(tree)]
    assert [f"{name}:{line} {what}" for name, line, what in found] == []


def test_only_the_command_line_knows_its_namespace() -> None:
    wrong = [
        name
        for name, tree in trees()
        if not name.startswith(("hnfed/cli/", "benchmarks/"))
        for node in ast.walk(tree)
        if "Namespace" in (getattr(node, "attr", ""), getattr(node, "id", ""))
        or (isinstance(node, ast.alias) and "argparse" in node.name)
    ]
    assert wrong == []


def test_the_count_sees_every_kind_of_parameter() -> None:
    tree = ast.parse(
        "def f(a, b, /, c, *, d, e, g, h=1): pass\n"
        "class A:\n    async def m(self, a, b, c, d, e, f, *, g): pass\n"
        "    def fine(self, a, b, c, d, e, f): pass\n"
    )
    assert sorted(long_lists(tree)) == [(1, "f"), (3, "m")]
