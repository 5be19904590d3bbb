from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.archives.archive import open_archive
from core.archives.splits import assign_splits
from core.errors import UserError
from simulations.cell import wanted
from simulations.folds import fold_splits, has_own_splits, make_view, view_of
from simulations.study import read_study

NAMES = st.lists(st.integers(1, 999).map(str), min_size=4, max_size=60, unique=True)


@given(names=NAMES, cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)), folds=st.integers(2, 6))
def test_every_patient_is_tested_once(
    names: list[str], cuts: tuple[float, float], folds: int
) -> None:
    a, b = sorted(int(c * len(names)) for c in cuts)
    splits = {"train": names[:a], "val": names[a:b], "test": names[b:]}
    if len(names) < folds:
        with pytest.raises(UserError, match="fewer folds"):
            fold_splits(splits, folds)
        return
    result = fold_splits(splits, folds)
    assert len(result) == folds
    assert sorted(n for fold in result for n in fold["test"]) == sorted(names)
    sizes = [len(fold["test"]) for fold in result]
    assert max(sizes) - min(sizes) <= 1
    for fold in result:
        assert sorted(n for part in fold.values() for n in part) == sorted(names)
        assert all(fold.values())
        assert len(fold["val"]) <= max(1, b - a)
        assert len(fold["train"]) >= len(fold["val"])
    for listed in splits.values():  # each list is spread evenly over the parts
        shares = [len(set(listed) & set(fold["test"])) for fold in result]
        assert max(shares) - min(shares) <= 1
    shuffled = {split: listed[::-1] for split, listed in splits.items()}
    assert fold_splits(shuffled, folds) == result


def test_what_cannot_be_divided_is_said() -> None:
    with pytest.raises(UserError, match=">= 2"):
        fold_splits({"train": list("abcdef")}, 1)
    with pytest.raises(UserError, match="each patient once"):
        fold_splits({"train": list("abcd"), "test": ["a"]}, 2)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two sites in one archive, whose list gives its own splits; no voxels are needed here."""
    root = tmp_path / "data"
    rows = []
    for i in range(12):
        site = "ab"[i % 2]
        folder = root / site / f"case_{i:03d}"
        (folder / "structures").mkdir(parents=True)
        (folder / "img.nrrd").touch()
        (folder / "structures" / "BrainStem.nrrd").touch()
        rows.append((folder.name, "train", site, f"{site}/{folder.name}"))
    with (root / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case", "split", "site", "path"), *rows])
    return root


def test_a_view_lets_the_folds_decide(archive: Path, tmp_path: Path) -> None:
    fold = fold_splits({"train": [f"case_{i:03d}" for i in range(12)]}, 3)[1]
    explicit = {case: split for split, cases in fold.items() for case in cases}
    assert has_own_splits(archive)
    assert assign_splits(open_archive(archive), {}, explicit) != explicit
    before = (archive / "cases.csv").read_bytes()
    view = view_of(archive, tmp_path)
    make_view(archive, view)
    make_view(archive, view)
    assert not has_own_splits(view)
    opened = open_archive(view)
    assert assign_splits(opened, {}, explicit) == explicit
    assert [(c.case, c.site, set(c.structures)) for c in opened.cases] == [
        (c.case, c.site, set(c.structures)) for c in open_archive(archive).cases
    ]
    assert (archive / "cases.csv").read_bytes() == before


def test_folds_of_a_study(archive: Path, tmp_path: Path) -> None:
    lists = {s: [f"{i}" for i in range("ab".index(s), 12, 2)] for s in "ab"}
    splits = {s: {"train": n[2:], "test": n[:2]} for s, n in lists.items()}
    sites = {s: {"root": "{data}", "splits": lists_} for s, lists_ in splits.items()}
    base = tmp_path / "base.yaml"
    base.write_text(
        "phases: [{name: p, sites: [a, b], organs: [Brainstem]}]\n"
        "preprocess: {crop: [16, 16, 16]}\nmodel: {channels: [4, 8]}\n"
        f"simulation: {{sites: {sites}}}\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text("config: base.yaml\nfolds: 3\ncells: {x: {}}\n")
    out = tmp_path / "out"
    study = read_study(str(path), [f"simulation.data={archive}"], out)
    assert [c.name for c in study.cells] == [f"x-fold{k}-seed0" for k in range(3)]
    view = view_of(archive, out)
    assert study.views == {view: archive}
    tested: dict[str, list[str]] = {"a": [], "b": []}
    for cell in study.cells:
        wish = wanted(cell, study.config, out)
        assert not wish.waits
        for site, settings in wish.simulation["sites"].items():
            assert settings["root"] == view.name  # the folder of cells may move
            tested[site] += settings["splits"]["test"]
    assert {s: sorted(n) for s, n in tested.items()} == {s: sorted(n) for s, n in lists.items()}
    path.write_text("config: base.yaml\nfolds: 3\ncells: {x: {set: {simulation.sites.a.root: z}}}")
    with pytest.raises(UserError, match="'folds' makes the splits"):
        read_study(str(path), [f"simulation.data={archive}"], out)


@pytest.mark.real_data
def test_folds_of_the_real_patients(real_data: Path, tmp_path: Path) -> None:
    study = read_study("federated", [f"simulation.data={real_data}"], tmp_path)
    tested: list[str] = []
    for view, root in study.views.items():
        make_view(root, view)
    for cell in study.cells:
        if cell.variant != "pooled":
            continue
        sites = wanted(cell, study.config, tmp_path).simulation["sites"]
        for settings in sites.values():
            archive = open_archive(tmp_path / settings["root"])
            numbers = {str(int(c.case[-3:])): c.case for c in archive.cases}
            explicit = {numbers[n]: s for s, names in settings["splits"].items() for n in names}
            used = {c: s for c, s in assign_splits(archive, {}, explicit).items() if c in explicit}
            assert used == explicit
            tested += [c for c, s in explicit.items() if s == "test"]
    assert len(tested) == len(set(tested)) == 63
