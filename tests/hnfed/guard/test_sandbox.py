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
from hnfed.guard.sandbox import (
    Enforceable,
    Walls,
    enforceable,
    require,
    require_outside,
    runtime_paths,
)
from hnfed.guard.syscalls import LAST, LOOKED_AT, REFUSED

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
    "limit_of_the_parent", "descriptor_by_pidfd", "owner_of_signals", "inherited_descriptor",
    "typing_on_a_terminal", "system_v_memory",
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
            pass_fds=given, env={"HOME": str(Path.home()), "PYTHONPATH": str(FILE.parents[3])},
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
