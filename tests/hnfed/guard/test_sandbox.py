from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from core.errors import UserError
from hnfed.guard import landlock, seccomp
from hnfed.guard.environment import worker_environment
from hnfed.guard.sandbox import (
    Enforceable,
    Walls,
    enforceable,
    require,
    require_outside,
    runtime_paths,
)
from hnfed.guard.syscalls import LAST, LOOKED_AT, REFUSED

ROOT = Path(__file__).resolve().parents[3]
FILE = Path(__file__).with_name("walled.py")
HERE = enforceable()
walled_only = pytest.mark.skipif(not HERE.whole, reason=f"cannot be closed in: {HERE.words}")
REFUSALS = {"EPERM", "EACCES", "ENOSYS", "EBADF", "EXDEV"}
# What works for any process of the account, so that a refusal says something; the others hang on
# the machine (other kernels, ptrace scopes, file systems, or root).
WITHOUT_WALLS = {
    "read_key", "read_key_in_a_thread", "read_key_in_a_fork", "read_key_by_a_program",
    "read_key_from_the_place_of_a_folder", "read_key_by_way_of_proc",
    "read_key_by_a_link_that_was_there", "list_outside", "list_home", "list_root",
    "make_a_file_outside", "change_a_file_outside", "change_a_file_that_is_only_read",
    "shorten_a_file_outside", "remove_a_file_outside", "rename_in_from_outside", "rename_out",
    "link_in_from_outside", "link_in_what_is_only_read", "make_a_link_for_others_to_follow",
    "make_a_pipe_for_others_to_hang_on", "start_what_was_written", "chmod_outside",
    "touch_outside", "watch_who_opens_what", "shared_memory_by_name", "tcp", "udp", "dns",
    "unix_by_path", "unix_abstract", "socket_pair", "arguments_of_the_parent", "list_processes",
    "environ_of_the_parent", "descriptors_of_the_parent", "descriptor_of_the_parent",
    "own_environ", "signal_to_the_parent", "signal_to_a_thread_of_the_parent",
    "leave_the_session", "leave_the_group", "limit_of_the_parent", "descriptor_by_pidfd",
    "priority_of_the_parent", "schedule_of_the_parent",
    "owner_of_signals", "inherited_descriptor", "typing_on_a_terminal", "system_v_memory",
}  # fmt: skip


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("walled", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WALLED = _module()


def _attempts(how: str, folder: Path) -> dict[str, str]:
    """What came of each attempt of `walled.py`."""
    outside, read, write = (folder / name for name in ("outside", "read", "write"))
    for made in (outside, read, write):
        made.mkdir(parents=True)
    (outside / "node.key").write_bytes(WALLED.KEY)
    for name in ("data", "spare", "moved"):
        (outside / name).write_text("patient")
    (read / "case").write_text("voxels")
    (read / "link").symlink_to(outside / "node.key")
    ours, kept = socket.socketpair()
    out, report = os.pipe()
    place = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener, (outside / "node.key").open("rb") as leaked:
        os.chdir(outside)  # a socket's whole path may be too long
        try:
            listener.bind("listener")
        finally:
            os.chdir(place)
        listener.listen()
        given = [kept.fileno(), leaked.fileno(), report]
        process = subprocess.Popen(
            [sys.executable, FILE, how, outside, read, write, *map(str, given)],
            pass_fds=given, env={"HOME": str(Path.home()), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=outside,
        )  # fmt: skip
        kept.close()
        os.close(report)
        answer = threading.Thread(target=_answer, args=(ours,), daemon=True)
        answer.start()
        with os.fdopen(out) as file:
            found = file.read()
        said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        ours.close()
    if how == "walled":
        assert said == ("", ""), "standard output and errors lead to nowhere"
    told: dict[str, str] = json.loads(found)
    return told


def _answer(link: socket.socket) -> None:
    if link.recv(4) == b"ping":
        link.sendall(b"pong")


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _attempts("walled", tmp_path_factory.mktemp("walled"))


@pytest.fixture(scope="module")
def unwalled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _attempts("open", tmp_path_factory.mktemp("open"))


@walled_only
@pytest.mark.parametrize("name", WALLED.ATTACKS)
def test_refused(name: str, walled: dict[str, str]) -> None:
    assert walled[name] in REFUSALS


@walled_only
@pytest.mark.parametrize("name", WALLED.WORK)
def test_what_training_needs_works(name: str, walled: dict[str, str]) -> None:
    assert walled[name] == "done"


@pytest.mark.parametrize("name", sorted(WITHOUT_WALLS))
def test_the_attempt_works_without_walls(name: str, unwalled: dict[str, str]) -> None:
    assert unwalled[name] == "done"


def _inside(code: str, walls: str = "Walls(runtime_paths(), ())", home: str = "/nowhere") -> str:
    """Runs code in a process that was closed in; returns what it printed."""
    before = (
        f"from pathlib import Path\nfrom hnfed.guard.sandbox import *\nenter({walls}, (1, 2))\n"
    )
    return _python(before + code, home)


def _python(code: str, home: str = "/nowhere") -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(ROOT), **worker_environment(Path(home))}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TRAIN = """
import torch
torch.set_num_threads(2)
import client.app
from core.models.res3dunet import res3dunet
from core.plan.schema import Model
torch.manual_seed(0)
network = res3dunet(Model(), 3, (32, 32, 32))
optimiser = torch.optim.AdamW(network.parameters())
for _ in range(2):
    optimiser.zero_grad()
    loss = network(torch.randn(1, 1, 32, 32, 32)).square().mean()
    loss.backward()
    optimiser.step()
torch.save(network.state_dict(), Path("~/weights.pt").expanduser())
print(float(loss) > 0, torch.get_num_threads())
"""


@walled_only
def test_the_app_is_loaded_and_a_network_trains(tmp_path: Path) -> None:
    code = [ROOT / name for name in ("core", "client")]
    read = ", ".join(f"Path({str(path)!r})" for path in code)
    walls = f"Walls((*runtime_paths(), {read}), (Path({str(tmp_path)!r}),), memory_bytes=4 << 30)"
    said = _inside(TRAIN, walls, str(tmp_path))
    assert said == "True 2"
    assert (tmp_path / "weights.pt").stat().st_size > 0


@walled_only
@pytest.mark.parametrize("take", ["bytearray(1 << 30)", "mmap.mmap(-1, 1 << 35, NO_RESERVE)"])
def test_memory_has_its_limit(take: str) -> None:
    code = f"""
import mmap
NO_RESERVE = mmap.MAP_SHARED | 0x4000
try:
    {take}
    print("had")
except (MemoryError, OSError):
    print("refused")
"""
    assert _inside(code, "Walls(runtime_paths(), (), memory_bytes=1 << 29)") == "refused"
    assert _inside(code) == "had"


@walled_only
def test_one_process_that_is_closed_in_cannot_reach_another() -> None:
    code = """
import os, signal
from hnfed.guard.sandbox import *
first = os.fork()
if first == 0:
    enter(Walls(runtime_paths(), ()), (1, 2))
    signal.pause()
if os.fork() == 0:
    enter(Walls(runtime_paths(), ()), (1, 2))
    for job in (lambda: os.kill(first, 0), lambda: open(f"/proc/{first}/status")):
        try:
            job()
            print("reached", flush=True)
        except PermissionError:
            print("refused", flush=True)
    os._exit(0)
os.wait()
os.kill(first, signal.SIGKILL)
os.wait()
"""
    assert _python(code).split() == ["refused", "refused"]


@walled_only
def test_all_that_it_starts_ends_with_its_group() -> None:
    code = """
import os, signal, time
from hnfed.guard.sandbox import *
out, into = os.pipe()
first = os.fork()
if first == 0:
    os.close(out)
    enter(Walls(runtime_paths(), ()), (into,))
    if os.fork() == 0 and os.fork() == 0:  # a grandchild, whose parent leaves
        os.write(into, b"here")
        time.sleep(600)
    os._exit(0)
os.close(into)
assert os.read(out, 4) == b"here"
os.waitpid(first, 0)
os.killpg(first, signal.SIGKILL)
print(os.read(out, 4))  # the pipe has no writer left
"""
    assert _python(code) == "b''"


@walled_only
@pytest.mark.parametrize(
    ("make", "what"),
    [
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "UDP"),
        ("socket.socket(socket.AF_INET)", "TCP"),
        ("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]", "could send to any path"),
        ("socket.socket(socket.AF_UNIX)", "not connected"),
        ("open('/', opener=lambda p, f: os.open(p, os.O_DIRECTORY))", "a folder"),
        ("open('/dev/zero')", "a device"),
    ],
)
def test_a_descriptor_that_reaches_further_is_not_kept(make: str, what: str) -> None:
    code = f"""
import os, socket
from hnfed.guard.sandbox import *
made = os.open('/', os.O_DIRECTORY) if {"O_DIRECTORY" in make} else {make}
try:
    enter(Walls(runtime_paths(), ()), (1, 2, made if isinstance(made, int) else made.fileno()))
except UserError as error:
    print(error.field)
"""
    assert _python(code) == "walls.keep", what


