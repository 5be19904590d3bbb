from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.federation_cost import LINES, Point, fitted, read_at, rows_of
from benchmarks.loopback import Sample, Watch
from benchmarks.peers.__main__ import of_epochs


def points(per_site: float) -> list[Point]:
    made = []
    for n in (2, 4, 8):
        for mb in (0.1, 5.7):
            value = 3.0 + per_site * n + 0.05 * n * mb
            cost = dict.fromkeys(LINES, value)
            made.append(
                cost | {"sites": n, "mb": mb, "bytes_mb": 2.0 * n * mb, "idle_cpu": 0.01 * n}
            )
    return made


def test_a_line_is_found_again_and_read_at_more_sites() -> None:
    line = fitted(points(0.5), "round_s")
    assert line == pytest.approx({"1": 3.0, "site": 0.5, "site MB": 0.05})
    assert read_at(line, 100, 5.7) == pytest.approx(3 + 50 + 0.05 * 570)


def test_no_site_takes_less_than_nothing() -> None:
    line = fitted(points(-0.2), "round_s")
    assert "site" not in line
    assert min(line.values()) >= 0


def test_what_polling_fills_is_written_down() -> None:
    asked = {"sites": 0.0, "mb": 0.0, "idle": 0.1, "question": 0.009}
    rows = {r["name"]: r["value"] for r in rows_of([asked, *points(0.5)])}
    assert rows["federation: sites that ask each second"] == pytest.approx(100)
    assert rows["federation, 1000 sites, 6 MB: bytes, fitted"] == pytest.approx(2 * 1000 * 5.7)


def test_what_ended_processes_used_counts_between_two_moments() -> None:
    watch = Watch("NOBODY=1")
    watch.samples = [Sample(t, {"superlink": 2.0 * t}, 100.0 + t) for t in (1.0, 2.0, 3.0)]
    assert watch.cpu_between(1.1, 2.9) == {"superlink": 4.0}
    assert watch.peak_mb(0.0, 2.5) == 102.0


def test_a_gap_is_time_in_which_no_site_computes(tmp_path: Path) -> None:
    log = tmp_path / "epochs"
    lines = ["begun 10.0", "begun 11.0", "ended 12.0", "ended 13.0", "begun 16.0", "ended 17.0"]
    log.write_text("\n".join([*lines, "checksum 42.5 18.0"]) + "\n")
    startup, gap, checksum = of_epochs(log, 4.0)
    assert (startup, gap, checksum) == (6.0, 1.0, 42.5)  # 3 s in three rounds
