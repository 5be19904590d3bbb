"""The lock files: one version a package, each file by its SHA-256; the Python that make takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PINNED = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(build: str = "cuda") -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package, with a build of torch."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    files = [ROOT / name for name in ("requirements.lock", f"torch-{build}.lock", "dev.lock")]
    for line in "".join(file.read_text(encoding="utf-8") for file in files).splitlines():
        if match := PINNED.match(line):
            name = plain(match[1])
            assert name not in found, name
            found[name] = (match[2].rstrip("\\").rstrip(";"), [])
        elif match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line):
            found[name][1].append(match[1])
        else:
            assert not line.strip(), line
    return found


@pytest.mark.parametrize("build", ["cuda", "cpu"])
def test_each_package_has_hashes(build: str) -> None:
    found = locked(build)
    assert len(found) > 100
    assert [name for name, (_, hashes) in found.items() if not hashes] == []


def test_the_lock_holds_what_hnfed_needs_in_the_versions_of_the_constraints() -> None:
    found = locked()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"]]
    wanted += project["project"]["optional-dependencies"]["dev"]
    wanted += project["build-system"]["requires"]
    names = {plain(re.split(r"[\[<>=~!; ]", text, maxsplit=1)[0]) for text in wanted}
    assert names - set(found) == set()
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {plain(m[1]): m[2] for m in map(PINNED.match, constraints.splitlines()) if m}
    assert {n: (v, found[n][0]) for n, v in pins.items() if n in found and found[n][0] != v} == {}


def test_builds_of_torch_differ_in_their_own_files_alone() -> None:
    cuda, cpu = locked("cuda"), locked("cpu")
    assert cpu["torch"][0] == cuda["torch"][0] + "+cpu"
    assert set(cpu) <= set(cuda)
    assert {plain(name).split("-")[0] for name in set(cuda) - set(cpu)} == {
        "cuda", "nvidia", "triton",
    }  # fmt: skip
    assert {name: cpu[name] for name in cpu if name != "torch"} == {
        name: cuda[name] for name in cpu if name != "torch"
    }


def test_a_compromised_authority_is_not_trusted() -> None:
    """certifi from 2026.10.19 on leaves it out, uv from 0.13.5 on."""
    found = locked()
    assert [int(part) for part in found["certifi"][0].split(".")[:3]] >= [2026, 10, 19]
    assert [int(part) for part in found["uv"][0].split(".")[:3]] >= [0, 13, 5]


def run(folder: Path, *paths: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """`.ci/find-python` with a PATH of these folders, and the shell's own."""
    return subprocess.run(
        ["/bin/sh", ROOT / ".ci" / "find-python", *([given] if given else [])], cwd=folder,
        env={"PATH": ":".join(map(str, paths))}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def launcher(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_make_takes_a_python_that_runs(tmp_path: Path) -> None:
    launcher(tmp_path / "shims" / "python3.11", "echo 'pyenv: python3.11: not found' >&2; exit 127")
    launcher(tmp_path / "old" / "python3.11", "exit 1")
    launcher(tmp_path / "bin" / "python3.12", f'exec {sys.executable} "$@"')
    done = run(tmp_path, *(tmp_path / name for name in ("shims", "old", "bin")))
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)
    other = launcher(tmp_path / "first" / "python3.11", "echo the first")
    assert run(tmp_path, tmp_path / "bin", other.parent).stdout.strip() == "the first"


def test_no_python_is_one_clear_error(tmp_path: Path) -> None:
    old = launcher(tmp_path / "bin" / "python3", "exit 1")
    for done in (run(tmp_path, old.parent), run(tmp_path, old.parent, given=str(old))):
        assert done.returncode == 1
        assert done.stdout == ""
        assert "3.11 to 3.13" in done.stderr
        assert done.stderr.splitlines()[1].startswith("  remedy: ")
        assert len(done.stderr.splitlines()) == 2
