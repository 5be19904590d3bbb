"""A run that is told to stop at any moment stops soon, leaves no process, and can be resumed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import heard

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 10.0


def started(out: Path, cache: Path, *words: str) -> subprocess.Popen[bytes]:
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [
                sys.executable, "-m", "hnfed.cli.main", "simulate", "smoke", "--out", str(out),
                "simulation.engine=inline", "tracking.mode=disabled",
                f"simulation.cache={cache}", *words,
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=out.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
            preexec_fn=heard,
        )  # fmt: skip


def of_session(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def stopped(out: Path, cache: Path, number: int, after_s: float) -> bool:
    """One signal, checked; False where the run had ended before it came."""
    run = started(out, cache)
    time.sleep(after_s)
    if run.poll() is not None:
        assert run.returncode == 0
        return False
    log = out.parent / f"{out.name}.log"
    through = "report: " in log.read_text()  # its last word: what is left is Python's own end
    os.kill(run.pid, number)
    begun = time.monotonic()
    code = run.wait(60)
    took = time.monotonic() - begun
    if through:
        assert code in (0, 128 + number, -number)
        assert took <= LONGEST_S, f"{took:.1f} s"
        return False
    assert code in (128 + number, -number), f"{took:.1f} s\n{log.read_text()}"
    # Python ends itself by SIGINT where Ctrl-C came up in code that a library made as it was
    # loaded, however well it was handled: a shell shows 130 for that too.
    said = log.read_text()
    told = code == 128 + number or "hnfed: interrupted" in said
    assert told or not out.exists(), "killed only before anything of ours ran"
    assert "Traceback" not in said or not out.exists(), said
    assert took <= LONGEST_S, f"{took:.1f} s"
    while of_session(run.pid) and time.monotonic() - begun < LONGEST_S:
        time.sleep(0.1)  # what the kernel ends with its parent is not gone at once
    assert of_session(run.pid) == []
    return True


def resumes(out: Path, cache: Path) -> bool:
    """What was begun goes on to its end; False where nothing was begun."""
    if not ((out / "plan.json").is_file() and (out / "config.yaml").is_file()):
        return False
    run = started(out, cache, "--resume")
    assert run.wait(300) == 0, (out.parent / f"{out.name}.log").read_text()
    return True


def test_two_signals(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    sent = [stopped(tmp_path / f"run{int(number)}", cache, number, after_s)
            for number, after_s in ((signal.SIGINT, 2.0), (signal.SIGTERM, 4.0))]  # fmt: skip
    assert any(sent), "the run ends before any signal comes"


WRITER = """
import sys
from pathlib import Path
from simulations.phantom.cases import SIGNATURES, Cohort, write_site
if __name__ == "__main__":
    write_site(Path(sys.argv[1]), Cohort(SIGNATURES["nyu"], 40, 0, (4.0, 3.0, 3.0)), workers=2)
"""


@pytest.mark.parametrize("after_s", [0.5, 1.5, 3.0, 6.0])
def test_no_worker_outlives_a_killed_parent(tmp_path: Path, after_s: float) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    writer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "site")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    time.sleep(after_s)
    assert writer.poll() is None, "done before it could be killed"
    writer.kill()
    writer.wait()
    limit = time.monotonic() + 4 * LONGEST_S
    while of_session(writer.pid) and time.monotonic() < limit:
        time.sleep(0.1)
    left = of_session(writer.pid)
    for pid in left:  # a test that fails leaves nothing either
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_thirty_signals_at_random_moments(tmp_path: Path) -> None:
    chance, cache, sent, resumed, tried = random.Random(7), tmp_path / "cache", 0, 0, 0
    begun = time.monotonic()
    assert started(tmp_path / "whole", cache).wait(300) == 0
    usual = time.monotonic() - begun
    while sent < 30:
        out = tmp_path / f"run{tried}"
        number = chance.choice([signal.SIGINT, signal.SIGTERM])
        after_s = chance.uniform(0.5, 0.9 * usual)
        if stopped(out, cache, number, after_s):
            sent += 1
        else:
            usual = min(usual, max(after_s, 2.0))  # the machine has become faster
        resumed += tried % 5 == 4 and resumes(out, cache)
        tried += 1
        assert tried < 60, "the runs end before any signal comes"
    print(f"{sent} signals, each followed by its exit code within {LONGEST_S:.0f} s, no orphan; "
          f"{resumed} of {tried // 5} had begun and were resumed to their end")  # fmt: skip
    assert resumed >= 1
