from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from core.processes import end, held, leave_by_signal, leave_if_told, within
from tests.conftest import heard

PARENT = """
import subprocess, sys, time
from core.processes import with_parent
child = subprocess.Popen(["sleep", "60"], start_new_session=True, preexec_fn=with_parent)
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def soon(pid: int) -> bool:
    limit = time.monotonic() + 5.0
    while alive(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_a_child_goes_with_a_killed_parent() -> None:
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
    assert soon(child)


def test_a_child_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.processes.GRACE_SECONDS", 0.5)
    deaf = subprocess.Popen(
        [sys.executable, "-c", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"
         "print(flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert deaf.stdout is not None
    deaf.stdout.readline()
    end(deaf)
    assert deaf.wait(5) == -signal.SIGKILL
    deaf.stdout.close()


def test_what_a_dead_child_left_is_ended_too() -> None:
    script = "sleep 60 & echo $!; kill -9 $$"
    dead = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert dead.stdout is not None
    left = int(dead.stdout.readline())
    assert dead.wait(5) == -signal.SIGKILL
    assert alive(left)
    end(dead)
    assert soon(left)
    end(dead)
    dead.stdout.close()


def test_a_lock_that_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    assert not held(lock)
    assert not lock.exists(), "looking makes none"
    with FileLock(lock):
        assert held(lock)
    assert not held(lock)


@pytest.mark.usefixtures("leaving")
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_what_a_signal_raised_and_a_library_lost_is_raised_again(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    leave_if_told()
    with pytest.raises(raised):
        os.kill(os.getpid(), number)
    with pytest.raises(raised) as caught:
        leave_if_told()
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 143
    leave_by_signal()
    leave_if_told()


def test_a_second_signal_leaves_no_child_behind() -> None:
    script = (
        "import subprocess, sys, time\n"
        "from core import processes as service\n"
        "service.GRACE_SECONDS = 1.5\n"
        "service.stop_by_signal()\n"
        "child = subprocess.Popen(['bash', '-c', \"trap '' TERM; echo up; sleep 60\"],\n"
        "                         stdout=subprocess.PIPE, start_new_session=True)\n"
        "try:\n"
        "    child.stdout.readline()\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)\n"
        "except service.Stopped:\n"
        "    pass\n"
        "finally:\n"
        "    with service.deaf():\n"
        "        service.end(child)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, preexec_fn=heard,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGINT)
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(20) == 0
    assert soon(child)


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    command = [sys.executable, "-c", "import signal; from core.processes import leave_by_signal, "
               "stop_by_signal\nfor f in (leave_by_signal, stop_by_signal):\n    f()\n"
               "    assert signal.getsignal(2) is signal.SIG_IGN\n"
               "    assert callable(signal.getsignal(15))"]  # fmt: skip
    ignoring = ["bash", "-c", "trap '' INT; exec \"$@\"", "bash", *command]
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(ignoring, check=True, env={**os.environ, "PYTHONPATH": root})


def test_a_call_in_time_gives_what_it_returns_or_raises() -> None:
    assert within(10.0, lambda: 3) == 3
    assert within(10.0, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(10.0, lambda: 1 // 0)


def test_a_call_that_waits_for_ever_is_left_behind() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        within(0.2, threading.Event().wait)
    assert time.monotonic() - begun < 10.0
