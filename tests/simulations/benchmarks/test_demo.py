from __future__ import annotations

import sys

import pytest

from simulations.benchmarks.demo import dice_of, run


def cell(n: int, dice: float | None) -> dict[str, object]:
    return {"n": n, "dice": dice}


def test_dice_is_weighed_by_cases_within_an_organ_and_not_between_organs() -> None:
    first = {
        "organs": ["Brainstem", "Parotid_L", "OpticChiasm"],
        "sites": {
            "a": {
                "test": {
                    "Brainstem": cell(3, 0.8),
                    "Parotid_L": cell(1, 0.6),
                    "OpticChiasm": cell(1, 0.2),
                }
            },
            "b": {
                "test": {
                    "Brainstem": cell(1, 0.4),
                    "Parotid_L": cell(0, None),
                    "OpticChiasm": cell(1, 0.4),
                }
            },
        },
    }
    second = {
        "organs": ["Musc_Constrict_S"],
        "sites": {"a": {"test": {"Musc_Constrict_S": cell(2, 0.5)}}},
    }
    assert dice_of({"phases": [first, second]}) == pytest.approx(
        {"six larger organs": 0.65, "chiasm and nerves": 0.3, "constrictors": 0.5}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_that_of_the_command_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.benchmarks.demo.SAMPLE_SECONDS", 0.05)
    child = "x = b'1' * 200_000_000; import time; time.sleep(0.6)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seconds, peak = run([sys.executable, "-c", command])
    assert seconds > 0.6
    assert 200e6 < peak < 400e6


def test_a_command_that_fails_has_no_figures() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"])
