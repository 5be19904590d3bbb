from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from core.kit import Kit, read_kit
from hnfed.cli.main import main
from hnfed.guard.approval_guard import NotApprovedError, require_approved
from hnfed.guard.approvals import (
    Bundle,
    approve,
    approved,
    candidates,
    difference,
    installed,
    overview,
)
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
    first, second = candidates(kit)
    assert (first.digest, first.content, first.sent, first.own) == (digest, content, True, False)
    assert (second.sent, second.own) == (False, True)
    approve(kit, digest, content)
    require_approved(content, kit.folder)
    assert [b.digest for b in candidates(kit)] == [second.digest]
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


def test_the_bundle_of_this_installation_is_always_the_same(kit: Kit) -> None:
    content = installed()
    assert installed() == content
    digest = hashlib.sha256(content).hexdigest()
    (found,) = candidates(kit)
    assert (found.digest, found.sent, found.own) == (digest, False, True)
    with pytest.raises(NotApprovedError):
        require_approved(content, kit.folder)
    (found,) = candidates(kit)
    assert (found.digest, found.sent, found.own) == (digest, True, True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """An installation of three small files."""
    content = bundle(**{"core/a__py": "1\n2\n", "core/b__py": "3\n", "client/c__py": "4\n"})
    monkeypatch.setattr("hnfed.guard.approvals.installed", lambda: content)
    return Bundle(hashlib.sha256(content).hexdigest(), content, sent=False, own=True)


def test_an_overview_says_what_is_in_it_and_whose_it_is(small: Bundle) -> None:
    text = " ".join(overview(small).split())
    assert f"bundle {small.digest} " in text
    assert "files lines client 1 1 core 2 3 all 3 4" in text
    assert "from: this installation's own code; the server has not sent it so far" in text
    assert "with the coordinator's, by phone" in text
    for own, words in ((True, "it equals"), (False, "it differs from")):
        text = overview(replace(small, sent=True, own=own))
        assert f"from: the server sent it; {words} this installation's own code" in text


def test_the_first_time_shows_an_overview_and_no_lines(
    kit: Kit, small: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["approve", str(kit.folder)]) == 1, "nobody is asked without a terminal"
    said = capsys.readouterr().out
    assert said.startswith(f"bundle {small.digest}\n")
    assert "more lines" not in said
    assert f"not approved; to pin it: hnfed approve {kit.folder} --yes {small.digest[:16]}" in said
    assert main(["approve", str(kit.folder), "--diff"]) == 1
    assert "+++ new/core/a.py" in capsys.readouterr().out
    assert main(["approve", str(kit.folder), "--yes", small.digest[:8]]) == 1
    assert "too short" in capsys.readouterr().err
    assert main(["approve", str(kit.folder), "--yes", "0" * 16]) == 1
    assert approved(kit) == []
    capsys.readouterr()
    assert main(["approve", str(kit.folder), "--yes", small.digest[:16]]) == 0
    assert "need not be restarted" in capsys.readouterr().out
    require_approved(small.content, kit.folder)
    assert main(["approve", str(kit.folder)]) == 0
    assert "no bundle waits" in capsys.readouterr().out


def test_later_the_difference_is_shown(
    kit: Kit, small: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    approve(kit, small.digest, small.content)
    content = bundle(**{"core/a__py": "1\n5\n", "core/b__py": "3\n", "client/c__py": "4\n"})
    with pytest.raises(NotApprovedError):
        require_approved(content, kit.folder)
    capsys.readouterr()
    assert main(["approve", str(kit.folder)]) == 1
    said = capsys.readouterr().out
    assert "-2\n+5\n" in said
    assert "it differs from this installation's own code" in said


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_at_a_terminal_it_asks(
    kit: Kit, small: Bundle, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert main(["approve", str(kit.folder)]) == code
    assert bool(approved(kit)) == (code == 0)


def test_a_damaged_list_approves_nothing(kit: Kit) -> None:
    (kit.folder / "approved.json").write_text("{")
    with pytest.raises(NotApprovedError):
        require_approved(b"x", kit.folder)
    with pytest.raises(UserError, match=r"approved\.json"):
        approved(kit)
