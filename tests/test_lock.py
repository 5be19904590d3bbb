"""requirements.lock: every package that hnfed needs, one version, each file by its SHA-256."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if match := PINNED.match(line):
            name = plain(match[1])
            assert name not in found, name
            found[name] = (match[2].rstrip("\\").rstrip(";"), [])
        elif match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line):
            found[name][1].append(match[1])
        else:
            assert not line.strip(), line
    return found


def test_each_package_has_hashes() -> None:
    found = locked()
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


def test_a_compromised_authority_is_not_trusted() -> None:
    """certifi from 2026.10.19 on leaves it out, uv from 0.13.5 on."""
    found = locked()
    assert [int(part) for part in found["certifi"][0].split(".")[:3]] >= [2026, 10, 19]
    assert [int(part) for part in found["uv"][0].split(".")[:3]] >= [0, 13, 5]
