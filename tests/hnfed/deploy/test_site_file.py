from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from hnfed.deploy.site_file import require_faces_allowed, site_from_file


def site_file(folder: Path, **changes: Any) -> Path:
    values = {
        "name": "north",
        "root": "/data/archive",
        "cache": str(folder / "cache"),
        "state": str(folder / "state"),
    } | changes
    path = folder / "site.yaml"
    path.write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in values.items() if v is not None))
    return path


def test_a_site_file(tmp_path: Path) -> None:
    path = site_file(
        tmp_path, format="pddca", aliases={"Parotid_L": ["Lt Parotid"]}, device="cuda:1"
    )
    site = site_from_file(path, "run7")
    assert (site.name, site.device) == ("north", "cuda:1")
    (source,) = site.sources
    assert (source.root, source.format) == ("/data/archive", "pddca")
    assert source.aliases == {"Parotid_L": ["Lt Parotid"]}
    assert source.split == {"train": 0.64, "val": 0.16, "test": 0.2, "seed": 0}
    assert site.run_folder == tmp_path / "state" / "run7"
    assert site.base_folder == tmp_path / "state" / "base"
    assert site.overlays == 3, "worst, median and best, for the site's own report"


def test_how_many_cases_are_drawn_is_the_sites_choice(tmp_path: Path) -> None:
    assert site_from_file(site_file(tmp_path, overlays=0), "r").overlays == 0
    for wrong in (-1, 1.5, "all", True):
        with pytest.raises(UserError, match="site file: overlays"):
            site_from_file(site_file(tmp_path, overlays=wrong), "r")


@pytest.mark.parametrize("device", ["cuda:0,0", "cuda:-1", "cpu:0", "gpu", "cuda:0;1"])
def test_a_device_of_no_form(tmp_path: Path, device: str) -> None:
    """What the machine has is asked where training begins: an archive is prepared without a GPU."""
    with pytest.raises(UserError) as caught:
        site_from_file(site_file(tmp_path, device=device), "r")
    assert (caught.value.field, caught.value.value) == ("site file: device", device)
    assert site_from_file(site_file(tmp_path, device="cuda:0,7"), "r").device == "cuda:0,7"


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    first, second = (site_from_file(site_file(tmp_path), r) for r in ("a", "b"))
    assert first.secret == second.secret
    assert len(first.secret) == 32
    assert (tmp_path / "state" / "secret").stat().st_mode & 0o077 == 0
    (tmp_path / "elsewhere").mkdir()
    assert site_from_file(site_file(tmp_path / "elsewhere"), "a").secret != first.secret


def test_a_split_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("case,split\nx,train\ny,test\n")
    site = site_from_file(site_file(tmp_path, split={"file": "splits.csv"}), "r")
    assert site.sources[0].splits == {"train": ["x"], "val": [], "test": ["y"]}
    assert site.sources[0].split == {}


def test_a_split_file_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_bytes(b"\xef\xbb\xbfcase,split\r\nx,train\r\n")
    site = site_from_file(site_file(tmp_path, split={"file": "splits.csv"}), "r")
    assert site.sources[0].splits["train"] == ["x"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"case,split\nx,train\ny,training\n", "line 3: split = 'training'"),
        (b"case,split\nx\n", "line 2: split = ''"),
        (b"patient,split\nx,train\n", "no column case, separated by commas"),
        (b"case;split\nx;train\n", "no column case or split"),
        (b"", "no column case or split"),
        (b"case,split\nJ\xfcrgen,train\n", "not in UTF-8"),
        (None, "No such file"),
    ],
    ids=str,
)
def test_a_split_file_that_is_none(tmp_path: Path, text: bytes | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "splits.csv").write_bytes(text)
    with pytest.raises(UserError, match="case,split") as caught:
        site_from_file(site_file(tmp_path, split={"file": "splits.csv"}), "r")
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"nmae": "x"}, "site file: nmae"),
        ({"state": None}, "site file: state"),
        ({"root": ""}, "site file: root"),
    ],
)
def test_a_site_file_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError) as caught:
        site_from_file(site_file(tmp_path, **changes), "r")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("absent: maybe", "absent"), ("absent: no", "absent"),
        ("device: [1]", "device"), ("device: 0.5", "device"), ("structure_set: 7", "structure_set"),
        ("cache_gb: -1", "cache_gb"), ("cache_gb: true", "cache_gb"), ("base_gb: 1e30", "base_gb"),
        ("split: {train: 0.6, val: 0.2, test: 0.2, seed: 0.5}", "split.seed"),
        ("split: {train: -0.6, val: 0.2, test: 0.2}", "split.train"),
        ("split: {train: yes}", "split.train"),
    ],
)  # fmt: skip
def test_a_value_of_a_site_file_is_of_its_kind_and_range(
    line: str, field: str, tmp_path: Path
) -> None:
    path = site_file(tmp_path)
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(UserError) as caught:
        site_from_file(path, "r")
    assert caught.value.field == f"site file: {field}"


