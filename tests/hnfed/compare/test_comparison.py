"""`hnfed compare` on run folders written here: pairs, seeds, baselines, servers, foreign scores."""

from __future__ import annotations

import csv
import json
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.errors import UserError
from core.plan.load import to_yaml
from core.plan.schema import Config, Phase, Preprocess, SimulatedSite, Simulation
from hnfed.cli.main import main
from hnfed.compare.comparison import compare, summary
from hnfed.compare.runs import Score, read_member
from hnfed.compare.tables import COLUMNS, PhaseTable
from hnfed.compare.variants import _mean_scores, identity, variants_of
from hnfed.compare.view import signed
from hnfed.report.charts import interval_chart

ORGANS = ["Brainstem", "Parotid_L"]
SITES = ("north", "south")
CANARY = "canary-patient"
BASE = {"Brainstem": 0.8, "Parotid_L": 0.7}
Scores = Mapping[tuple[str, str], Mapping[str, float | None]]


@pytest.fixture(autouse=True)
def _keep_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def dice_of(shift: float = 0.0, *, cases: int = 8, noise: float = 0.01, seed: int = 1) -> Scores:
    """(site, case) -> organ -> Dice: the same patients for every seed, moved by `shift`."""
    patients, own = random.Random(0), random.Random(seed)
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for site in SITES:
        for i in range(cases):
            level = patients.gauss(0, 0.05)
            found[site, f"{CANARY}-{site}-{i}"] = {
                o: BASE[o] + level + shift + own.gauss(0, noise) for o in ORGANS
            }
    return found


def make_run(
    folder: Path, scores: Scores, *, baseline: str = "", seed: int = 0, lr: float = 0.001,
    sites: Sequence[str] = SITES, curve: Sequence[float] = (0.1, 0.5, 0.72, 0.74),
    local: bool = True, split: str = "s", phantom: str = "", phase: str = "pretrain",
) -> Path:  # fmt: skip
    """A run folder of one phase as `simulate` leaves it; `local` False: as a server does."""
    places = {
        s: SimulatedSite(phantom=phantom, root="" if phantom else f"/data/{s}") for s in sites
    }
    plan = Config(
        phases=[Phase(name=phase, sites=list(sites), organs=ORGANS, rounds=3, local_epochs=2)],
        preprocess=Preprocess([3.0, 3.0, 3.0], [40, 40, 40], [-200.0, 300.0]),
        simulation=Simulation(baseline=baseline, sites=places), seed=seed,
    )  # fmt: skip
    folder.mkdir(parents=True)
    text = to_yaml(plan)
    assert "\n  lr: 0.0" in text
    before, _, after = text.partition("\n  lr: ")
    (folder / "config.yaml").write_text(f"{before}\n  lr: {lr}\n{after.split(chr(10), 1)[1]}")
    parts = {"local-only": [(f"{phase}-{s}", [s]) for s in sites], "pooled": [(phase, ["pooled"])]}
    events: list[dict[str, Any]] = []
    blocks = []
    for name, at in parts.get(baseline, [(phase, list(sites))]):
        cells: dict[str, Any] = {}
        for site in at:
            mine = {k: v for k, v in scores.items() if site in (k[0], "pooled")}
            rows = [
                (
                    f"{s}/{case}" if site == "pooled" else case,
                    organ,
                    d or 0.0,
                    "" if d is None else 5,
                )
                for (s, case), organs in mine.items()
                for organ, d in organs.items()
            ]
            if local and rows:
                write_cases(folder / "sites" / site / name / "cases.csv", rows)
                (folder / "sites" / site / "split.hmac").write_text(split)
            cells[site] = {"test": {o: cell([r for r in rows if r[1] == o]) for o in ORGANS}}
        for r in range(1, 4):
            val = {o: cell([("", o, curve[r - 1], 5)] * 3) for o in ORGANS}
            events.append(
                {"event": "round", "phase": name, "round": r, "scored_round": r - 1,
                 "seconds": 10.0, "mean": {"dice": curve[r - 1]},
                 "sites": {s: {"val": val} for s in at}}
            )  # fmt: skip
        pooled = {
            o: cell([("", o, d[o] or 0.0, "" if d[o] is None else 5) for d in scores.values()])
            for o in ORGANS
        }
        mean = {"dice": sum(c["dice"] for c in pooled.values()) / 2, "n": 2 * len(scores),
                "missed": 0, "hd95_mm": 5.0, "organs": pooled}  # fmt: skip
        last = {o: cell([("", o, curve[3], 5)] * 3) for o in ORGANS}
        blocks.append({"name": name, "organs": ORGANS, "rounds": 3, "best_round": 3, "mean": mean,
                       "sites": {s: {**c, "val": last} for s, c in cells.items()},
                       "mean_val": {"dice": curve[3]}})  # fmt: skip
    (folder / "journal.jsonl").write_text("\n".join(json.dumps(e) for e in events) + "\n")
    metrics = {"schema": 1, "run": folder.name, "status": "completed", "phases": blocks}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def cell(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    n = len(rows)
    missed = sum(r[3] == "" for r in rows)
    dice = sum(r[2] for r in rows) / n if n else None
    return {"n": n, "missed": missed, "dice": dice, "hd95_mm": 5.0, "hd95_mm_penalised": 5.0}


def write_cases(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("case", "organ", "dice", "hd95_mm"), *rows])


