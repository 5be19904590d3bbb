from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.compare.fold_tables import folds_text, lines_of, read_grid
from hnfed.evaluate.clusters import clustered_difference
from hnfed.evaluate.statistics import verdict
from tests.traps import TRAPS, within

FOLDS = 4


def cell(grid: Path, name: str, site: str, rows: list[tuple[str, str, float]]) -> None:
    path = grid / name / "sites" / site / "pretrain" / "cases.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{case},{organ},{dice},1.0" for case, organ, dice in rows]
    path.write_text("\n".join(["case,organ,dice,hd95_mm", *lines]))


def study(grid: Path, gains: list[float]) -> Path:
    """Four folds of six patients a site; at b the federation gains so much in each fold."""
    for fold, gain in enumerate(gains):
        for site in ("a", "b"):
            cases = [f"{site}{fold}{i}" for i in range(6)]
            federated = [(c, o, 0.7 + 0.01 * i) for i, c in enumerate(cases) for o in "XY"]
            better = gain if site == "b" else 0.001 * (-1) ** fold
            cell(grid, f"federated-fold{fold}-seed0", site, federated)
            local = [(c, o, d - better) for c, o, d in federated]
            cell(grid, f"local-only-fold{fold}-seed0", site, local)
        pooled = [(f"{s}/{s}{fold}{i}", "X", 0.7 + 0.01 * i) for s in "ab" for i in range(6)]
        cell(grid, f"pooled-fold{fold}-seed0", "pooled", pooled)
    return grid


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return study(tmp_path, [0.019, 0.02, 0.0205, 0.0205])


def blocks(text: list[str]) -> dict[str, int]:
    return {line[:16].strip(): i for i, line in enumerate(text) if line[:16].strip()}


def test_patients_of_all_folds_are_paired_by_site_and_organ(grid: Path) -> None:
    folded = read_grid(grid)
    assert folded.counts == {"federated": FOLDS, "local-only": FOLDS, "pooled": FOLDS}
    assert folded.scores["pooled"][("a", "a00")] == {"X": 0.7}
    assert folded.fold[("a", "a30")] == "3"
    text = lines_of(folded, "federated")
    at = blocks(text)
    assert list(at) == ["a", "b", "all sites", "X", "Y"]
    at_b = text[at["b"] + 1]
    assert "local-only" in at_b
    assert "+0.020" in at_b
    assert at_b.endswith("federated better")
    assert "+0.000" in text[at["a"] + 1]
    assert text[at["all sites"]].split()[3] == "48"
    assert "a fold counts as one draw" in folds_text(grid, "federated")


def test_patients_of_one_lucky_fold_are_no_evidence(tmp_path: Path) -> None:
    """24 pairs that all point one way: over patients p is below 0.001, over four folds 0.17."""
    text = lines_of(read_grid(study(tmp_path, [0.08, 0.01, 0.02, 0.01])), "federated")
    assert text[blocks(text)["b"] + 1].endswith("federated inconclusive")


def test_holm_counts_every_comparison_of_the_table(tmp_path: Path) -> None:
    """At b the p is 0.012 by itself and the smaller of two there, but one of ten in the table."""
    folded = read_grid(study(tmp_path, [0.01, 0.02, 0.024, 0.027]))
    text = lines_of(folded, "federated")
    assert text[blocks(text)["b"] + 1].endswith("federated inconclusive")
    only_b = {k: rows for k, rows in folded.scores["local-only"].items() if k[0] == "b"}
    one = {k: {"X": row["X"]} for k, row in only_b.items()}
    told = clustered_difference(
        [folded.scores["federated"][k]["X"] for k in one],
        [one[k]["X"] for k in one],
        [folded.fold[k] for k in one],
    )
    assert told.p == pytest.approx(0.012, abs=1e-3)
    assert verdict(told, 2 * (told.p or 0)) == "better"


def test_what_cannot_be_compared(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--reference"):
        lines_of(read_grid(grid), "nothing")
    cell(grid, "other-fold0-seed0", "a", [("a10", "X", 0.5)])  # the others test it in fold 1
    with pytest.raises(UserError, match="two folds or seeds"):
        read_grid(grid)
    (grid / "other-fold0-seed0").rename(tmp_path / "apart")
    cell(grid, "federated-fold1-seed1", "a", [("a10", "X", 0.5)])
    with pytest.raises(UserError, match="two folds or seeds"):
        read_grid(grid)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="folds"):
        read_grid(tmp_path / "empty")


@pytest.mark.parametrize("trap", TRAPS)
def test_pipes_and_devices_of_a_study_are_refused(grid: Path, trap: Callable[[Path], None]) -> None:
    trap(grid / "federated-fold0-seed0" / "sites" / "a" / "pretrain" / "cases.csv")
    with within(), pytest.raises(UserError, match="no file"):
        read_grid(grid)


@pytest.mark.parametrize("of", ["file", "cell"])
def test_scores_of_another_folder_are_none_of_the_study(
    grid: Path, tmp_path_factory: pytest.TempPathFactory, of: str
) -> None:
    cell = grid / "federated-fold0-seed0"
    moved = cell if of == "cell" else cell / "sites" / "a" / "pretrain" / "cases.csv"
    moved.rename(other := tmp_path_factory.mktemp("other") / moved.name)
    moved.symlink_to(other)
    with pytest.raises(UserError, match="a link out of the study"):
        read_grid(grid)


@pytest.mark.parametrize("text", ["case,organ,dice\np,A,x\n", "case\np\n", "\xff\n"])
def test_a_broken_table_is_named(grid: Path, text: str) -> None:
    path = grid / "federated-fold0-seed0" / "sites" / "a" / "pretrain" / "cases.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"cases\.csv") as caught:
        read_grid(grid)
    assert caught.value.remedy
