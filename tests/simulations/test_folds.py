from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.archives.archive import open_archive
from core.archives.splits import assign_splits
from core.errors import UserError
from core.plan.load import load
from simulations.cell import wanted
from simulations.folds import drawn_splits, fold_splits, has_own_splits, make_view, view_of
from simulations.site_map import archive_roots
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


@given(names=NAMES, folds=st.integers(2, 4), seed=st.integers(0, 9))
def test_few_of_the_others_are_drawn_by_a_seed(names: list[str], folds: int, seed: int) -> None:
    rest = len(names) - -(-len(names) // folds)
    train, val = max(1, rest // 2), rest // 4
    result = drawn_splits(names, folds, train=train, val=val, seed=seed)
    assert sorted(n for fold in result for n in fold["test"]) == sorted(names)
    sizes = [len(fold["test"]) for fold in result]
    assert max(sizes) - min(sizes) <= 1
    for fold in result:
        assert (len(fold["train"]), len(fold["val"])) == (train, val)
        used = [n for part in fold.values() for n in part]
        assert len(used) == len(set(used))
    assert drawn_splits(names[::-1], folds, train=train, val=val, seed=seed) == result
    with pytest.raises(UserError, match="list more, or ask for less"):
        drawn_splits(names, folds, train=rest, val=1, seed=seed)


def test_another_seed_is_another_draw() -> None:
    names = [str(i) for i in range(43)]
    one, two = (drawn_splits(names, 4, train=12, val=6, seed=s) for s in (0, 1))
    assert one != two
    assert len({tuple(fold["train"]) for fold in one}) == 4  # each fold draws for itself
    with pytest.raises(UserError, match="each patient once"):
        drawn_splits([*names, "7"], 4, train=12, val=6, seed=0)


def test_folds_over_several_folders_read_a_view_of_each(archive: Path, tmp_path: Path) -> None:
    """The second folder's list gives no splits, so it is read as it is."""
    more = tmp_path / "more"
    for i in range(12, 16):
        folder = more / f"case_{i:03d}"
        (folder / "structures").mkdir(parents=True)
        (folder / "img.nrrd").touch()
        (folder / "structures" / "BrainStem.nrrd").touch()
    base = tmp_path / "base.yaml"
    own, others = [f"{i}" for i in range(6, 16)], [f"{i}" for i in range(6)]
    lists = {"few": own, "many": others}
    sites = {s: {"root": "{data}", "splits": {"train": names}} for s, names in lists.items()}
    base.write_text(
        "phases: [{name: p, sites: [few], organs: [Brainstem]}, "
        "{name: q, sites: [many], organs: [Brainstem]}]\n"
        "preprocess: {crop: [16, 16, 16]}\nmodel: {channels: [4, 8]}\n"
        f"simulation: {{sites: {sites}}}\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text(
        "config: base.yaml\nfolds: {count: 2, sites: [few], train: 3, val: 1, seed: 5}\n"
        "cells: {first: {folds: false, phases: [q]}, then: {needs: first, phases: [p], "
        "set: {tracking.project: '{first}'}}}\n"
    )
    out = tmp_path / "out"
    study = read_study(str(path), [f"simulation.data=[{archive},{more}]"], out)
    names = ["first-seed0", "then-fold0-seed0", "then-fold1-seed0"]
    assert [c.name for c in study.cells] == names
    assert [c.needs for c in study.cells] == [(), ("first-seed0",), ("first-seed0",)]
    view = view_of(archive, out)
    assert study.views == {view: archive}
    make_view(archive, view)
    folds = drawn_splits(own, 2, train=3, val=1, seed=5)
    first, *rest = [wanted(cell, study.config, out).simulation["sites"] for cell in study.cells]
    assert first["many"]["splits"] == {"train": others}  # no fold divides the other site
    for found, fold in zip(rest, folds, strict=True):
        assert found["few"]["splits"] == fold
        assert found["few"]["root"] == f"{view.name}:{more}"
    config, _ = load(study.config, study.cells[1].overrides)
    roots = archive_roots("few", config.simulation.sites["few"], config.simulation)
    assert roots == [view, more]
    text = path.read_text().replace("train: 3, ", "")
    path.write_text(text)
    with pytest.raises(UserError, match=r"folds\.train"):
        read_study(str(path), [f"simulation.data=[{archive},{more}]"], out)
    path.write_text(text.replace("[few]", "[nobody]"))
    with pytest.raises(UserError, match="list sites of"):
        read_study(str(path), [f"simulation.data=[{archive},{more}]"], out)


@pytest.mark.real_data
def test_no_fold_of_the_deciding_study_leaks(real_data: Path, tmp_path: Path) -> None:
    more = real_data.parent / "openkbp_more"
    if not more.is_dir():
        pytest.skip("openkbp_more is not there")
    rows = [
        (str(int(row["case"][-3:])), row["has_new_organs"] == "1", row["site"])
        for folder in (real_data, more)
        for row in csv.DictReader((folder / "cases.csv").open())
    ]
    config, _ = load("openkbp-deciding", [])
    sites = {name: site.splits["train"] for name, site in config.simulation.sites.items()}
    assert sorted(sites["clinic"]) == sorted(n for n, new, _ in rows if new)
    assert sorted(sites["others"]) == sorted(n for n, new, _ in rows if not new)
    for name in ("site_a", "site_b"):
        assert sorted(sites[name]) == sorted(n for n, new, s in rows if s == name and not new)
