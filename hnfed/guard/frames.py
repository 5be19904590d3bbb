"""What the guard and its closed worker say to each other over one socket: values, never objects.

A frame is a length, JSON of that length, and the blobs whose lengths the JSON tells. Whoever reads
knows beforehand how much it will take.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

COLD = "cold"  # a worker's argument: no libraries before its order
BLOBS = "blobs"
MOST_HEAD, MOST_BLOBS = 8 * 2**20, 16
_LENGTH = struct.Struct(">Q")


class FrameError(RuntimeError):
    """The other side ended, or said what is no frame, or too much."""


def send(channel: socket.socket, values: dict[str, Any], blobs: dict[str, bytes]) -> None:
    """Sends one frame.

    Args:
        channel: a connected stream.
        values: JSON, not larger than `MOST_HEAD`.
        blobs: bytes by name.
    """
    listed = [[name, len(blob)] for name, blob in blobs.items()]
    head = json.dumps({**values, BLOBS: listed}).encode("ascii")
    channel.sendall(_LENGTH.pack(len(head)) + head)
    for blob in blobs.values():
        channel.sendall(blob)


def receive(channel: socket.socket, most_bytes: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads one frame.

    Args:
        channel: a connected stream; its time-out is that of each piece.
        most_bytes: of all blobs together.

    Returns:
        The values and the blobs by name.

    Raises:
        FrameError: no frame, or a larger one.
    """
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if length > MOST_HEAD:
        raise FrameError("a head that is too long")
    try:
        values = json.loads(_exactly(channel, length))
        listed = [(str(name), int(size)) for name, size in values.pop(BLOBS)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError("no frame") from error
    if len(listed) > MOST_BLOBS or sum(max(size, 0) for _, size in listed) > most_bytes:
        raise FrameError(f"more than {most_bytes} bytes")
    return values, {name: _exactly(channel, size) for name, size in listed}


def _exactly(channel: socket.socket, count: int) -> bytes:
    if count < 0:
        raise FrameError("a negative length")
    found = bytearray()
    while len(found) < count:
        try:
            piece = channel.recv(min(count - len(found), 2**20))
        except ConnectionError as error:
            raise FrameError("ended") from error
        if not piece:
            raise FrameError("ended")
        found += piece
    return bytes(found)
