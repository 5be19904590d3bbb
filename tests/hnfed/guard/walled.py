"""Tries to get out of the walls: run as a program, it prints what came of each attempt as JSON.

Arguments: walled or open, a folder outside, one to read, one to write, descriptors: kept, leaked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hnfed.guard.sandbox import Walls, enter, runtime_paths
from hnfed.guard.syscalls import REFUSED

OUTSIDE, READ, WRITE = Path("outside"), Path("read"), Path("write")
KEPT = LEAKED = -1
PARENT = os.getppid()
KEY = b"-----key-----"
LIBC = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)
ATTACKS: dict[str, Callable[[], Any]] = {}
WORK: dict[str, Callable[[], Any]] = {}


def attack(job: Callable[[], Any]) -> Callable[[], Any]:
    ATTACKS[job.__name__] = job
    return job


def work(job: Callable[[], Any]) -> Callable[[], Any]:
    WORK[job.__name__] = job
    return job


def call(number: int, *arguments: Any) -> int:
    words = [ctypes.c_ulong(a & (2**64 - 1)) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def named(name: str, *arguments: Any) -> int:
    number = REFUSED[name][COLUMN]
    assert number is not None
    return call(number, *arguments)


def in_child(job: Callable[[], Any]) -> None:
    """What `job` raises in a forked process is raised here; a death by signal is EPERM."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(255)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        raise OSError(errno.EPERM, f"killed by signal {os.WTERMSIG(status)}")
    if os.WEXITSTATUS(status):
        raise OSError(os.WEXITSTATUS(status), "in a child")


# files


@attack
def read_key() -> None:
    assert (OUTSIDE / "node.key").read_bytes() == KEY


@attack
def read_key_in_a_thread() -> None:
    failed: list[OSError] = []

    def job() -> None:
        try:
            read_key()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@attack
def read_key_in_a_fork() -> None:
    in_child(read_key)


@attack
def read_key_by_a_program() -> None:
    done = subprocess.run(["/usr/bin/env", "cat", OUTSIDE / "node.key"], capture_output=True)
    if done.returncode and b"denied" in done.stderr:
        raise OSError(errno.EACCES, "in a program")
    assert done.stdout == KEY, done.stderr


@attack
def read_key_from_the_place_of_a_folder() -> None:
    place = os.open(OUTSIDE, os.O_PATH)
    os.close(os.open("node.key", os.O_RDONLY, dir_fd=place))


@attack
def read_key_by_way_of_proc() -> None:
    os.close(os.open(f"/proc/self/root{OUTSIDE}/node.key", os.O_RDONLY))


@attack
def read_key_by_a_link_that_was_there() -> None:
    (READ / "link").read_bytes()


@attack
def list_outside() -> None:
    os.listdir(OUTSIDE)


@attack
def list_home() -> None:
    os.listdir(Path("~").expanduser())


@attack
def list_root() -> None:
    os.listdir("/")


@attack
def make_a_file_outside() -> None:
    (OUTSIDE / "new").write_text("x")


@attack
def change_a_file_outside() -> None:
    (OUTSIDE / "data").write_text("x")


@attack
def change_a_file_that_is_only_read() -> None:
    (READ / "case").write_text("x")


@attack
def shorten_a_file_outside() -> None:
    os.truncate(OUTSIDE / "data", 0)


@attack
def remove_a_file_outside() -> None:
    (OUTSIDE / "spare").unlink()


@attack
def rename_in_from_outside() -> None:
    os.rename(OUTSIDE / "moved", WRITE / "moved")


@attack
def rename_out() -> None:
    (WRITE / "out").write_text("x")
    os.rename(WRITE / "out", OUTSIDE / "out")


@attack
def link_in_from_outside() -> None:
    os.link(OUTSIDE / "node.key", WRITE / "linked")


@attack
def link_in_what_is_only_read() -> None:
    os.link(READ / "case", WRITE / "linked-case")


@attack
def make_a_link_for_others_to_follow() -> None:
    os.symlink(OUTSIDE / "node.key", WRITE / "symlink")


@attack
def make_a_pipe_for_others_to_hang_on() -> None:
    os.mkfifo(WRITE / "fifo")


