"""The subcommands at a site's kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision


@pytest.mark.parametrize("words", [("receipts",), ("receipts", "--verify"), ("client",)])
def test_a_kit_without_a_site_file_says_which_option_is_missing(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provision(Federation("hn", "127.0.0.1", 28443, 28444, ("nyu",), 30), tmp_path)
    assert main([words[0], str(tmp_path / "nyu"), *words[1:]]) == 1
    told = capsys.readouterr().err
    assert "--site SITE.yaml" in told
    assert str(tmp_path / "nyu" / "site.yaml") in told