def compared(*arguments: object, **options: Any) -> PhaseTable:
    out = options.pop("out")
    defaults = {"phase": None, "reference": None, "level": 0.7} | options
    return compare([str(a) for a in arguments], out, **defaults)[0]


def test_a_clear_gain_is_found_paired_and_in_every_file(tmp_path: Path) -> None:
    a, b = dice_of(), dice_of(0.03, seed=2)
    make_run(tmp_path / "plain", a)
    make_run(tmp_path / "tuned", b, lr=0.002)
    table = compared(tmp_path / "plain", f"new={tmp_path / 'tuned'}", out=tmp_path / "out")
    row = table.row("new", "all", "mean")
    means = [sum(d.values()) / 2 for d in a.values()], [sum(d.values()) / 2 for d in b.values()]  # type: ignore[arg-type]
    differences = [y - x for x, y in zip(*means, strict=True)]
    assert row.pairs == 16
    assert row.difference == pytest.approx(sum(differences) / 16, abs=1e-5)
    assert row.p == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-6)
    assert row.p_smallest == pytest.approx(2 / 2**16)
    assert row.p_holm == pytest.approx(3 * row.p)  # type: ignore[operator]
    assert row.verdict == "better"
    assert row.diff_low is not None
    assert row.diff_high is not None
    assert 0 < row.diff_low < row.difference < row.diff_high  # type: ignore[operator]
    plain = table.row("plain", "all", "Brainstem")
    assert plain.verdict == ""
    assert plain.dice == pytest.approx(sum(d["Brainstem"] or 0 for d in a.values()) / 16, abs=1e-5)
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == 2 * 3 * 3  # variants x (organs, mean) x (all, two sites)
    told = next(r for r in lines if (r["variant"], r["site"], r["organ"]) == ("new", "all", "mean"))
    assert float(told["difference"]) == pytest.approx(row.difference, abs=1e-5)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert f"+{row.difference:.3f}" in page
    assert "<code>train.lr</code>" in page
    assert "better" in page
    assert "http" not in page.replace("Content-Security-Policy", "").replace("http-equiv", "")
    tex = (tmp_path / "out" / "compare.tex").read_text()
    assert r"Parotid\_L & " in tex
    assert f"{plain.dice:.3f} [{plain.low:.3f}, {plain.high:.3f}]" in tex
    for name in ("compare.html", "compare.csv", "compare.tex"):
        assert CANARY not in (tmp_path / "out" / name).read_text()


def test_equal_runs_are_inconclusive_and_few_patients_claim_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "a", dice_of(cases=2))
    make_run(tmp_path / "b", dice_of(0.1, cases=2, seed=2))
    make_run(tmp_path / "same", dice_of(cases=2), lr=0.5)
    names = [f"{n}={tmp_path / n}" for n in ("a", "b", "same")]
    table = compared(*names, out=tmp_path / "out")
    clear = table.row("b", "all", "mean")
    assert clear.p_smallest == 0.125
    assert clear.diff_low is not None
    assert clear.diff_low > 0.05
    assert clear.verdict == "inconclusive"
    equal = table.row("same", "all", "mean")
    assert (equal.difference, equal.p, equal.verdict) == (0.0, 1.0, "inconclusive")


