from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from core.archives import cache_build as cache
from core.archives.archive import Archive, open_archive
from core.archives.cache_build import Cache, CacheReport, build_cache
from core.archives.images.volume import write_image, write_mask
from core.archives.masks import prepare_masks
from core.archives.preprocess import prepare_image
from core.data.cache import Recipe, open_cache
from core.data.geometry import Geometry
from core.errors import UserError
from core.plan.schema import Preprocess

SETTINGS = Preprocess([4.0, 4.0, 4.0], [20, 22, 24], [-200.0, 300.0])
GRID = Geometry((24, 28, 30), (4.0, 3.5, 3.5), (-50.0, -40.0, 12.0))
ORGANS = ("Brainstem", "Parotid_L", "Parotid_R")
SHIFT = {"Brainstem": (3, 0, 0), "Parotid_L": (0, 0, 5), "Parotid_R": (0, 0, -5)}
PDDCA = {"Brainstem": "BrainStem", "Parotid_L": "Parotid_L", "Parotid_R": "Parotid_R"}


def masks_of(seed: int) -> dict[str, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    masks = {}
    for organ in ORGANS:
        z, y, x = rng.integers(8, 12, 3) + SHIFT[organ]
        masks[organ] = np.zeros(GRID.size, dtype=np.bool_)
        masks[organ][z : z + 6, y : y + 7, x : x + 5 + len(masks)] = True
    return masks


def write_case(root: Path, case: str, seed: int, organs: tuple[str, ...] = ORGANS) -> None:
    image = np.full(GRID.size, -1000, dtype=np.int16)
    image[:22, 4:26, 4:28] = np.random.default_rng(seed).integers(0, 80, (22, 22, 24))
    write_image(root / case / "img.nrrd", image, GRID)
    for organ in organs:
        path = root / case / "structures" / f"{PDDCA[organ]}.nrrd"
        write_mask(path, masks_of(seed)[organ], GRID)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    root = tmp_path / "very secret hospital"
    for i in range(3):
        write_case(root, f"case_{i}", i, ORGANS if i else ORGANS[:2])
    return open_archive(root)


def build(archive: Archive, folder: Path, **changes: object) -> CacheReport:
    splits = {ref.case: "test" if ref.case.endswith("2") else "train" for ref in archive.cases}
    options: dict[str, object] = {
        "organs": ORGANS,
        "settings": SETTINGS,
        "splits": splits,
    } | changes
    recipe = Recipe(options.pop("organs"), options.pop("settings"))  # type: ignore[arg-type]
    cache = Cache(folder, quota_bytes=options.pop("quota_bytes", 0))  # type: ignore[arg-type]
    splits = options.pop("splits")  # type: ignore[assignment]
    return build_cache(archive, splits, cache, recipe, **options)  # type: ignore[arg-type]


def files_below(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_opened_is_what_was_prepared(archive: Archive, tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool]] = []
    report = build(archive, tmp_path / "c", progress=lambda *step: seen.append(step))
    assert (report.built, report.reused) == (3, 0)
    assert seen == [(1, 3, True), (2, 3, True), (3, 3, True)]
    entries = open_cache(tmp_path / "c", ORGANS, SETTINGS)
    assert entries == list(report.entries)
    assert [(e.case, e.split) for e in entries] == [
        ("case_0", "train"), ("case_1", "train"), ("case_2", "test"),
    ]  # fmt: skip
    for seed, entry in enumerate(entries):
        masks = {o: m for o, m in masks_of(seed).items() if seed or o != "Parotid_R"}
        assert entry.annotated == set(masks)
        assert entry.source == GRID
        image = np.full(GRID.size, -1000, dtype=np.int16)
        image[:22, 4:26, 4:28] = np.random.default_rng(seed).integers(0, 80, (22, 22, 24))
        crop, crop_grid = prepare_image(image, GRID, SETTINGS)
        shares = prepare_masks(masks, GRID, crop_grid, ORGANS)
        assert entry.crop == crop_grid
        assert isinstance(entry.image(), np.memmap)
        assert entry.image().dtype == np.int16
        np.testing.assert_array_equal(entry.image(), crop)
        found = entry.shares(ORGANS)
        assert set(found) == set(shares) == set(masks)
        for organ, (box, values) in shares.items():
            assert found[organ][0] == box
            assert isinstance(found[organ][1], np.memmap)
            np.testing.assert_array_equal(found[organ][1], values)
        assert set(entry.shares(["Brainstem", "Larynx"])) == {"Brainstem"}
        truth = entry.truth()
        assert set(truth) == set(masks)
        for organ, mask in masks.items():
            np.testing.assert_array_equal(truth[organ], mask)
        assert set(entry.truth(["Brainstem"])) == {"Brainstem"}
        assert entry.voxels == {o: round(float(v.sum()) / 255) for o, (_, v) in shares.items()}
        assert entry.crop_voxels == 20 * 22 * 24
        claims = np.zeros(crop_grid.size, dtype=int)
        for box, values in shares.values():
            claims[box] += values > 127
        assert entry.overlap_voxels == (claims > 1).sum()


def test_only_what_changed_is_prepared_again(archive: Archive, tmp_path: Path) -> None:
    build(archive, tmp_path / "c")
    before = files_below(tmp_path / "c" / "entries")
    again = build(archive, tmp_path / "c")
    assert (again.built, again.reused) == (0, 3)
    assert files_below(tmp_path / "c" / "entries") == before
    write_case(archive.root, "case_1", 77)
    changed = build(archive, tmp_path / "c")
    assert (changed.built, changed.reused) == (1, 2)
    np.testing.assert_array_equal(
        open_cache(tmp_path / "c", ORGANS, SETTINGS)[1].truth()["Brainstem"],
        masks_of(77)["Brainstem"],
    )
    for settings in (
        Preprocess([4.0, 4.0, 3.0], SETTINGS.crop, SETTINGS.window_hu),
        Preprocess(SETTINGS.spacing_mm, [20, 22, 23], SETTINGS.window_hu),
        Preprocess(SETTINGS.spacing_mm, SETTINGS.crop, [-200.0, 301.0]),
    ):
        assert build(archive, tmp_path / "c", settings=settings).built == 3
    assert build(archive, tmp_path / "c", organs=ORGANS[::-1]).built == 3
    assert build(archive, tmp_path / "c", organs=ORGANS[:2]).built == 3
    assert open_cache(tmp_path / "c", ORGANS, SETTINGS)[0].crop.size == (20, 22, 24)


def test_opening_reads_nothing_of_the_archive(archive: Archive, tmp_path: Path) -> None:
    build(archive, tmp_path / "c")
    for path in sorted(archive.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    entries = open_cache(tmp_path / "c", ORGANS, SETTINGS)
    assert entries[2].truth()["Brainstem"].any()


def test_nothing_says_where_the_archive_lies(archive: Archive, tmp_path: Path) -> None:
    write_mask(archive.root / "case_0/structures/Parotid_R.nrrd", np.zeros(GRID.size, bool), GRID)
    report = build(open_archive(archive.root), tmp_path / "c")
    assert [f.code for f in report.findings] == ["E_LABEL_EMPTY"]
    for path in files_below(tmp_path / "c"):
        assert b"secret hospital" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_findings_are_told_again_when_an_entry_is_reused(archive: Archive, tmp_path: Path) -> None:
    off = Geometry(GRID.size, GRID.spacing_mm, (400.0, 0.0, 0.0))
    write_mask(archive.root / "case_1/structures/BrainStem.nrrd", masks_of(1)["Brainstem"], off)
    first, second = build(archive, tmp_path / "c"), build(archive, tmp_path / "c")
    assert second.reused == 3
    assert first.findings == second.findings
    assert [(f.case, f.organ, f.severity) for f in first.findings] == [
        ("case_1", "Brainstem", "error")
    ]
    assert "Brainstem" not in second.entries[1].annotated


def test_organs_outside_the_crop_are_findings(archive: Archive, tmp_path: Path) -> None:
    narrow = Preprocess([4.0, 4.0, 4.0], [12, 8, 2], SETTINGS.window_hu)
    report = build(archive, tmp_path / "c", settings=narrow)
    codes = {f.code for f in report.findings}
    assert "W_ORGAN_CUT_BY_CROP" in codes
    cut = next(f for f in report.findings if f.code == "W_ORGAN_CUT_BY_CROP")
    assert (cut.severity, cut.case[:5]) == ("warning", "case_")
    assert "%" in cut.message
    report = build(archive, tmp_path / "c", settings=Preprocess([1.0, 1.0, 1.0], [2, 2, 2]))
    assert {f.code for f in report.findings} == {"W_ORGAN_NOT_IN_CROP"}


def test_a_bad_case_is_left_out_and_the_others_go_on(archive: Archive, tmp_path: Path) -> None:
    (archive.root / "case_1" / "img.nrrd").write_bytes(b"NRRD0004\nnonsense")
    write_case(archive.root, "case_3", 3, ())
    archive = open_archive(archive.root)
    report = build(archive, tmp_path / "c")
    assert [e.case for e in report.entries] == ["case_0", "case_2"]
    assert [(f.case, f.severity) for f in report.findings] == [
        ("case_1", "error"),
        ("case_3", "error"),
    ]
    assert report.findings[1].code == "E_NO_ORGAN"
    assert [e.case for e in open_cache(tmp_path / "c", ORGANS, SETTINGS)] == ["case_0", "case_2"]
    for case in ("case_0", "case_2"):
        (archive.root / case / "img.nrrd").write_bytes(b"NRRD0004\nnonsense")
    with pytest.raises(UserError, match="hnfed check"):
        build(archive, tmp_path / "c")


def test_sites_share_a_folder(archive: Archive, tmp_path: Path) -> None:
    for site, refs in (("nyu", archive.cases[:2]), ("miccai", archive.cases[1:])):
        splits = {ref.case: "val" for ref in refs}
        build_cache(archive, splits, Cache(tmp_path / "c", site), Recipe(ORGANS, SETTINGS))
    cases = {
        site: [e.case for e in open_cache(tmp_path / "c", ORGANS, SETTINGS, site=site)]
        for site in ("nyu", "miccai")
    }
    assert cases == {"nyu": ["case_0", "case_1"], "miccai": ["case_1", "case_2"]}
    assert len(list((tmp_path / "c" / "entries").iterdir())) == 3
    with pytest.raises(UserError, match="hnfed prepare"):
        open_cache(tmp_path / "c", ORGANS, SETTINGS, site="elsewhere")


def test_what_is_not_prepared_or_damaged_is_said(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hnfed prepare"):
        open_cache(tmp_path / "none", ORGANS, SETTINGS)
    report = build(archive, tmp_path / "c")
    with pytest.raises(UserError, match="hnfed prepare"):
        open_cache(tmp_path / "c", ORGANS, Preprocess())
    folder = report.entries[0].folder
    cut = (folder / "image.npy").read_bytes()[:-100]
    (folder / "image.npy").write_bytes(cut)
    with pytest.raises(UserError, match="prepare the archive again"):
        report.entries[0].image()
    repaired = build(archive, tmp_path / "c")
    assert (repaired.built, repaired.reused) == (1, 2)
    assert repaired.entries[0].image().shape == (20, 22, 24)
    meta = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps({**meta, "format": 0}))
    with pytest.raises(UserError, match="damaged"):
        open_cache(tmp_path / "c", ORGANS, SETTINGS)


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from core.plan.schema import Preprocess
from core.archives.archive import open_archive
from core.archives.cache_build import Cache, build_cache
from core.data.cache import Recipe
calls, limit = [0], int(sys.argv[3])
fsync = os.fsync
def counted(handle):
    calls[0] += 1
    if calls[0] == limit:
        os._exit(9)
    fsync(handle)
os.fsync = counted
archive = open_archive(sys.argv[1])
splits = {ref.case: "train" for ref in archive.cases}
settings = Preprocess([4.0, 4.0, 4.0], [20, 22, 24], [-200.0, 300.0])
organs = ("Brainstem", "Parotid_L", "Parotid_R")
report = build_cache(archive, splits, Cache(Path(sys.argv[2])), Recipe(organs, settings))
print(report.built, report.reused)
"""


def spawn(archive: Archive, folder: Path, limit: int) -> subprocess.Popen[str]:
    repository = Path(cache.__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(archive.root), str(folder), str(limit)]
    return subprocess.Popen(
        command, cwd=repository, env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_build_leaves_no_broken_entry(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    process = spawn(archive, folder, 8)
    process.communicate(timeout=120)
    assert process.returncode == 9
    names = [p.name for p in (folder / "entries").iterdir()]
    assert sum(name.startswith(".") for name in names) == 1
    report = build(archive, folder)
    assert (report.built, report.reused) == (2, 1)
    assert not [p for p in (folder / "entries").iterdir() if p.name.startswith(".")]
    for seed, entry in enumerate(report.entries):
        np.testing.assert_array_equal(entry.truth()["Brainstem"], masks_of(seed)["Brainstem"])


def test_processes_build_each_entry_once(archive: Archive, tmp_path: Path) -> None:
    processes = [spawn(archive, tmp_path / "c", 0) for _ in range(2)]
    counts = [tuple(map(int, p.communicate(timeout=200)[0].split())) for p in processes]
    assert sum(built for built, _ in counts) == 3
    assert all(sum(pair) == 3 for pair in counts)
    assert len(open_cache(tmp_path / "c", ORGANS, SETTINGS)) == 3


def test_a_full_disk_is_an_error_for_the_user(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(UserError, match="free space"):
        build(archive, tmp_path / "c")
    assert not list((tmp_path / "c" / "entries").iterdir())


def test_processes_of_one_call_give_the_same(archive: Archive, tmp_path: Path) -> None:
    one, two = build(archive, tmp_path / "a"), build(archive, tmp_path / "b", jobs=2)
    assert [e.folder.name for e in one.entries] == [e.folder.name for e in two.entries]
    assert (two.built, two.reused, two.findings) == (3, 0, one.findings)
    for a, b in zip(one.entries, two.entries, strict=True):
        assert (a.folder / "image.npy").read_bytes() == (b.folder / "image.npy").read_bytes()


def test_a_changed_bit_is_found_and_the_entry_built_again(archive: Archive, tmp_path: Path) -> None:
    path = build(archive, tmp_path / "c").entries[0].folder / "shares.npy"
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(bytes(data))
    report = build(archive, tmp_path / "c")
    assert (report.built, report.reused) == (1, 2)
    assert path.read_bytes() != bytes(data)


def test_a_cache_says_what_it_was_made_of(archive: Archive, tmp_path: Path) -> None:
    report = build(archive, tmp_path / "c")
    (index,) = (tmp_path / "c" / "index").iterdir()
    made_of = json.loads(index.read_text())["made_of"]
    assert made_of["archive"] == "pddca"
    assert made_of["organs"] == list(ORGANS)
    assert made_of["crop"] == [20, 22, 24]
    assert made_of["cases"] == {"train": 2, "val": 0, "test": 1}
    assert made_of["annotated"] == {"Brainstem": 3, "Parotid_L": 3, "Parotid_R": 2}
    assert made_of["versions"]["numpy"] == np.__version__
    entry = json.loads((report.entries[0].folder / "entry.json").read_text())
    assert entry["made_of"]["spacing_mm"] == [4.0, 4.0, 4.0]
    assert len(entry["made_of"]["files"]) == 64


def test_what_check_calls_an_error_is_left_out(archive: Archive, tmp_path: Path) -> None:
    folder = archive.root / "case_1" / "structures"
    for organ, other in (("Parotid_L", "Parotid_R"), ("Parotid_R", "Parotid_L")):
        write_mask(folder / f"{organ}.nrrd", masks_of(1)[other], GRID)
    shutil.copytree(archive.root / "case_0", archive.root / "case_2_copy")
    again = open_archive(archive.root)
    splits = {"case_0": "train", "case_1": "train", "case_2": "val", "case_2_copy": "test"}
    report = build(again, tmp_path / "c", splits=splits)
    assert {(f.case, f.code, f.organ) for f in report.findings} == {
        ("case_1", "E_ORGAN_SIDE", "Parotid_L"),
        ("case_1", "E_ORGAN_SIDE", "Parotid_R"),
        ("case_0", "E_DUPLICATE", ""),
    }
    assert [e.case for e in report.entries] == ["case_1", "case_2", "case_2_copy"]
    assert report.entries[0].annotated == {"Brainstem"}


def test_a_cache_grows_to_its_quota_and_keeps_what_it_has(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cache_gb"):
        build(archive, tmp_path / "c", quota_bytes=1000)
    built = build(archive, tmp_path / "d")
    held = sum(p.stat().st_size for p in (tmp_path / "d" / "entries").rglob("*.npy"))
    again = build(archive, tmp_path / "d", quota_bytes=1000)
    assert (again.built, again.reused) == (0, built.built), "what is there is used as before"
    assert held > 1000
