"""One message, answered by the approved bundle in processes of its own, closed in first.

Started by the guard with an empty environment and one open socket. Where there is no order yet it
loads the libraries that training needs, and waits. Until the walls stand nothing of the bundle is
on the path, and no thread runs. What comes in and what goes out are values and bytes (`frames`);
the guard believes none of them.

A site that trains on several devices has a process for each. The others are forked from the first
within the walls, before any of them starts a GPU, and work for it over pipes. They are of its
process group, which the guard ends as a whole, and die with it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from core.processes import end_with_parent
from hnfed.guard import frames
from hnfed.guard.sandbox import Walls, enter

OURS = ("core", "client", "server", "simulations")  # packages that the bundle brings
# That the bundle's code imports, and that take seconds to load.
LIBRARIES = (
    "torch", "flwr.app", "flwr.clientapp", "safetensors.torch", "omegaconf", "scipy.ndimage",
    "torch.export", "filelock", "SimpleITK",
)  # fmt: skip
MOST_BYTES = 2**33


def main() -> None:
    """Reads one order from the inherited socket, answers it, and ends."""
    if frames.COLD not in sys.argv:
        _load_libraries()
    channel = socket.socket(fileno=int(sys.argv[1]))
    task, blobs = frames.receive(channel, MOST_BYTES)
    devices = [str(device) for device in task["devices"]]
    forked = functools.partial(_forked, channel, len(devices))
    if (walls := task["walls"]) is not None:
        paths = {k: tuple(map(Path, walls[k])) for k in ("read", "write", "devices")}
        numbers = tuple(int(device.partition(":")[2] or 0) for device in devices)
        closed_in = Walls(**paths, memory_bytes=walls["memory_bytes"], gpus=numbers)
        rank, pipes = enter(closed_in, (channel.fileno(), 1, 2), forked)
    else:
        rank, pipes = forked()
    _limit_gpu(float(task["gpu_memory_share"]), devices[rank])
    app = load(Path(task["code"]))
    if len(devices) > 1:
        from core.training import ranks  # the bundle's

        if rank:
            ranks.serve(*pipes[0])
            os._exit(0)
        ranks.given(pipes)
    values, out = answer(app, task, blobs)
    frames.send(channel, values, out)
    channel.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread that the bundle left does not keep the process


def _forked(channel: socket.socket, processes: int) -> tuple[int, list[tuple[int, int]]]:
    """Makes a process for each further device, while this one has no thread.

    Returns:
        In each of them its rank, and descriptors to read from and write to: in the first those to
        all others, in the others those to the first.
    """
    pipes: list[tuple[int, int]] = []
    first = os.getpid()
    for rank in range(1, processes):
        (read, their_write), (their_read, write) = os.pipe(), os.pipe()
        if os.fork() == 0:
            end_with_parent(first)
            channel.close()
            for end in (read, write, *(end for pair in pipes for end in pair)):
                os.close(end)  # a pipe closes with the process that it belongs to
            return rank, [(their_read, their_write)]
        os.close(their_read)
        os.close(their_write)
        pipes.append((read, write))
    return 0, pipes


def load(folder: Path) -> Any:
    """The bundle's ClientApp: its packages and no others of their names are imported.

    Raises:
        ImportError: a package of that name comes from elsewhere.
    """
    for name in [n for n in sys.modules if n.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    module = importlib.import_module("client.app")
    for name in ("client.app", "core.wire.messages"):
        origin = Path(str(importlib.import_module(name).__file__))
        if not origin.is_relative_to(folder):
            raise ImportError(f"{name} comes from elsewhere")
    return module.app


def answer(
    app: Any, task: dict[str, Any], blobs: dict[str, bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Calls the app; its reply's records as values, and its arrays as bytes.

    Args:
        app: the ClientApp.
        task: kind, records, run_config and node_config.
        blobs: arrays by record.
    """
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict

    content: Any = {name: ConfigRecord(values) for name, values in task["records"].items()}
    for name, blob in blobs.items():
        array = Array("uint8", (len(blob),), "safetensors", blob)
        content[name] = ArrayRecord({"weights": array})
    about = Metadata(1, "1", 1, 2, "", "", time.time(), 1e6, str(task["kind"]))
    context = Context(
        run_id=1,
        node_id=2,
        node_config=dict(task["node_config"]),
        state=RecordDict(),
        run_config=dict(task["run_config"]),
    )
    message: Any = Message
    reply = app(message(RecordDict(content), metadata=about), context)
    values: dict[str, Any] = {"records": {}}
    out: dict[str, bytes] = {}
    for name, record in reply.content.items():
        if isinstance(record, ArrayRecord):
            (array,) = record.values()
            out[name] = array.data
        else:
            values["records"][name] = dict(record)
    return values, out


def _load_libraries() -> None:
    """What is installed here; it begins anew without them where one of them starts a thread."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:  # walls are for a process with one
        os.execv(sys.executable, [*sys.orig_argv, frames.COLD])


def _limit_gpu(share: float, device: str) -> None:
    """Of the device's memory so much, where it is a GPU."""
    if share < 1.0 and device != "cpu":
        import torch

        torch.cuda.set_per_process_memory_fraction(share, torch.device(device))


if __name__ == "__main__":
    main()