def test_seeds_of_one_plan_are_averaged_patient_by_patient(tmp_path: Path) -> None:
    first, second = dice_of(), dice_of(0.04, seed=5)
    make_run(tmp_path / "s0", first, seed=0)
    make_run(tmp_path / "s1", second, seed=1, curve=(0.2, 0.3, 0.4, 0.5))
    make_run(tmp_path / "other", dice_of(seed=3), lr=0.1)
    table = compared(*(tmp_path / n for n in ("s0", "s1", "other")), out=tmp_path / "out")
    assert list(table.patients.items()) == [("s0", 16), ("other", 16)]
    row = table.row("s0", "all", "Parotid_L")
    values = [d["Parotid_L"] or 0 for d in (*first.values(), *second.values())]
    assert row.dice == pytest.approx(sum(values) / 32, abs=1e-5)
    assert row.n == 16
    speed = table.speeds[0]
    assert (speed.seeds, speed.best, speed.to_level) == (2, pytest.approx(0.62), (1, 4.0, 20.0))
    assert dict(table.curves["s0"])[4.0] == pytest.approx((0.72 + 0.4) / 2)
    assert "2: 0, 1" in (tmp_path / "out" / "compare.html").read_text()


def test_names_decide_which_runs_are_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"s{seed}", dice_of(), seed=seed)
    make_run(tmp_path / "again", dice_of(), seed=0)
    make_run(tmp_path / "other", dice_of(), seed=1, lr=0.1)
    members = {p.name: str(p) for p in tmp_path.iterdir()}

    def grouped(*arguments: str) -> list[int]:
        return [len(v.runs) for v in variants_of([read_member(a) for a in arguments])]

    assert grouped(members["s0"], members["s1"]) == [2]
    assert grouped("x=" + members["s0"], "y=" + members["s1"]) == [1, 1]
    assert grouped(members["s0"], members["again"], members["other"]) == [1, 1, 1]
    with pytest.raises(UserError, match="more than the seed"):
        grouped("x=" + members["s0"], "x=" + members["other"])
    with pytest.raises(UserError, match="seed 0 is there twice"):
        grouped("x=" + members["s0"], "x=" + members["again"])


def test_runs_from_other_checkpoints_are_still_seeds() -> None:
    def config(init: str) -> dict[str, Any]:
        return {"phases": [{"name": "p", "init": init}], "seed": 0}

    assert identity(config("sha256:aa")) == identity(config("x/best.safetensors"))
    assert identity(config("scratch")) != identity(config("x/best.safetensors"))


def test_baselines_meet_the_federation_on_each_sites_own_patients(tmp_path: Path) -> None:
    make_run(tmp_path / "joined", dice_of(0.05))
    make_run(tmp_path / "alone", dice_of(seed=2), baseline="local-only")
    make_run(tmp_path / "mixed", dice_of(0.06, seed=3), baseline="pooled", split="t")
    table = compared(*(tmp_path / n for n in ("joined", "alone", "mixed")), out=tmp_path / "out")
    assert table.phase == "pretrain"
    assert table.sites == SITES
    assert set(table.patients.values()) == {16}
    assert table.row("mixed", "all", "mean").pairs == 16
    there = table.row("alone", "south", "mean")
    assert there.p == there.p_smallest == 2 / 2**8
    assert there.p_holm == pytest.approx(12 / 2**7)  # 12 comparisons: 8 patients are too few
    assert there.verdict == "inconclusive"
    assert table.row("alone", "all", "mean").verdict == "worse"
    gains = {(g.variant, g.site, g.organ): g for g in table.gains}
    assert len(gains) == 2 * 2 * 3
    gain = gains["joined", "north", "Parotid_L"]
    assert gain.difference.patients == 8
    assert gain.difference.value == pytest.approx(0.05, abs=0.015)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert f"joining (joined) gained north +{gain.difference.value:.3f} Dice on Parotid_L (" in page
    assert "pooling (mixed) gained north" in page
    assert {s.variant: s.best_epoch for s in table.speeds} == dict.fromkeys(table.patients, 6.0)
    seconds = {s.variant: s.best_seconds for s in table.speeds}
    assert seconds == {"joined": 30.0, "alone": 60.0, "mixed": 30.0}