def test_a_name_that_looks_like_a_value(tmp_path: Path) -> None:
    path = site_file(tmp_path, name=None)
    text = path.read_text()
    path.write_text(f"{text}\nname: no\naliases: {{Brainstem: [on, '08']}}\nabsent: count\n")
    site = site_from_file(path, "r")
    assert site.name == "no"
    assert site.sources[0].aliases == {"Brainstem": ["on", "08"]}
    assert site.sources[0].absent == "count"
    path.write_text(f"{text}\nname: 010\n")
    with pytest.raises(UserError, match="in quotes"):
        site_from_file(path, "r")


@pytest.mark.parametrize("text", ["a: [", "- a", ""])
def test_a_site_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        site_from_file(path, "r")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        site_from_file(tmp_path / "none.yaml", "r")


def test_an_unknown_key_of_a_site_file_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cachee = /tmp/x: unknown key\n.*did you mean cache\?"):
        site_from_file(site_file(tmp_path, cachee="/tmp/x"), "r")
    with pytest.raises(UserError, match=r"unknown key\n.*use one of name, format"):
        site_from_file(site_file(tmp_path, zzz=1), "r")


def test_a_proxy_with_a_password_wants_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    assert site_from_file(site_file(tmp_path), "r").proxy == ""
    for proxy in ("none", "http://proxy.example.org:3128"):
        assert site_from_file(site_file(tmp_path, proxy=proxy), "r").proxy == proxy
    path = site_file(tmp_path, proxy="http://u:secret@proxy.example.org:3128")
    path.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600") as caught:
        site_from_file(path, "r")
    assert "secret" not in str(caught.value)
    path.chmod(0o600)
    assert site_from_file(path, "r").proxy.endswith("@proxy.example.org:3128")
    for wrong in ("proxy", 3128, ["http://p:1"], {"http": "u:secret@p:1"}):
        with pytest.raises(UserError, match="proxy") as caught:
            site_from_file(site_file(tmp_path, proxy=wrong), "r")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["cache", "state"])
def test_a_folder_that_others_can_open_is_refused(key: str, tmp_path: Path) -> None:
    path, folder = site_file(tmp_path), tmp_path / key
    folder.mkdir(mode=0o755)
    with pytest.raises(UserError, match="others can open it") as refused:
        site_from_file(path, "run")
    assert refused.value.field == f"site file: {key}"
    assert f"chmod 700 {folder}" in refused.value.remedy
    folder.chmod(0o700)
    assert site_from_file(path, "run").name == "north"


def test_faces_in_previews_need_the_sites_leave(tmp_path: Path) -> None:
    for value in (None, False):
        with pytest.raises(UserError, match="does not let previews show faces") as refused:
            require_faces_allowed(site_file(tmp_path, preview_faces=value))
        assert "preview_faces: true" in refused.value.remedy
    require_faces_allowed(site_file(tmp_path, preview_faces=True))
    for read in (require_faces_allowed, lambda path: site_from_file(path, "r")):
        with pytest.raises(UserError, match="write true or false"):
            read(site_file(tmp_path, preview_faces="yes"))
