"""One small federated training side by side: plain loops, Flower, NVFlare, hnfed.

Three sites, three rounds of one local epoch, 1.2 million parameters. NVFlare gets a virtual
environment of its own below `--folder`, beside which it sees this one's torch and MONAI, so that
all compute with the same libraries. FL4Health is not run: it wants Python 3.10, numpy 1 and another
Flower, an environment of 7 GB.

python -m benchmarks.peers [--folder DIR] [--only NAME [NAME ...]] [--side N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors.torch

from benchmarks.loopback import Watch
from benchmarks.measure import AtMost, report, row
from benchmarks.peers.task import LOG, ROUNDS, SIDE, SIDE_
from core.journal import JOURNAL, read_events
from core.processes import end, leave_by_signal, with_parent

ROOT = Path(__file__).resolve().parents[2]
NVFLARE = "nvflare==2.9.0"
MARK, MOST_SECONDS = "HNFED_PEERS", 540.0
ORGANS = ("Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R")
SPACING_MM = (6.0, 4.0, 4.0)  # at 64 voxels a side
SIMULATION = {
    "phantom_spacing_mm": SPACING_MM,
    "sites": {name: {"phantom": "nyu", "cases": 6} for name in "abc"},
    "overlays": 0,
}
PLAN = {
    "augment": {"enabled": False},
    "model": {"channels": [16, 32, 64, 108]},  # 1.2 million parameters with four organs
    "loss": {"class_weight": "none"},
    "train": {"batch": 2, "threads": 2, "deterministic": True},
    "phases": [
        {"name": "p", "sites": ["a", "b", "c"], "organs": ORGANS, "rounds": ROUNDS, "test": False}
    ],
    "tracking": {"mode": "disabled"},
}
SAME = AtMost(1e-4)  # one round of training moves the sum by 1e-3
HNFED = {"hnfed, inline": "inline", "hnfed, Ray": "ray"}
PLAIN, PLAIN_HNFED, FLOWER, FLARE = "plain loop", "plain loop of hnfed's", "Flower", "NVFlare"
NAMES = (PLAIN, FLOWER, FLARE, PLAIN_HNFED, *HNFED)


@dataclass(frozen=True)
class Ran:
    """What a runner took.

    Attributes:
        wall: seconds from its start to its end.
        startup: until the first local epoch began.
        gap: seconds a round, from the first epoch to the last, in which no site computed.
        cpu: seconds of all its processes.
        peak_mb: of all its processes; pages that several share count once.
        checksum: of the last weights; 0.0 where they are compared number by number.
    """

    wall: float
    startup: float
    gap: float
    cpu: float
    peak_mb: float
    checksum: float


def plan_of(side: int, folder: Path) -> dict[str, Any]:
    """The plan of hnfed's runs, with crops of so many voxels a side; its caches below a folder."""
    coarser = 64 / side
    return {
        **PLAN,
        "preprocess": {"spacing_mm": [mm * coarser for mm in SPACING_MM], "crop": [side] * 3},
        "simulation": {**SIMULATION, "cache": str(folder / "cache")},
    }


def measured(name: str, folder: Path) -> Ran:
    """Runs one of `NAMES`.

    Raises:
        RuntimeError: it failed.
    """
    out = folder / name.replace(" ", "-").replace(",", "").replace("'", "")
    out.mkdir(parents=True)
    log, mark = out / "epochs", f"{MARK}={out}"
    names = {"PYTHONPATH": str(ROOT), LOG: str(log), MARK: str(out)}
    begun, watch = time.time(), Watch(mark)
    with (out / "output").open("wb") as file:
        child = subprocess.Popen(
            command_of(name, folder, out), env=os.environ | names, cwd=out, stdout=file,
            stderr=file, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=with_parent,
        )  # fmt: skip
    watch.start()
    try:
        code = child.wait(MOST_SECONDS)
        ended = time.time()
    finally:
        end(child)
        watch.over.set()
        watch.join()
    if code:
        told = (out / "output").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{name} ended with {code}\n{told}")
    startup, gap, checksum = of_journal(out, begun) if name in HNFED else of_epochs(log, begun)
    cpu = sum(watch.samples[-1].cpu.values())
    return Ran(ended - begun, startup, gap, cpu, watch.peak_mb(begun, ended), checksum)


def command_of(name: str, folder: Path, out: Path) -> list[str]:
    """How a runner is started."""
    python, plan = sys.executable, str(folder / "plan.yaml")
    if name in HNFED:
        words = ["simulate", plan, f"simulation.engine={HNFED[name]}", "--out", str(out / "run")]
        return [python, "-m", "hnfed.cli.main", *words]
    if name == FLARE:
        python = str(nvflare_python(folder.parent))
        return [python, "-m", "benchmarks.peers.nvflare_job", str(out / "work")]
    if name == PLAIN_HNFED:
        return [python, "-m", "benchmarks.peers.hnfed_plain", plan, str(out / "run")]
    module = {PLAIN: "plain", FLOWER: "flower_simulation"}[name]
    return [python, "-m", f"benchmarks.peers.{module}"]


