"""One message, answered by the approved bundle in a process of its own that is closed in first.

Started by the guard with an empty environment and one open socket. Where there is no order yet it
loads the libraries that training needs, and waits. Until the walls stand nothing of the bundle is
on the path, and no thread runs. What comes in and what goes out are values and bytes (`frames`);
the guard believes none of them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

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
    walls = task["walls"]
    if walls is not None:
        paths = {k: tuple(map(Path, walls[k])) for k in ("read", "write", "devices")}
        keep = (channel.fileno(), 1, 2)
        enter(Walls(**paths, memory_bytes=walls["memory_bytes"]), keep)
    _limit_gpu(float(task["gpu_memory_share"]), str(task["device"]))
    app = load(Path(task["code"]))
    values, out = answer(app, task, blobs)
    frames.send(channel, values, out)
    channel.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread that the bundle left does not keep the process


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

        if torch.cuda.is_available():
            wanted = torch.device("cuda" if device == "auto" else device)
            torch.cuda.set_per_process_memory_fraction(share, wanted)


if __name__ == "__main__":
    main()
