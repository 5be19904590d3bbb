"""What is no kit is refused in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.guard.kit import FILE, read_kit


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no kit.json in it"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema": 1, "colour": "red"}', "another version"),
    ],
)
def test_what_is_no_kit(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        read_kit(tmp_path, "site")
    assert "Errno" not in str(caught.value)
    assert "'" not in caught.value.problem


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder\n.*hnfed provision"):
        read_kit(tmp_path / "nowhere", "site")


def test_git_does_not_take_kits_up() -> None:
    ignored = Path(__file__).resolve().parents[3] / ".gitignore"
    assert "/kits/" in ignored.read_text(encoding="utf-8").splitlines()
