from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.data.site import Site, Source
from hnfed.deploy.doctor import FAIL, PASS, Check
from hnfed.deploy.site_doctor import examine_site
from hnfed.guard.kit import Kit


def kit_of(role: str) -> Kit:
    return Kit(Path(), "hn", role, "127.0.0.1", 1, 2)


def found(site: Site, kit: Kit | None = None) -> dict[str, Check]:
    return {c.name: c for c in examine_site(site, kit)}


def test_a_site_and_its_archive(site: Site) -> None:
    checks = found(site, kit_of("north"))
    assert [c.state for c in checks.values()] == [PASS, PASS]
    assert "5 cases" in checks["archive"].detail
    assert list(found(site)) == ["archive"]


def test_another_name_and_no_archive(site: Site, tmp_path: Path) -> None:
    lost = replace(site, sources=(Source(str(tmp_path / "nothere")),))
    checks = found(lost, kit_of("miccai"))
    assert [c.state for c in checks.values()] == [FAIL, FAIL]
    assert all(c.remedy for c in checks.values())
    assert "name: miccai" in checks["site's name"].remedy