def test_a_site_left_out_meets_the_federation_through_foreign_scores(tmp_path: Path) -> None:
    make_run(tmp_path / "all", dice_of(0.05))
    less = {k: v for k, v in dice_of(seed=2).items() if k[0] == "north"}
    make_run(tmp_path / "less", less, sites=["north"])
    rows = [
        {"case": case, "organ": o, "dice": d, "hd95_mm": 4.0, "penalty_mm": 100.0, "site": None}
        for (site, case), organs in dice_of(seed=2).items() if site == "south"
        for o, d in organs.items()
    ]  # fmt: skip
    rows[0] |= {"dice": 0.0, "hd95_mm": None}
    organs = {organ: {"n": 8} for organ in ORGANS}
    content = {"schema": 1, "organs": organs, "cases": rows, "notes": ["see me"]}
    (tmp_path / "south.json").write_text(json.dumps(content))
    table = compared(
        tmp_path / "all", f"less={tmp_path / 'less'}", f"less={tmp_path / 'south.json'}",
        out=tmp_path / "out",
    )  # fmt: skip
    assert table.untrained == {("less", "south")}
    row = table.row("less", "south", "Brainstem")
    assert (row.n, row.missed, row.pairs) == (8, 1, 8)
    assert row.hd95_mm_penalised == pytest.approx((7 * 4.0 + 100.0) / 8)
    assert {g.site for g in table.gains} == {"south"}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "joining (all over less, trained without it) gained south" in page
    assert "†" in page
    assert "see me" in page


def test_only_common_patients_are_paired_and_the_rest_is_counted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", dice_of())
    fewer = dict(list(dice_of(seed=2).items())[3:]) | {
        ("north", f"{CANARY}-new"): {"Brainstem": 0.5, "Parotid_L": None}
    }
    make_run(tmp_path / "b", fewer, split="another")
    table = compared(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", out=tmp_path / "out")
    row = table.row("b", "all", "mean")
    assert (row.n, row.missed, row.pairs) == (28, 1, 13)
    notes = " ".join(table.notes)
    assert "13 test patients of both are paired" in notes
    assert "1 only in b, 3 only in a" in notes
    assert "another split of the cases at north, south" in notes
    assert "note: b and a" in summary(table)


def test_a_difference_between_single_runs_is_said_to_be_about_these_models(tmp_path: Path) -> None:
    make_run(tmp_path / "s0", dice_of(), seed=0)
    make_run(tmp_path / "s1", dice_of(0.04), seed=1)
    make_run(tmp_path / "other", dice_of(seed=3), lr=0.1)
    table = compared(*(tmp_path / n for n in ("s0", "s1", "other")), out=tmp_path / "out")
    assert "trained once: other." in " ".join(table.notes)
    alone = compared(tmp_path / "s0", tmp_path / "s1", out=tmp_path / "out")
    assert "trained once" not in " ".join(alone.notes)


def test_phantoms_of_another_seed_are_other_patients(tmp_path: Path) -> None:
    make_run(tmp_path / "zero", dice_of(), phantom="nyu", seed=0)
    make_run(tmp_path / "one", dice_of(0.1), phantom="nyu", seed=1)
    apart = compared(f"a={tmp_path / 'zero'}", f"b={tmp_path / 'one'}", out=tmp_path / "out")
    assert apart.row("b", "all", "mean").pairs == 0
    assert apart.row("b", "all", "mean").verdict == ""
    both = compared(tmp_path / "zero", tmp_path / "one", out=tmp_path / "out")
    assert both.patients == {"zero": 32}


def test_a_server_shows_published_scores_and_says_what_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "a", dice_of(), local=False)
    make_run(tmp_path / "b", dice_of(0.1), local=False, lr=0.1)
    table = compared(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    row = table.row("b", "all", "mean")
    assert row.dice == pytest.approx(0.85, abs=0.03)
    assert (row.low, row.difference, row.p, row.verdict) == (None, None, None, "")
    assert table.row("a", "north", "Brainstem").n == 8
    assert "stay at the sites" in " ".join(table.notes)
    make_run(tmp_path / "c", dice_of(), local=False, seed=1)
    seeds = compared(tmp_path / "a", tmp_path / "c", out=tmp_path / "out")
    assert "Of its 2 seeds the first is shown" in " ".join(seeds.notes)


def test_a_site_compares_its_own_runs(tmp_path: Path) -> None:
    for name, shift in (("r1", 0.0), ("r2", 0.05)):
        rows = [(c, o, d, 5) for (s, c), v in dice_of(shift).items() if s == "north"
                for o, d in v.items()]  # fmt: skip
        write_cases(tmp_path / name / "pretrain" / "cases.csv", rows)
    table = compared(tmp_path / "r1", tmp_path / "r2", out=tmp_path / "out")
    assert table.row("r2", "all", "mean").pairs == 8
    assert table.row("r2", "all", "mean").verdict == "better"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", dice_of())
    make_run(tmp_path / "b", dice_of(0.05), lr=0.1)
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", *runs, *out, "--reference", "b", "--dice", "0.73"]) == 0
    shown = capsys.readouterr().out
    assert "worse" in shown
    assert "compare.html" in shown
    assert CANARY not in shown
    for wrong, remedy in (
        (["--reference", "c"], "use one of a, b"),
        (["--phase", "personalise"], "not every run has this phase"),
        (["--dice", "70"], "between 0 and 1"),
        ([str(tmp_path / "nothing")], "no such folder"),
        ([str(tmp_path)], "neither a run nor"),
    ):
        assert main(["compare", *runs, *wrong, *out]) == 1
        assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["c", "Brainstem", "high", ""], "line 2 is no score"),
        (["c", "Brainstem", "1.5", ""], "Dice is not in 0 to 1"),
        (["c", "Brainstem", "nan", ""], "Dice is not in 0 to 1"),
        (["c"], "line 2 is no score"),
    ],
)
def test_a_broken_table_of_cases_is_an_error(tmp_path: Path, row: list[str], problem: str) -> None:
    run = make_run(tmp_path / "a", dice_of())
    write_cases(run / "sites" / "north" / "pretrain" / "cases.csv", [row])
    with pytest.raises(UserError, match=problem):
        read_member(str(run))
    write_cases(run / "sites" / "north" / "pretrain" / "cases.csv", [["c", "B", "1", ""]] * 2)
    with pytest.raises(UserError, match="a case twice"):
        read_member(str(run))


