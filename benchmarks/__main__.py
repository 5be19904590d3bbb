"""All benchmarks, each in a process of its own, into one `benchmarks.json`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NAMES = (
    "losses",
    "hd95",
    "case_metrics",
    "cached_case",
    "augmentation",
    "models",
    "overhead",
    "secure_sum",
    "demo",
)


def main() -> int:
    """Runs them one after the other; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks.json"))
    options = parser.parse_args()
    failed = []
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", options.json]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"\nrows: {options.json}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