@attack
def start_what_was_written() -> None:
    path = WRITE / "program"
    path.write_bytes(Path("/usr/bin/env").read_bytes())
    with contextlib.suppress(PermissionError):
        path.chmod(0o700)
    subprocess.run([path], check=True, capture_output=True)


@attack
def chmod_outside() -> None:
    os.chmod(OUTSIDE / "data", 0o666)


@attack
def touch_outside() -> None:
    os.utime(OUTSIDE / "data")


@attack
def attribute_outside() -> None:
    os.setxattr(OUTSIDE / "data", "user.x", b"x")


@attack
def watch_who_opens_what() -> None:
    named("inotify_init1", 0)


@attack
def shared_memory_by_name() -> None:
    os.close(os.open(f"/dev/shm/hnfed-{os.getpid()}", os.O_CREAT | os.O_RDWR))


# the network


def family(kind: int, form: int) -> None:
    socket.socket(kind, form).close()


@attack
def tcp() -> None:
    family(socket.AF_INET, socket.SOCK_STREAM)


@attack
def tcp6() -> None:
    family(socket.AF_INET6, socket.SOCK_STREAM)


@attack
def udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.sendto(b"x", ("127.0.0.1", 9))


@attack
def dns() -> None:
    """To a resolver on the loopback address: asked for or not, it is a socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect(("127.0.0.1", 53))


@attack
def netlink() -> None:
    family(socket.AF_NETLINK, socket.SOCK_RAW)


@attack
def vsock() -> None:
    family(socket.AF_VSOCK, socket.SOCK_STREAM)


@attack
def unix_by_path() -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(OUTSIDE / "listener"))


@attack
def unix_abstract() -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.bind(f"\0hnfed-{os.getpid()}")


@attack
def socket_pair() -> None:
    for link in socket.socketpair():
        link.close()


@attack
def turn_the_kept_socket_elsewhere() -> None:
    with socket.socket(fileno=os.dup(KEPT)) as link:
        link.connect(str(OUTSIDE / "listener"))


# other processes


def of_parent(name: str) -> None:
    os.close(os.open(f"/proc/{PARENT}/{name}", os.O_RDONLY))


@attack
def environ_of_the_parent() -> None:
    of_parent("environ")


@attack
def memory_of_the_parent() -> None:
    of_parent("mem")


@attack
def arguments_of_the_parent() -> None:
    of_parent("cmdline")


@attack
def descriptors_of_the_parent() -> None:
    os.listdir(f"/proc/{PARENT}/fd")


@attack
def descriptor_of_the_parent() -> None:
    os.readlink(f"/proc/{PARENT}/fd/0")


@attack
def list_processes() -> None:
    os.listdir("/proc")


@attack
def own_environ() -> None:
    os.close(os.open("/proc/self/environ", os.O_RDONLY))


@attack
def trace_the_parent() -> None:
    named("ptrace", 0x4206, PARENT, 0, 0)


@attack
def memory_of_the_parent_by_call() -> None:
    named("process_vm_readv", PARENT, None, 0, None, 0, 0)


@attack
def signal_to_the_parent() -> None:
    os.kill(PARENT, signal.SIGURG)


@attack
def signal_to_a_thread_of_the_parent() -> None:
    call({0: 234, 1: 131}[COLUMN], PARENT, PARENT, signal.SIGURG)


@attack
def leave_the_session() -> None:
    in_child(os.setsid)


@attack
def leave_the_group() -> None:
    in_child(lambda: os.setpgid(0, 0))


@attack
def limit_of_the_parent() -> None:
    import resource

    resource.prlimit(PARENT, resource.RLIMIT_CORE)


@attack
def priority_of_the_parent() -> None:
    kind, parent = os.PRIO_PROCESS, PARENT
    os.setpriority(kind, parent, os.getpriority(kind, parent))


@attack
def schedule_of_the_parent() -> None:
    os.sched_setscheduler(PARENT, os.SCHED_OTHER, os.sched_param(0))


@attack
def descriptor_by_pidfd() -> None:
    os.pidfd_open(PARENT)


@attack
def owner_of_signals() -> None:
    fcntl.fcntl(KEPT, fcntl.F_SETOWN, PARENT)


@attack
def inherited_descriptor() -> None:
    os.pread(LEAKED, 4, 0)


@attack
def typing_on_a_terminal() -> None:
    try:
        fcntl.ioctl(KEPT, 0x5412, b"x")
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise


# the kernel


@attack
def io_uring() -> None:
    named("io_uring_setup", 1, ctypes.create_string_buffer(120))


@attack
def bpf() -> None:
    named("bpf", 0, ctypes.create_string_buffer(72), 72)


@attack
def keyring() -> None:
    named("keyctl", 0, -1, 1)


@attack
def namespace() -> None:
    named("unshare", 0x10000000)


@attack
def namespace_by_clone() -> None:
    pid = call({0: 56, 1: 220}[COLUMN], 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@attack
def namespace_by_clone3() -> None:
    fields = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, signal.SIGCHLD)
    pid = call(435, ctypes.byref(fields), 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@attack
def system_v_memory() -> None:
    named("shmget", 0, 4096, 0o1600)


@attack
def calls_of_another_convention() -> None:
    """x86_64 alone: ``getpid`` by x32; a kernel without x32 says ENOSYS of its own."""
    if platform.machine() != "x86_64":
        raise OSError(errno.EPERM, "there is no other")
    in_child(lambda: call(0x40000000 + 39))


@attack
def calls_of_another_processor() -> None:
    """x86_64 alone: ``socket`` by the 32-bit gate, in machine code."""
    if platform.machine() != "x86_64":
        raise OSError(errno.EPERM, "there is none")
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(
        b"\x53\xb8\x67\x01\x00\x00\xbb\x02\x00\x00\x00\xb9\x01\x00\x00\x00\x31\xd2\xcd\x80\x5b\xc3"
    )
    place = ctypes.addressof(ctypes.c_char.from_buffer(code))
    in_child(lambda: ctypes.CFUNCTYPE(ctypes.c_int)(place)())


@attack
def calls_of_a_later_kernel() -> None:
    call(468, -1, 0, 0, 0, 0)


# what training needs


@work
def read_what_is_given() -> None:
    assert (READ / "case").read_text() == "voxels"
    assert sorted(os.listdir(READ)) == ["case", "link"]


@work
def write_scratch() -> None:
    folder = WRITE / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x").write_text("x")
    os.replace(folder / "x", WRITE / "y")
    with (WRITE / "y").open("r+") as file:
        file.truncate(0)
    os.link(WRITE / "y", WRITE / "z")
    (WRITE / "y").unlink()
    folder.rmdir()


@work
def say_and_hear() -> None:
    with socket.socket(fileno=os.dup(KEPT)) as link:
        link.sendmsg([b"ping"])
        assert link.recvmsg(4)[0] == b"pong"


@work
def threads_and_forks() -> None:
    threads = [threading.Thread(target=sum, args=(range(1000),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = os.pipe()
    shared = mmap.mmap(-1, 4096)

    def child() -> None:
        shared[:4] = b"text"
        os.write(ends[1], b"x")

    in_child(child)
    assert os.read(ends[0], 1) == b"x"
    assert shared[:4] == b"text"


@work
def stop_a_child() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@work
def start_a_program() -> None:
    subprocess.run(["/usr/bin/env", "true"], check=True)


@work
def own_state() -> None:
    assert "MemTotal" in Path("/proc/meminfo").read_text()
    assert "VmRSS" in Path("/proc/self/status").read_text()
    assert len(os.urandom(8)) == 8
    with open(os.devnull, "w") as nowhere:
        nowhere.write("x")
    print("nowhere")  # standard output leads to nowhere


def outcome(job: Callable[[], Any]) -> str:
    try:
        job()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main() -> None:
    global OUTSIDE, READ, WRITE, KEPT, LEAKED
    OUTSIDE, READ, WRITE = map(Path, sys.argv[2:5])
    KEPT, LEAKED, report = map(int, sys.argv[5:8])
    if sys.argv[1] == "walled":
        enter(Walls((*runtime_paths(), READ), (WRITE,)), (KEPT, report))
    found = {name: outcome(job) for name, job in {**WORK, **ATTACKS}.items()}
    with os.fdopen(report, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
