import hashlib
import hmac
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.archives.archive import Archive, CaseRef, open_archive
from core.archives.splits import (
    assign_splits,
    case_hash,
    overruled,
    split_cases,
    split_hash,
    unassigned,
)
from core.errors import UserError

THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}
DEFAULT = {"train": 0.64, "val": 0.16, "test": 0.20}


def numbered(count: int, organs: frozenset[str] = frozenset({"A"})) -> dict[str, frozenset[str]]:
    return {f"c{i:03d}": organs for i in range(count)}


def sizes(split: dict[str, str]) -> tuple[int, int, int]:
    counts = Counter(split.values())
    return counts["train"], counts["val"], counts["test"]


@pytest.mark.parametrize(
    ("count", "fractions", "expected"),
    [
        (20, THIRDS, (12, 4, 4)),
        (25, DEFAULT, (16, 4, 5)),
        (48, DEFAULT, (31, 8, 9)),
        (5, DEFAULT, (3, 1, 1)),
        (3, DEFAULT, (1, 1, 1)),
        (2, DEFAULT, (1, 0, 1)),
        (1, DEFAULT, (1, 0, 0)),
        (0, DEFAULT, (0, 0, 0)),
        (7, {"train": 1.0, "val": 0.0, "test": 0.0}, (7, 0, 0)),
        (7, {"test": 1.0}, (0, 0, 7)),
        (100, {"train": 0.71, "val": 0.29}, (71, 29, 0)),
    ],
)
def test_numbers(count: int, fractions: dict[str, float], expected: tuple[int, ...]) -> None:
    assert sizes(split_cases(numbered(count), fractions, 0)) == expected


def test_rare_organs_are_spread_first() -> None:
    cases = numbered(50, frozenset({"common"}))
    rare = [f"c{i:03d}" for i in range(0, 50, 5)]
    for case in rare:
        cases[case] = frozenset({"common", "rare"})
    for seed in range(20):
        split = split_cases(cases, THIRDS, seed)
        assert sizes(split) == (30, 10, 10)
        assert sizes({case: split[case] for case in rare}) == (6, 2, 2)


def test_several_organs_keep_their_proportion() -> None:
    draw = random.Random(3)
    rates = {"A": 0.9, "B": 0.5, "C": 0.2, "D": 0.1}
    cases = {
        f"p{i}": frozenset(o for o, rate in rates.items() if draw.random() < rate)
        for i in range(200)
    }
    for seed in range(5):
        split = split_cases(cases, DEFAULT, seed)
        for organ in rates:
            own = {case: s for case, s in split.items() if organ in cases[case]}
            wanted = [f * len(own) for f in DEFAULT.values()]
            assert all(abs(n - w) < 2 for n, w in zip(sizes(own), wanted, strict=True)), organ


def test_seed_matters_and_order_does_not() -> None:
    cases = numbered(20)
    backwards = dict(reversed(cases.items()))
    assert split_cases(cases, THIRDS, 1) == split_cases(backwards, THIRDS, 1)
    assert split_cases(cases, THIRDS, 1) != split_cases(cases, THIRDS, 2)


def test_the_split_is_the_same_for_ever() -> None:
    """Changing the rule would move patients between test and training of published runs."""
    cases = {f"c{i}": frozenset("AB" if i % 3 else "B") for i in range(10)}
    text = ",".join(f"{case}:{s}" for case, s in split_cases(cases, THIRDS, 0).items())
    assert text == PINNED


PINNED = "c0:val,c1:train,c2:train,c3:train,c4:train,c5:train,c6:test,c7:test,c8:val,c9:train"


@given(
    cases=st.dictionaries(
        st.text("abcdef0123", min_size=1, max_size=6),
        st.frozensets(st.sampled_from("ABCD")),
        max_size=30,
    ),
    weights=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 5),
)
def test_any_cases(
    cases: dict[str, frozenset[str]], weights: tuple[int, int, int], seed: int
) -> None:
    total = sum(weights)
    fractions = dict(zip(("train", "val", "test"), (w / total for w in weights), strict=True))
    split = split_cases(cases, fractions, seed)
    assert list(split) == sorted(cases)
    shuffled = list(cases.items())
    random.Random(seed).shuffle(shuffled)
    assert split_cases(dict(shuffled), fractions, seed) == split
    positive = sum(w > 0 for w in weights)
    for n, weight, share in zip(sizes(split), weights, fractions.values(), strict=True):
        assert weight > 0 or n == 0
        assert abs(n - share * len(cases)) < 2 + 1e-6
        assert n > 0 or weight == 0 or len(cases) < positive


