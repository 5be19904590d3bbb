"""Processes that train or score together: one a GPU, or several on a CPU.

The one that asks is rank 0. The others wait for work at a pipe, take the same steps as it, each
with its share of the cases, and end with it. Numbers are summed in a file that all of them have
mapped, and they wait for each other at their pipes: no socket is made, so that this works behind a
site's walls as anywhere else (docs/decisions/0007-several-gpus.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.processes import LEAVE, end_with_parent

Result = TypeVar("Result")
Item = TypeVar("Item")
DEVICES = "write auto, cpu, cpu:2 (processes), cuda (all GPUs), cuda:0 or cuda:0,1"
FLOAT_BYTES = 4
END_SECONDS = 10.0


def devices_of(device: str | torch.device, field: str = "device") -> tuple[torch.device, ...]:
    """The device of each process: one by default, several where they are asked for.

    Args:
        device: ``auto | cpu | cpu:N | cuda | cuda:I[,J...]``. ``cuda`` means every GPU that can be
            seen; ``auto`` the same where there is one, else ``cpu``.
        field: that names it.

    Raises:
        UserError: no such form, a GPU that is absent or named twice, no process, or more than
            there are cores.
    """
    name = str(device)
    kind = name.partition(":")[0]
    found = torch.cuda.device_count() if kind in ("auto", "cuda") else 0
    if name == "auto":
        name = kind = "cuda" if found else "cpu"
    asked = numbers_in(name, field)
    if kind == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if asked and not 1 <= asked[0] <= (cores or 1):
            problem = f"{cores} cores can be used here"
            raise UserError(field, name, f"give 1 to {cores} processes", problem=problem)
        return (torch.device("cpu"),) * (asked[0] if asked else 1)
    absent = [index for index in asked if index >= found]
    if absent or not found:
        remedy = f"name GPUs from 0 to {found - 1}" if found else "use auto or cpu"
        raise UserError(field, name, remedy, problem=f"this machine shows {found} CUDA devices")
    return tuple(torch.device("cuda", index) for index in asked or range(found))


def numbers_in(name: str, field: str = "device") -> tuple[int, ...]:
    """The numbers of a device's name: of GPUs, or how many processes; () where it has none.

    Raises:
        UserError: no such form, or a GPU is named twice.
    """
    kind, colon, listed = name.partition(":")
    parts = listed.split(",") if colon else []
    most = {"auto": 0, "cpu": 1, "cuda": len(parts)}.get(kind, -1)
    if len(parts) > most or not all(p.isascii() and p.isdigit() and len(p) < 5 for p in parts):
        raise UserError(field, name, DEVICES)
    numbers = tuple(map(int, parts))
    if len(set(numbers)) < len(numbers):
        raise UserError(field, name, "name each GPU once", problem="a GPU is named twice")
    if kind == "cpu" and numbers == (0,):
        raise UserError(field, name, "give at least 1 process, or write cpu")
    return numbers


def name_of(devices: Sequence[torch.device]) -> str:
    """The inverse of `devices_of`, with every GPU named."""
    if devices[0].type == "cpu":
        return "cpu" if len(devices) == 1 else f"cpu:{len(devices)}"
    return "cuda:" + ",".join(str(device.index) for device in devices)


def require_batch(batch: int, devices: Sequence[torch.device], field: str = "device") -> None:
    """Requires a case of each batch for every process.

    Args:
        batch: the plan's `train.batch`, of all processes together.
        devices: of the processes.
        field: that names them.

    Raises:
        UserError: there are more processes than cases.
    """
    if batch < len(devices):
        fewer = name_of(devices[:batch])
        remedy = f"raise train.batch to {len(devices)}, or write {field}: {fewer}"
        problem = f"{len(devices)} processes ({name_of(devices)}) share the cases of a batch"
        raise UserError("train.batch", batch, remedy, problem=problem)


@dataclass(frozen=True)
class _Link:
    """The pipes to one other process, and the process where it is this one's to end."""

    reader: Connection
    writer: Connection
    process: subprocess.Popen[bytes] | None = None


