"""Who may import whom: read from every import, inside functions and for types too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.archives.formats.table import FORMATS, FORMATS_IN

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "server", "client", "simulations", "hnfed", "benchmarks")
MAY_IMPORT = {
    "core": {"core"},
    "server": {"server", "core"},
    "client": {"client", "core"},
    "simulations": {"simulations", "server", "client", "core"},
    "hnfed": {"hnfed", "simulations", "server", "client", "core"},
    "benchmarks": set(PACKAGES),
}
# Of `hnfed`, each folder: what of hnfed and of the packages below it sees. "" is hnfed itself.
HNFED = {
    "guard": {"core"},
    "evaluate": {"core"},
    "check": {"core"},
    "report": {"core", "hnfed.evaluate"},
    "predict": {"core", "hnfed.evaluate", "hnfed.report", "hnfed.screen"},
    "compare": {"core", "hnfed.evaluate", "hnfed.report"},
    "deploy": {
        "core", "client", "server", "simulations.memory_probe", "hnfed.guard",
        "hnfed.installation", "hnfed.report",
    },
    "watch": {"core", "hnfed.guard", "hnfed.deploy"},
}  # fmt: skip
FEDERATION = {"flwr", "ray"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, also inside functions and for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(name: str) -> str:
    """The module of ours that a dotted name lies in; "" for none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ROOT.joinpath(*parts[:end]).with_suffix(".py").is_file():
            return ".".join(parts[:end])
    return ""


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    found: dict[str, set[str]] = {}
    for path in (p for package in PACKAGES for p in files(package) if p.name != "__init__.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name] = {m for _, n in imports(path) if (m := module_of(n))}
    table = found["core.archives.formats.table"]  # imports its rows' modules by name
    table |= {m for name in FORMATS if (m := module_of(f"{FORMATS_IN}.{name}"))}
    return found


def circles(edges: dict[str, set[str]]) -> list[str]:
    """One line a module that can be reached from itself."""
    found = []
    for start in edges:
        todo, seen = list(edges[start]), set()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += edges.get(name, ())
        if start in seen:
            found.append(start)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    read = [(path, line, name) for path in files(package) for line, name in imports(path)]
    assert len(files(package)) > 1, f"nothing to read in {package}"
    assert any(name.startswith("core.") for *_, name in read), f"no import of core in {package}"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, line, name in read
        if (top := name.partition(".")[0]) in PACKAGES and top not in MAY_IMPORT[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", HNFED)
def test_each_room_of_hnfed_sees_what_it_may(folder: str) -> None:
    read = [(path, line, name) for path in files(f"hnfed/{folder}") for line, name in imports(path)]
    assert any(name.startswith("core.") for *_, name in read)
    allowed = tuple(f"{name}." for name in (*HNFED[folder], f"hnfed.{folder}"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, line, name in read
        if name.partition(".")[0] in PACKAGES and not name.startswith(allowed)
    ]
    assert wrong == []


def test_no_module_reaches_itself() -> None:
    edges = graph()
    assert len(edges) > 200
    assert circles(edges) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_core_knows_no_federation() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files("core")
        for line, name in imports(path)
        if name.partition(".")[0] in FEDERATION
    ]
    assert wrong == []


def test_init_files_are_empty() -> None:
    made = [path for package in PACKAGES for path in files(package) if path.name == "__init__.py"]
    assert len(made) >= len(PACKAGES)
    assert [str(path) for path in made if path.stat().st_size] == []


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for package in PACKAGES for path in files(package)}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_tests_have_no_init_files() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_reader_sees_all_forms_of_import(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b as c\nfrom typing import TYPE_CHECKING\n"
        "def f():\n    from d.e import g\n    import h, i\nif TYPE_CHECKING:\n    import j\n"
    )
    assert sorted(name for _, name in imports(path)) == [
        "a.b", "d.e.g", "h", "i", "j", "typing.TYPE_CHECKING",
    ]  # fmt: skip
