"""`hnfed watch` as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision
from tests.hnfed.watch.journals import cell, round_of, sent, started
from tests.terminals import heard

ROOT = Path(__file__).resolve().parents[3]
END = (9, {"event": "run-end", "status": "completed", "seconds": 9.0})


def test_once_for_people_and_for_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path / "run", (2, round_of(1, {"a": {"Brainstem": cell(3, 0.25)}})), END)
    assert main(["watch", str(run), "--once"]) == 0
    assert "completed after 9 s" in capsys.readouterr().out
    assert main(["watch", str(run), "--once", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["kind"], told["state"]) == (1, "run", "completed")
    assert main(["watch", str(run), "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["well"] is True
    prom = tmp_path / "hnfed.prom"
    assert main(["watch", str(run), "--once", "--prometheus", str(prom)]) == 0
    assert "hnfed_dice" in prom.read_text()


def test_what_went_wrong_is_the_exit_code(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    assert main(["watch", str(run), "--once"]) == 1, "vanished"


def test_a_run_is_followed_to_its_end_in_lines(tmp_path: Path) -> None:
    """Also one that is killed while it is watched."""
    run = started(tmp_path / "run", (2, sent("a", 1)))
    (run / "state").mkdir()
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    lock = str(run / "state" / ".lock")
    holder = subprocess.Popen([sys.executable, "-c", hold, lock], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    command = [sys.executable, "-m", "hnfed.cli.main", "watch", str(run), "--interval", "0.2"]
    watch = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    assert "a training" in watch.stdout.readline()
    holder.kill()
    holder.communicate()
    rest, _ = watch.communicate(timeout=30)
    assert "vanished" in rest
    assert "--resume" in rest
    assert watch.returncode == 1


def test_a_socket_answers_until_it_is_told_to_stop(tmp_path: Path) -> None:
    from tests.hnfed.watch.test_endpoint import asked

    run = started(tmp_path / "run", END)
    command = [sys.executable, "-m", "hnfed.cli.main", "watch", str(run), "--listen"]
    watch = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    assert "listening on" in watch.stdout.readline()
    assert asked(run / "metrics.sock", "/health")[0] == 200
    assert "hnfed_run_state" in asked(run / "metrics.sock", "/metrics")[1]
    watch.send_signal(signal.SIGTERM)
    watch.communicate(timeout=20)
    assert watch.returncode == 143
    assert not (run / "metrics.sock").exists()


def test_kits_are_told_from_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kits = tmp_path / "kits"
    provision(Federation("hn", "127.0.0.1", 1, 2, ("nyu",), 30), kits)
    assert main(["watch", str(kits / "server"), "--once"]) == 1
    assert "server is not running" in capsys.readouterr().out
    assert main(["watch", str(kits / "nyu"), "--once"]) == 1
    assert "--site" in capsys.readouterr().err
    site = tmp_path / "nyu.yaml"
    site.write_text(f"name: nyu\nroot: /data\ncache: {tmp_path}/c\nstate: {tmp_path}/s\n")
    assert main(["watch", str(kits / "nyu"), "--site", str(site), "--once"]) == 1
    assert "nyu in hn  not running" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run", "x"], "is no kit"),
        (["--interval", "0"], "--interval"),
        (["--listen", "/" + "x" * 200], "107 bytes"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path / "run")
    assert main(["watch", str(run), *options]) == 1
    assert words in capsys.readouterr().err


def test_a_terminal_shows_the_end_and_leaves_it_there(tmp_path: Path) -> None:
    import pty

    run = started(tmp_path / "run", (2, round_of(1, {"a": {"Brainstem": cell(3, 0.25)}})), END)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "hnfed.cli.main", "watch", str(run)])
    said = heard(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"completed after 9 s" in said
    assert b"Brainstem" in said
    assert b"\x1b[?1049h" not in said, "no other screen that is gone with it"