@pytest.mark.parametrize(
    "fractions",
    [
        {"train": 0.6, "val": 0.2, "test": 0.3},
        {"train": 1.2, "val": -0.2},
        {"train": float("nan")},
        {"train": 0.8, "validation": 0.2},
        {},
    ],
)
def test_unusable_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(UserError, match="together 1"):
        split_cases(numbered(5), fractions, 0)


def archive(splits: dict[str, str | None]) -> Archive:
    refs = tuple(
        CaseRef(case, (Path("img.nrrd"),), {"Larynx": Path("l.nrrd")}, 0, None, split)
        for case, split in sorted(splits.items())
    )
    return Archive("pddca", Path("."), refs, ())


def test_without_any_list_all_cases_are_divided() -> None:
    cases = archive({f"c{i}": None for i in range(20)})
    split = assign_splits(cases, THIRDS | {"seed": 3.0})
    assert sizes(split) == (12, 4, 4)
    assert split == split_cases({r.case: frozenset({"Larynx"}) for r in cases.cases}, THIRDS, 3)


def test_the_archives_own_list_wins() -> None:
    cases = archive({"a": "test", "b": "train", "c": None, "d": None})
    split = assign_splits(cases, DEFAULT, {"a": "train", "c": "val", "z": "test"})
    assert split == {"a": "test", "b": "train", "c": "val"}
    assert [(f.code, f.case) for f in unassigned({"d", "c"})] == [
        ("W_CASE_UNASSIGNED", "c"),
        ("W_CASE_UNASSIGNED", "d"),
    ]
    told = overruled(split, {"a": "train", "b": "train", "c": "val", "z": "test"})
    assert [(f.code, f.case) for f in told] == [("W_CASE_SPLIT", "a")]
    assert "for train, but test" in told[0].message
    assert overruled(split, None) == ()


def test_an_explicit_list_is_the_whole_list() -> None:
    cases = archive({"a": None, "b": None, "c": None})
    assert assign_splits(cases, DEFAULT, {"a": "train", "b": "test"}) == {"a": "train", "b": "test"}
    assert assign_splits(cases, DEFAULT, {}) == {}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="train, val or test"):
        assign_splits(archive({"a": None}), DEFAULT, {"a": "valid"})


def test_hashes_are_hmacs_under_the_secret() -> None:
    split = {"b": "test", "a": "train"}
    value = split_hash(split, b"s")
    assert value == split_hash(dict(sorted(split.items())), b"s")
    assert value == hmac.new(b"s", b'split\n{"a":"train","b":"test"}', hashlib.sha256).hexdigest()
    assert value != split_hash(split, b"t")
    assert value != split_hash({"b": "test", "a": "val"}, b"s")
    assert case_hash("a", b"s") != case_hash("a", b"t")
    assert case_hash("a", b"s") != case_hash("b", b"s")
    assert len(case_hash("a", b"s")) == 64


def test_cases_of_one_patient_stay_together(tmp_path: Path) -> None:
    rows = "".join(f"c{i},,P{i // 3}\n" for i in range(12))
    for i in range(12):
        (tmp_path / f"c{i}").mkdir()
        (tmp_path / f"c{i}" / "img.nrrd").touch()
    (tmp_path / "cases.csv").write_text(f"case,split,patient\n{rows}")
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    drawn = assign_splits(open_archive(tmp_path), fractions)
    assert len(drawn) == 12
    assert len({(case_patient(c), s) for c, s in drawn.items()}) == 4
    assert set(drawn.values()) == {"train", "val", "test"}


def case_patient(case: str) -> int:
    return int(case[1:]) // 3


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        (tmp_path / case / "img.nrrd").touch()
    (tmp_path / "cases.csv").write_text("case,split,patient\na,train,P1\nb,test,P1\n")
    with pytest.raises(UserError, match="one patient stand in train and test"):
        assign_splits(open_archive(tmp_path), {"train": 1.0})
