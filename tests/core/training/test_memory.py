"""What a step frees stays with the process until the end of the call."""

from __future__ import annotations

import subprocess
import sys

import pytest

FREED = """
import resource, torch
from pathlib import Path
from core.training.memory import kept_heap

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20

torch.ones(40_000_000, dtype=torch.uint8)
settled = resident_mb()
with kept_heap(torch.device("cpu")):
    for _ in range(3):
        torch.ones(40_000_000, dtype=torch.uint8)
    print(resident_mb() - settled)
print(resident_mb() - settled)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_freed_is_kept_and_given_back(kept: bool) -> None:
    variables = {} if kept else {"MALLOC_MMAP_MAX_": "65536"}  # the user's own word stays
    ran = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **variables},
    )  # fmt: skip
    within, after = map(int, ran.stdout.split())
    assert (within > 30) == kept
    assert after < 20
