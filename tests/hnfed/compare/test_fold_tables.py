from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.compare.fold_tables import lines_of, read_grid


def cell(grid: Path, name: str, site: str, rows: list[tuple[str, str, float]]) -> None:
    path = grid / name / "sites" / site / "pretrain" / "cases.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{case},{organ},{dice},1.0" for case, organ, dice in rows]
    path.write_text("\n".join(["case,organ,dice,hd95_mm", *lines]))


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    for fold in range(2):
        for site in ("a", "b"):
            cases = [f"{site}{fold}{i}" for i in range(6)]
            federated = [(c, o, 0.7 + 0.01 * i) for i, c in enumerate(cases) for o in "XY"]
            better = 0.02 if site == "b" else 0.0
            cell(tmp_path, f"federated-fold{fold}-seed0", site, federated)
            local = [(c, o, d - better) for c, o, d in federated]
            cell(tmp_path, f"local-only-fold{fold}-seed0", site, local)
        pooled = [(f"{s}/{s}{fold}{i}", "X", 0.8) for s in "ab" for i in range(6)]
        cell(tmp_path, f"pooled-fold{fold}-seed0", "pooled", pooled)
    return tmp_path


def test_patients_of_all_folds_are_paired_by_site_and_organ(grid: Path) -> None:
    scores, folds = read_grid(grid)
    assert folds == {"federated": 2, "local-only": 2, "pooled": 2}
    assert scores["pooled"][("a", "a00")] == {"X": 0.8}
    text = lines_of(scores, "federated")
    blocks = {line[:16].strip(): i for i, line in enumerate(text) if line[:16].strip()}
    assert list(blocks) == ["a", "b", "all sites", "X", "Y"]
    at_b = text[blocks["b"] + 1]
    assert "local-only" in at_b
    assert "+0.020" in at_b
    assert at_b.endswith("federated better")
    assert "+0.000" in text[blocks["a"] + 1]
    assert text[blocks["all sites"]].split()[3] == "24"


def test_what_cannot_be_compared(grid: Path, tmp_path: Path) -> None:
    scores, _ = read_grid(grid)
    with pytest.raises(UserError, match="--reference"):
        lines_of(scores, "nothing")
    cell(grid, "federated-fold1-seed1", "a", [("a10", "X", 0.5)])
    with pytest.raises(UserError, match="two folds or seeds"):
        read_grid(grid)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="folds"):
        read_grid(tmp_path / "empty")