@dataclass(frozen=True)
class Group:
    """A process's place among those that work together.

    Attributes:
        rank: 0 for the one that asked.
        devices: of all of them, by rank.
        links: of rank 0 to each other; of each other to rank 0.
        board: (size + 1, N) float32, memory of all of them: a row for each, and one for the sum.
    """

    rank: int = 0
    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    links: tuple[_Link, ...] = ()
    board: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def size(self) -> int:
        """How many processes."""
        return len(self.devices)

    @property
    def device(self) -> torch.device:
        """This process's."""
        return self.devices[self.rank]

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this process's: those of all ranks in turn are all items."""
        count = len(items)
        return items[count * self.rank // self.size : count * (self.rank + 1) // self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, the same bits in all of them.

        Args:
            tensors: of the same shapes in every process, on any device; N numbers at most.
        """
        if self.size == 1:
            return
        end, places = 0, []
        for tensor in tensors:
            start, end = end, end + tensor.numel()
            places.append(slice(start, end))
            self.board[self.rank, start:end].view(tensor.shape).copy_(tensor)
        self.meet()
        mine = slice(end * self.rank // self.size, end * (self.rank + 1) // self.size)
        torch.sum(self.board[: self.size, mine], dim=0, out=self.board[self.size, mine])
        self.meet()
        for tensor, place in zip(tensors, places, strict=True):
            tensor.copy_(self.board[self.size, place].view(tensor.shape))

    def meet(self) -> None:
        """Waits until every process is here."""
        if self.rank > 0:
            self.send(None)
            self.receive(0)
            return
        for rank in range(1, self.size):
            self.receive(rank)
        for link in self.links:
            _send(link, None)

    def send(self, value: Any) -> None:
        """Sends rank 0 a value; numpy arrays and values of Python, no tensors."""
        _send(self.links[0], value)

    def receive(self, rank: int) -> Any:
        """What a process has sent; rank 0 hears all, the others hear it.

        Raises:
            UserError: it has ended.
            Exception: what it raised.
        """
        link = self.links[max(rank - 1, 0)]
        try:
            value = link.reader.recv()
        except (EOFError, OSError) as error:
            raise self._ended(rank, link) from error
        if isinstance(value, Exception):
            raise value
        return value

    def _ended(self, rank: int, link: _Link) -> UserError:
        killed = False
        if link.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                killed = link.process.wait(END_SECONDS) == -signal.SIGKILL
        remedy = "see the log; look whether memory is short, and name fewer devices if it is"
        problem = f"process {rank} of 0 to {self.size - 1} {'was killed' if killed else 'ended'}"
        return UserError("device", name_of(self.devices), remedy, problem=problem)


ALONE = Group()
Work = tuple[Callable[..., None], tuple[Any, ...]]
_waiting: list[_Link] = []  # processes that have nothing to do: of the guard, or started here


def together(
    mine: Callable[[Group], Result], theirs: Work, devices: Sequence[torch.device], numbers: int
) -> Result:
    """Calls a function in this process and its counterpart in the others, all at once.

    The others stay for the next call, until `end_others` or the end of this process. Where one of
    them fails, or this one, all of them are ended.

    Args:
        mine: what this process does, as rank 0.
        theirs: a function of a module, called with the group, and its further arguments. No
            tensors: see `arrays_of`.
        devices: of the processes, by rank.
        numbers: the most that one `Group.sum` adds up.

    Raises:
        UserError: a process ended.
        Exception: what any of them raised.
    """
    if any(link.process is not None and link.process.poll() is not None for link in _waiting):
        end_others()
    while len(_waiting) < len(devices) - 1:
        _waiting.append(_started())
    links = tuple(_waiting[: len(devices) - 1])
    try:
        with _board_file(len(devices) + 1, numbers) as path:
            group = Group(0, tuple(devices), links, _board(path, len(devices) + 1, numbers))
            for rank, link in enumerate(links, start=1):
                names = [str(device) for device in devices]
                _send(link, (*theirs, rank, names, str(path), numbers))
            group.meet()
        result = mine(group)
        for rank in range(1, group.size):
            group.receive(rank)
        return result
    except BaseException:
        end_others()
        raise


def end_others() -> None:
    """Ends the processes that wait for work; those of the guard by their pipes, which close."""
    while _waiting:
        link = _waiting.pop()
        if link.process is not None:
            link.process.kill()
            link.process.wait()
        link.reader.close()
        link.writer.close()


def given(pipes: Sequence[tuple[int, int]]) -> None:
    """Takes processes that `serve` already: descriptors to read from and to write to, for each."""
    _waiting.extend(_Link(_reader(read), _writer(write)) for read, write in pipes)


def serve(read: int, write: int) -> None:
    """Works for rank 0 until its pipe closes.

    Signals that ask to leave are rank 0's, which ends this process in turn.

    Args:
        read: descriptor by which work comes.
        write: descriptor by which answers go.
    """
    for number in LEAVE:
        signal.signal(number, signal.SIG_IGN)
    link = _Link(_reader(read), _writer(write))
    with contextlib.suppress(EOFError, OSError):
        while True:
            work, arguments, rank, names, path, numbers = link.reader.recv()
            devices = tuple(map(torch.device, names))
            try:
                board = _board(Path(path), len(devices) + 1, numbers)
                group = Group(rank, devices, (link,), board)
                group.meet()
                work(group, *arguments)
                answer: Exception | None = None
            except Exception as error:
                answer = _told(error, rank)
            _send(link, answer)


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as numpy arrays, which travel through a pipe."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def tensors_of(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `arrays_of`."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def sum_gradients(group: Group, parameters: Sequence[nn.Parameter], finite: bool) -> bool:
    """Sums the gradients of all processes; whether the losses were finite in all of them.

    A parameter without a gradient in any process has none afterwards.
    """
    if group.size == 1:
        return finite
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    counts = torch.tensor([not finite, *(p.grad is not None for p in parameters)]).float()
    group.sum([counts, *grads])
    wrong, *held = counts.tolist()
    for parameter, grad, count in zip(parameters, grads, held, strict=True):
        parameter.grad = grad if count else None
    return not wrong


def _told(error: Exception, rank: int) -> Exception:
    """The error as it travels: one of ours whole, of another its words."""
    if isinstance(error, UserError):
        return error
    traceback.print_exception(error)
    return RuntimeError(f"process {rank}: {type(error).__name__}: {error}")


def _started() -> _Link:
    """A process that serves this one, of this very code."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    (read, their_write), (their_read, write) = os.pipe(), os.pipe()
    program = "from core.training.ranks import main; main()"
    given = map(str, (os.getpid(), their_read, their_write))
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, *given],
            env={**os.environ, "PYTHONPATH": paths}, pass_fds=(their_read, their_write),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        os.close(their_read)
        os.close(their_write)
    return _Link(_reader(read), _writer(write), process)