def nvflare_python(folder: Path) -> Path:
    """The Python of NVFlare's own environment, which is made where it is missing."""
    place = folder / "nvflare"
    python = place / "bin" / "python"
    if not python.is_file():
        venv.create(place, with_pip=True)
        (inside,) = place.glob("lib/python*/site-packages")
        ours = Path(safetensors.torch.__file__).parents[1]
        (inside / "beside.pth").write_text(f"{ours}\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", NVFLARE], check=True)
    return python


def of_epochs(log: Path, begun: float) -> tuple[float, float, float]:
    """Startup, gap a round and checksum, from the lines of `benchmarks.peers.task`."""
    lines = [line.split() for line in log.read_text(encoding="ascii").splitlines()]
    marks = sorted((float(time_), what) for what, *_, time_ in lines if what != "checksum")
    checksum = next((float(words[1]) for words in lines if words[0] == "checksum"), 0.0)
    busy, idle, since = 0, 0.0, marks[0][0]
    for at, what in marks:
        idle += (at - since) * (busy == 0)
        busy, since = busy + (1 if what == "begun" else -1), at
    return marks[0][0] - begun, idle / ROUNDS, checksum


def of_journal(out: Path, begun: float) -> tuple[float, float, float]:
    """The same of a run of hnfed's, from its journal: sites compute one after the other."""
    rounds = [e for e in read_events(out / "run" / JOURNAL) if e["event"] == "round"]
    first = datetime.fromisoformat(rounds[0]["time"]).timestamp() - float(rounds[0]["seconds"])
    idle = sum(float(e["seconds"]) - float(e["seconds_compute"]) for e in rounds)
    return first - begun, idle / len(rounds), 0.0


def differ(folder: Path, name: str) -> float:
    """Largest difference between a weight of a run and of the plain loop over hnfed's training."""
    plain = folder / "plain-loop-of-hnfeds" / "run" / "plain.safetensors"
    run = folder / name.replace(" ", "-").replace(",", "") / "run" / "checkpoints" / "p"
    one, other = map(safetensors.torch.load_file, (plain, run / "last.safetensors"))
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def rows_of(found: dict[str, Ran], folder: Path) -> list[dict[str, Any]]:
    """Rows of the benchmarks, and a table on the screen."""
    heads = ("wall s", "startup s", "gap/round s", "CPU s", "PSS MB")
    print(f"{'runner':<24}" + "".join(f"{head:>13}" for head in heads) + "  weights")
    for name, ran in found.items():
        same = f"checksum {ran.checksum:.3f}" if ran.checksum else ""
        if name in HNFED and PLAIN_HNFED in found:
            same = f"off by {differ(folder, name):.1e}"
        figures = (ran.wall, ran.startup, ran.gap, ran.cpu, ran.peak_mb)
        print(f"{name:<24}" + "".join(f"{value:>13.2f}" for value in figures) + f"  {same}")
    rows = []
    plain = found[PLAIN].checksum if PLAIN in found else 0.0
    for name in (FLOWER, FLARE):
        if plain and name in found:
            off = abs(found[name].checksum / plain - 1)
            rows.append(row(f"peers, {name}: sum of weights", found[name].checksum, "",
                            "the plain loop's", off, SAME))  # fmt: skip
    inline, ray = HNFED
    if inline in found and PLAIN_HNFED in found:
        more = found[inline].wall - found[PLAIN_HNFED].wall
        rows.append(row("peers, hnfed inline: wall", found[inline].wall, "s", "the plain loop over "
                        "its training + s", more, AtMost(2.0)))  # fmt: skip
    if ray in found and FLOWER in found:
        ours, theirs = found[ray], found[FLOWER]
        for what, unit in (("startup", "s"), ("gap", "s"), ("peak_mb", "MB")):
            mine, other = getattr(ours, what), getattr(theirs, what)
            about = f"Flower's {other:.4g}"
            rows.append(
                row(f"peers, hnfed on Ray: {what}", mine, unit, about, mine / other, AtMost(1.0))
            )
    return rows


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", type=int, default=SIDE, help="voxels of a volume; 8 x N")
    options = parser.parse_args()
    if options.side < 16 or options.side % 8:
        parser.error("--side: a multiple of 8, 16 or more")
    os.environ[SIDE_] = str(options.side)
    leave_by_signal()
    folder = options.folder.resolve() / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(json.dumps(plan_of(options.side, folder)))
    if {*HNFED, PLAIN_HNFED} & set(options.only):
        words = ["simulate", str(folder / "plan.yaml"), "simulation.engine=inline"]
        words += ["phases.p.rounds=1", "--out", str(folder / "warm")]  # writes phantoms and cache
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run([sys.executable, "-m", "hnfed.cli.main", *words], **quiet)  # type: ignore[call-overload]
    if FLARE in options.only:
        nvflare_python(folder.parent)
    found = {}
    for name in (n for n in NAMES if n in options.only):
        print(f"{name} ...", flush=True)
        found[name] = measured(name, folder)
    rows = rows_of(found, folder)
    report(rows, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