def test_scores_without_cases_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": 1, "organs": {}}')
    with pytest.raises(UserError, match="--per-case"):
        read_member(str(tmp_path / "x.json"))
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_member(str(tmp_path / "y.json"))


def test_runs_without_a_common_phase_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a", dice_of())
    make_run(tmp_path / "b", dice_of(), phase="other")
    with pytest.raises(UserError, match="no common phase"):
        compared(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")


DICE = st.one_of(st.none(), st.floats(0, 1))


@settings(deadline=None)
@given(st.lists(st.lists(DICE, min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_mean_over_seeds_keeps_only_what_all_have(table: list[list[float | None]]) -> None:
    seeds = [
        {("s", str(i), "o"): Score(d, None, 1.0, None) for i, d in enumerate(row) if d is not None}
        for row in table
    ]
    for seed in seeds:
        seed["s", "always", "o"] = Score(0.5, 2.0, 0.0, 2.0)
    means, left_out = _mean_scores(seeds)
    full = {i for i in range(3) if all(row[i] is not None for row in table)}
    some = {i for i in range(3) if any(row[i] is not None for row in table)}
    assert {k[1] for k in means} == {str(i) for i in full} | {"always"}
    assert left_out == len(some - full)
    for i in full:
        mean = sum(row[i] or 0.0 for row in table) / len(table)
        assert means["s", str(i), "o"].dice == pytest.approx(mean)


def test_text_is_escaped_in_every_format(tmp_path: Path) -> None:
    make_run(tmp_path / "a", dice_of())
    hostile = make_run(tmp_path / "<b>x_&%", dice_of())
    compared(tmp_path / "a", hostile, out=tmp_path / "out")
    assert "<b>x_" not in (tmp_path / "out" / "compare.html").read_text()
    assert r"x\_\&\%" in (tmp_path / "out" / "compare.tex").read_text()


def test_signs_and_intervals_are_drawn() -> None:
    assert [signed(v) for v in (0.0214, -0.004, 0.0001, None)] == ["+0.021", "-0.004", "+0.000", ""]
    rows = [("Brainstem", [("a", 0.02, -0.01, 0.05), ("b", 0.01, None, None)])]
    chart = interval_chart(rows, {"a": "c1", "b": "c2"}, title="t")
    assert chart.count("<circle") == 2
    assert chart.count("<path") == 1
    assert chart.count('class="mark"') == 1
    assert interval_chart([], {}, title="t") == ""
