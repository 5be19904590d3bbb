"""Kills `hnfed prepare` with 8 processes, again and again, and looks at what it left.

python -m benchmarks.killed_prepare

Half of the kills hit the command alone (its workers must leave by themselves), half the group.
After each: no entry is broken, none that was there was built again, no lock is held. At the end the
command runs through, builds exactly what was missing, and a further run builds nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from benchmarks.measure import AtMost, report, row
from core.archives.case_writer import complete
from simulations.phantom.cases import SIGNATURES, Cohort, write_site

PLAN = ("smoke", "preprocess={spacing_mm: [8.0, 6.0, 6.0], crop: [32, 32, 48]}")
WAIT_SECONDS, LEAVE_SECONDS = 120.0, 20.0


@dataclass
class Tally:
    """What the kills left behind; all zero is what is promised.

    Attributes:
        kills: how many there were.
        broken: entries under their final name that are not whole.
        rebuilt: entries that were whole before a kill and were written again after it.
        locked: locks still held when all processes had gone.
        orphans: kills after which a worker went on.
    """

    kills: int = 0
    broken: int = 0
    rebuilt: int = 0
    locked: int = 0
    orphans: int = 0
    entries: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def faults(self) -> int:
        """All of them together."""
        return self.broken + self.rebuilt + self.locked + self.orphans

    def look(self, cache: Path) -> None:
        """Looks at a cache that nobody writes into."""
        for folder in (cache / "entries").glob("[!.]*"):
            stat = (folder / "entry.json").stat() if complete(folder) else None
            if stat is None:
                self.broken += 1
                continue
            mark = (stat.st_ino, stat.st_mtime_ns)
            self.rebuilt += self.entries.setdefault(folder.name, mark) != mark
            self.entries[folder.name] = mark
        for path in (cache / "locks").glob("*.lock"):
            try:
                FileLock(path, timeout=0.0).acquire().lock.release()
            except Timeout:
                self.locked += 1


def write_example(folder: Path, cases: int) -> Path:
    """Writes a phantom archive and its site file; returns the site file."""
    write_site(folder / "archive", Cohort(SIGNATURES["miccai"], cases, 3, (8.0, 6.0, 6.0)))
    site = folder / "site.yaml"
    lines = ["name: miccai", *(f"{k}: {folder / k}" for k in ("cache", "state"))]
    site.write_text("\n".join([*lines, f"root: {folder / 'archive'}"]) + "\n")
    return site


def start(site: Path, jobs: int) -> subprocess.Popen[str]:
    """Starts `hnfed prepare` in a process group of its own."""
    command = [sys.executable, "-m", "hnfed.cli.main", "prepare", str(site), *PLAN]
    return subprocess.Popen(
        [*command, "--jobs", str(jobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def kill_once(site: Path, jobs: int, rng: np.random.Generator, *, group: bool) -> bool:
    """Starts the command and kills it at a random time after it began to write.

    Returns:
        Whether all of its processes were gone soon after.
    """
    entries = site.parent / "cache" / "entries"
    before = _names(entries)
    process = start(site, jobs)
    wanted = int(rng.integers(1, 4))
    limit = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        if len(_names(entries) - before) >= wanted:
            break
        time.sleep(0.002)
    time.sleep(float(rng.uniform(0, 0.05)))
    if process.poll() is not None:
        raise RuntimeError(f"prepare ended by itself ({process.returncode}): use more --cases")
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + LEAVE_SECONDS
    while _alive(process.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    gone = not _alive(process.pid)
    if not gone:
        os.killpg(process.pid, signal.SIGKILL)
    return gone


def _names(entries: Path) -> set[str]:
    """Entries and those being written."""
    return {p.name for p in entries.iterdir()} if entries.is_dir() else set()


def _alive(group: int) -> bool:
    """Whether a process of the group runs; one that is dead and not yet collected does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def finish(site: Path, jobs: int) -> tuple[int, int]:
    """Runs the command to its end; returns the number of cases prepared, and of new ones."""
    process = start(site, jobs)
    out, _ = process.communicate(timeout=600)
    found = re.search(r"(\d+) cases prepared .*; (\d+) new", out)
    if process.returncode or not found:
        raise RuntimeError(f"prepare ended with {process.returncode}: {out[-500:]}")
    return int(found[1]), int(found[2])


def main() -> int:
    """Kills, looks, finishes; exit code 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tally = Tally()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        site = write_example(Path(scratch), options.cases)
        cache = Path(scratch) / "cache"
        for kill in range(options.kills):
            gone = kill_once(site, options.jobs, rng, group=kill % 2 == 0)
            tally.kills += 1
            tally.orphans += not gone
            tally.look(cache)
            print(
                f"kill {kill + 1}: {len(tally.entries)} entries, {tally.faults} faults", flush=True
            )
        missing = options.cases - len(tally.entries)
        prepared, new = finish(site, options.jobs)
        tally.look(cache)
        again = finish(site, options.jobs)
        leftovers = len([n for n in _names(cache / "entries") if n.startswith(".")])
    faults = tally.faults + (new != missing) + (again != (prepared, 0)) + leftovers
    print(f"broken {tally.broken}, rebuilt {tally.rebuilt}, locked {tally.locked}, ", end="")
    print(f"orphans {tally.orphans}; left to build {missing}, built {new}, then {again[1]}")
    what = f"{options.kills} kills, {options.jobs} processes"
    rows = [row("prepare killed: faults", faults, "", what, faults, AtMost(0))]
    report(rows, options.json)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
