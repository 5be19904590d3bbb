from __future__ import annotations

import sys

import pytest

from benchmarks.demo import dice_of, run


def phase(**dice: float) -> dict[str, object]:
    organs = {organ: {"n": 4, "dice": value} for organ, value in dice.items()}
    return {"organs": list(dice), "mean": {"organs": organs}}


def test_organs_weigh_the_same_within_their_group() -> None:
    first = phase(Brainstem=0.7, Parotid_L=0.6, OpticChiasm=0.3)
    second = phase(Musc_Constrict_S=0.5)
    assert dice_of({"phases": [first, second]}) == pytest.approx(
        {"six larger organs": 0.65, "chiasm and nerves": 0.3, "constrictors": 0.5}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_that_of_the_command_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.demo.SAMPLE_SECONDS", 0.05)
    child = "x = b'1' * 200_000_000; import time; time.sleep(0.6)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seconds, peak = run([sys.executable, "-c", command])
    assert seconds > 0.6
    assert 200e6 < peak < 400e6


def test_a_command_that_fails_has_no_figures() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"])
