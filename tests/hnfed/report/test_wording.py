"""A command that is shown to be copied names what it means, whatever the name holds."""

from __future__ import annotations

import subprocess

import pytest

from core.text import shown
from hnfed.report.wording import in_shell


@pytest.mark.parametrize(
    "name", ["x$(touch PWNED)", "a b", "-x", "`id`", "it's; id", "a\nid\x1b[201~"]
)
def test_a_name_in_a_command_is_one_word_of_it(name: str) -> None:
    word = in_shell(name)
    told = subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, text=True).stdout
    assert told == shown("./-x" if name == "-x" else name)
    assert in_shell("kits/nyu") == "kits/nyu"
