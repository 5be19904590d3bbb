from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "server", "client", "simulations", "hnfed")
MAY_IMPORT = {
    "core": {"core"},
    "server": {"server", "core"},
    "client": {"client", "core"},
    "simulations": {"simulations", "server", "client", "core"},
    "hnfed": set(PACKAGES),
}
DRIVERS = ROOT / "simulations" / "benchmarks"  # started by hand; nothing imports them
FEDERATION = {"flwr", "ray"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.lineno, node.module.split(".")[0]


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    read = [(path, line, name) for path in files(package) for line, name in imports(path)]
    assert len(files(package)) > 1, f"nothing to read in {package}"
    assert any(name == "core" for _, _, name in read), f"no import of core in {package}"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, line, name in read
        if name in PACKAGES and name not in MAY_IMPORT[package] and not path.is_relative_to(DRIVERS)
    ]
    assert wrong == []


def test_the_guard_knows_core_alone() -> None:
    read = [(p, line, n) for p in files("hnfed/guard") for line, n in imports(p)]
    assert any(name == "core" for _, _, name in read)
    wrong = [
        f"{p.name}:{line} imports {n}"
        for p, line, n in read
        if n in set(PACKAGES) - {"core", "hnfed"}
    ]
    assert wrong == []


def test_core_knows_no_federation() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files("core")
        for line, name in imports(path)
        if name in FEDERATION
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
    path.write_text("import a.b as c\ndef f():\n    from d.e import g\n    import h, i\n")
    assert [name for _, name in imports(path)] == ["a", "d", "h", "i"]