@walled_only
def test_walls_are_for_a_process_of_one_thread() -> None:
    code = """
import threading
from hnfed.guard.sandbox import *
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    enter(Walls(runtime_paths(), ()), (1, 2))
except RuntimeError as error:
    print(error)
"""
    assert _python(code) == "2 threads: walls are for a process with one"


@walled_only
def test_a_path_that_is_not_there_is_named() -> None:
    code = """
from pathlib import Path
from hnfed.guard.sandbox import *
try:
    enter(Walls(runtime_paths(), (Path("/nowhere/at/all"),)), (1, 2))
except UserError as error:
    print(error.field, error.value)
"""
    assert _python(code) == "walls.write /nowhere/at/all"


@pytest.mark.skipif(not seccomp.available(), reason="no seccomp filter on this machine")
def test_an_older_landlock_is_made_up_for_by_the_filter(tmp_path: Path) -> None:
    """Before version 6 signals, before version 3 `truncate` are refused by the filter."""
    victim = tmp_path / "victim"
    victim.write_text("patient")
    code = f"""
import os, signal
from hnfed.guard import seccomp
from hnfed.guard.libc import prctl
prctl(38, 1)
seccomp.restrict(os.getpid(), signals=True, truncate=True)
for job in (
    lambda: os.kill(os.getppid(), signal.SIGURG),
    lambda: os.kill(-1, 0),
    lambda: os.kill(0, 0),
    lambda: os.truncate({str(victim)!r}, 0),
):
    try:
        job()
        print("done")
    except PermissionError:
        print("refused")
os.kill(os.getpid(), 0)
signal.signal(signal.SIGURG, signal.SIG_IGN)
signal.raise_signal(signal.SIGURG)
print("own")
"""
    assert _python(code).split() == ["refused"] * 4 + ["own"]
    assert victim.read_text() == "patient"


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("processor", HEADERS)
def test_the_numbers_are_the_kernels(processor: str) -> None:
    path = HEADERS[processor]
    if not path.is_file():
        pytest.skip(f"{path} is not there: apt install linux-libc-dev")
    found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", path.read_text())
    known = {name: int(number) for name, number in found}
    column = seccomp.PROCESSORS[processor][0]
    ours = {name: row[column] for name, row in {**REFUSED, **LOOKED_AT}.items()}
    assert len(known) > 250
    wrong = {n: (v, known[n]) for n, v in ours.items() if n in known and known[n] != v}
    assert wrong == {}
    assert [n for n, v in ours.items() if v is None and n in known] == []