def main() -> None:
    """A process that `together` started."""
    maker, read, write = map(int, sys.argv[1:])
    end_with_parent(maker)
    serve(read, write)
    os._exit(0)


@contextlib.contextmanager
def _board_file(rows: int, numbers: int) -> Iterator[Path]:
    """A file with room for all sums, gone again once everybody has mapped it.

    Raises:
        OSError: the disk has no room for it.
    """
    handle, name = tempfile.mkstemp(prefix="hnfed-sums-")
    try:
        try:
            size = max(rows * numbers, 1) * FLOAT_BYTES
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a signal later
                os.posix_fallocate(handle, 0, size)
            os.truncate(handle, size)
        finally:
            os.close(handle)
        yield Path(name)
    finally:
        os.unlink(name)


def _board(path: Path, rows: int, numbers: int) -> Tensor:
    flat = torch.from_file(str(path), True, max(rows * numbers, 1), dtype=torch.float32)
    return flat[: rows * numbers].view(rows, numbers)


def _send(link: _Link, value: Any) -> None:
    """A process that has ended is told of by whoever hears of it next."""
    with contextlib.suppress(BrokenPipeError):
        link.writer.send(value)


def _reader(descriptor: int) -> Connection:
    return Connection(descriptor, writable=False)


def _writer(descriptor: int) -> Connection:
    return Connection(descriptor, readable=False)
