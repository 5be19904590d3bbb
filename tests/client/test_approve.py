from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from client.approval_guard import NotApprovedError, require_approved
from client.approve import approve, approved, candidates, difference, installed, summary
from core.errors import UserError
from core.kit import Kit, read_kit
from server.provision import Federation, provision


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    provision(Federation("hn", "x", 1, 2, ("nyu",), 30), tmp_path)
    return read_kit(tmp_path / "nyu", "site")


def bundle(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name, text in files.items():
            packed.writestr(name.replace("__", "."), text)
    return content.getvalue()


def test_unapproved_code_is_kept_and_refused(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    content = bundle(a__py="print(1)\n")
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(NotApprovedError, match=r"^E_BUNDLE$"):
        require_approved(content, kit.folder)
    assert digest[:16] in capsys.readouterr().err
    assert candidates(kit)[digest] == content
    approve(kit, digest, content)
    require_approved(content, kit.folder)
    assert digest not in candidates(kit)
    with pytest.raises(NotApprovedError):
        require_approved(content + b"\0", kit.folder)


def test_the_diff_against_what_was_approved(kit: Kit) -> None:
    first, second = bundle(a__py="x = 1\ny = 2\n"), bundle(a__py="x = 1\ny = 3\n", b__py="new\n")
    assert "+x = 1" in difference(kit, first), "nothing approved yet: all of it is new"
    approve(kit, hashlib.sha256(first).hexdigest(), first)
    lines = difference(kit, second)
    assert "-y = 2" in lines
    assert "+y = 3" in lines
    assert "+new" in lines
    assert "+x = 1" not in lines
    assert summary(second) == "2 files, 3 lines"


def test_the_bundle_of_this_installation_is_always_the_same(kit: Kit) -> None:
    content = installed()
    assert installed() == content
    digest = hashlib.sha256(content).hexdigest()
    assert digest in candidates(kit)


def test_a_damaged_list_approves_nothing(kit: Kit) -> None:
    (kit.folder / "approved.json").write_text("{")
    with pytest.raises(NotApprovedError):
        require_approved(b"x", kit.folder)
    with pytest.raises(UserError, match=r"approved\.json"):
        approved(kit)