@pytest.mark.parametrize("processor", seccomp.PROCESSORS)
def test_the_filter_is_one_the_kernel_could_take(processor: str) -> None:
    steps = seccomp.program(processor, 7, signals=True, truncate=True)
    assert len(steps) < 4096
    ends = [here + 1 + max(s[1:3]) for here, s in enumerate(steps) if s[0] != seccomp.RETURN]
    assert max(ends) < len(steps)
    verdicts = [step[3] for step in steps if step[0] == seccomp.RETURN]
    assert verdicts[-1] == seccomp.ALLOW
    assert verdicts[0] == seccomp.KILL
    assert max(row[0] or 0 for row in REFUSED.values()) <= LAST


def test_required_and_preferred() -> None:
    good, bad = Enforceable(7, True, True), Enforceable(0, True, False)
    assert require("required", good) == require("preferred", good) == ""
    assert "not closed in" in require("preferred", bad)
    with pytest.raises(UserError) as refused:
        require("required", bad)
    assert refused.value.field == "policy.sandbox"
    assert "Landlock" in refused.value.problem
    assert not Enforceable(7, True, False).whole
    assert "did not find" in Enforceable(7, True, False).words
    assert "network" in Enforceable(7, False, False).words


def test_a_kit_within_the_walls_is_refused(tmp_path: Path) -> None:
    kit, scratch = tmp_path / "kit", tmp_path / "scratch"
    kit.mkdir()
    scratch.mkdir()
    walls = Walls((*runtime_paths(), tmp_path / "cache"), (scratch,))
    require_outside(walls, kit, kit / "node.key")
    (scratch / "link").symlink_to(kit)
    require_outside(walls, scratch / "link")  # the kit itself is elsewhere
    with pytest.raises(UserError) as refused:
        require_outside(Walls((tmp_path,), ()), kit)
    assert refused.value.field == "kit"
    with pytest.raises(UserError):
        require_outside(walls, scratch / "deep" / "kit")


def test_what_is_given_to_run_holds_no_other_process_and_no_home() -> None:
    paths = runtime_paths()
    assert all(path.exists() for path in paths)
    assert not any(path in (Path("/"), Path("/proc"), Path("/sys"), Path("/etc")) for path in paths)
    in_proc = [path for path in paths if Path("/proc") in path.parents]
    assert [path for path in in_proc if path.is_dir() and path.name != "nvidia"] == []
    assert ROOT not in paths


def test_landlock_version_is_a_number() -> None:
    assert landlock.version() == HERE.landlock >= 0
