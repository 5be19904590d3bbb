from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision
from hnfed.guard.approvals import (
    MOST_PENDING,
    Bundle,
    NotApprovedError,
    approve,
    approved,
    candidates,
    difference,
    installed,
    overview,
    require_approved,
    withdraw,
)
from hnfed.guard.kit import Kit, read_kit
from hnfed.guard.rules import Policy

POLICY = Policy()


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


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_unapproved_code_is_kept_and_refused(kit: Kit) -> None:
    content = bundle(a__py="print(1)\n")
    digest = digest_of(content)
    with pytest.raises(NotApprovedError, match=f"app bundle {digest[:16]} is not approved"):
        require_approved(content, kit, POLICY)
    first, second = candidates(kit)
    assert (first.digest, first.content, first.sent, first.own) == (digest, content, True, False)
    assert (second.sent, second.own) == (False, True)
    approve(kit, digest, content)
    require_approved(content, kit, POLICY)
    assert [b.digest for b in candidates(kit)] == [second.digest]
    with pytest.raises(NotApprovedError):
        require_approved(content + b"\0", kit, POLICY)


def test_an_old_bundle_does_not_pass_once_its_successor_is_approved(kit: Kit) -> None:
    """The server could send the version with the hole again."""
    old, new = bundle(a__py="hole = 1\n"), bundle(a__py="hole = 0\n")
    approve(kit, digest_of(old), old)
    require_approved(old, kit, POLICY)
    approve(kit, digest_of(new), new)
    require_approved(new, kit, POLICY)
    with pytest.raises(NotApprovedError):
        require_approved(old, kit, POLICY)
    assert [p.digest for p in approved(kit)] == [digest_of(new)]


def test_of_a_list_of_an_earlier_version_the_last_is_approved(kit: Kit) -> None:
    old, new = bundle(a__py="1\n"), bundle(a__py="2\n")
    entries = [{"sha256": digest_of(b), "at": "2026"} for b in (old, new)]
    (kit.folder / "approved.json").write_text(json.dumps(entries))
    require_approved(new, kit, POLICY)
    with pytest.raises(NotApprovedError):
        require_approved(old, kit, POLICY)


def test_two_persons_where_the_policy_wants_two(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit.folder / "policy.yaml").write_text("approvers: 2\n")
    content = bundle(a__py="1\n")
    two = Policy(approvers=2)
    with pytest.raises(NotApprovedError):
        require_approved(content, kit, two)
    words = ["approve", str(kit.folder), "--yes", digest_of(content)[:16], "--as"]
    for name in ("Ada", " ada "):
        assert main([*words, name]) == 0
        assert "another person must agree too" in capsys.readouterr().out
        with pytest.raises(NotApprovedError):
            require_approved(content, kit, two)
    assert main([*words, "Grace"]) == 0
    assert "need not be restarted" in capsys.readouterr().out
    require_approved(content, kit, two)


def test_an_approval_is_withdrawn(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    content = bundle(a__py="1\n")
    approve(kit, digest_of(content), content)
    assert main(["approve", str(kit.folder), "--withdraw"]) == 0
    assert f"withdrawn {digest_of(content)[:16]}" in capsys.readouterr().out
    with pytest.raises(NotApprovedError):
        require_approved(content, kit, POLICY)
    assert withdraw(kit) == ""


def test_what_waits_does_not_fill_the_disk(kit: Kit) -> None:
    contents = [bundle(a__py=f"{i}\n") for i in range(MOST_PENDING + 1)]
    for i, content in enumerate(contents):
        with pytest.raises(NotApprovedError) as caught:
            require_approved(content, kit, POLICY)
        path = kit.folder / "pending" / f"{digest_of(content)}.fab"
        os.utime(path, ns=(i * 10**9, i * 10**9))
    assert f"dropped from pending/: {digest_of(contents[0])[:16]}" in str(caught.value)
    left = {p.stem for p in (kit.folder / "pending").glob("*")}
    assert left == {digest_of(c) for c in contents[1:]}
    large = bundle(a__py="x" * 1000)
    with pytest.raises(NotApprovedError):
        require_approved(large, kit, Policy(pending_mb=0.001))
    assert [p.stem for p in (kit.folder / "pending").glob("*")] == [digest_of(large)]


HIDDEN = "import os\nos.system('id')  # \x1b[1A\x1b[2K\nvalue = 1  # \u202e txt\r\n"


def test_what_hides_code_is_flagged_and_shown_as_it_is(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape codes took a line with `os.system` off the reviewer's screen."""
    content = bundle(**{"client/a__py": HIDDEN})
    with pytest.raises(NotApprovedError):
        require_approved(content, kit, POLICY)
    assert main(["approve", str(kit.folder), "--diff"]) == 1
    said = capsys.readouterr().out
    assert "os.system('id')  # <U+001B>[1A<U+001B>[2K" in said
    assert "<U+202E>" in said
    assert all(c.isprintable() or c == "\n" for c in said)
    assert "WARNING: client/a.py holds U+001B" in said
    assert "WARNING: client/a.py holds U+202E" in said


def test_a_bomb_is_neither_opened_nor_approved(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("client/a.py", b"0" * 200_000_000)
    bomb = content.getvalue()
    assert len(bomb) < 10**6
    tracemalloc.start()
    with pytest.raises(NotApprovedError):
        require_approved(bomb, kit, POLICY)
    assert main(["approve", str(kit.folder), "--yes", digest_of(bomb)]) == 1
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()
    out = capsys.readouterr()
    assert "cannot be approved: client/a.py is too large" in out.out
    assert approved(kit) == []


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
        require_approved(content, kit, POLICY)
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
    require_approved(small.content, kit, POLICY)
    assert main(["approve", str(kit.folder)]) == 0
    assert "no bundle waits" in capsys.readouterr().out


def test_later_the_difference_is_shown(
    kit: Kit, small: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    approve(kit, small.digest, small.content)
    content = bundle(**{"core/a__py": "1\n5\n", "core/b__py": "3\n", "client/c__py": "4\n"})
    with pytest.raises(NotApprovedError):
        require_approved(content, kit, POLICY)
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
        require_approved(b"x", kit, POLICY)
    with pytest.raises(UserError, match=r"approved\.json"):
        approved(kit)
