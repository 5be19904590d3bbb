from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from hnfed.guard import fleet
from hnfed.guard.fleet import FLOWER, MessageError, _names, _records, bounded

MIB = 2**20
GUARD = Path(fleet.__file__).parent


def test_flower_is_the_version_whose_protocol_this_is() -> None:
    """Its private parts move without notice: look at `fleet.py` before this number is changed."""
    assert version("flwr").startswith(FLOWER + ".")


def test_no_other_file_at_a_site_knows_flowers_inside() -> None:
    public = {"flwr.app", "flwr.clientapp", "flwr.cli.build"}
    wrong = []
    for path in [*GUARD.glob("*.py"), *GUARD.with_name("deploy").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            named += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            private = [m for m in named if m and m.startswith("flwr") and m not in public]
            if private and path.name != "fleet.py":
                wrong.append(f"{path.name}: {private}")
    assert wrong == []


def message(content: Any) -> Any:
    about = Metadata(1, "", 1, 2, "", "", 1.0, 10.0, "train")
    made: Any = Message
    return made(content, metadata=about)


def deflated(content: RecordDict) -> tuple[str, dict[str, bytes], ObjectTree]:
    whole = message(content)
    parts = {name: part.deflate() for name, part in get_all_nested_objects(whole).items()}
    return whole.object_id, parts, get_object_tree(whole)


def content_with(data: bytes) -> RecordDict:
    array = Array("uint8", (len(data),), "safetensors", data)
    arrays = ArrayRecord({"weights": array})
    return RecordDict({"order": ConfigRecord({"round": 3, "run": "r"}), "arrays": arrays})


def test_records_come_as_values_and_bytes() -> None:
    name, parts, tree = deflated(content_with(b"abc" * 3 * MIB))
    assert set(_names(tree)) == set(parts)
    found = _records(name, parts, 20 * MIB)
    assert found["order"] == {"round": 3, "run": "r"}
    assert found["arrays"] == b"abc" * 3 * MIB


def test_an_array_that_names_one_piece_a_thousand_times_is_not_put_together() -> None:
    """Five megabytes that become five thousand."""
    name, parts, _ = deflated(content_with(b"\0" * 5 * MIB))
    (key,) = [k for k, v in parts.items() if v.startswith(b"Array ")]
    head, body = parts[key].split(b"\0", 1)
    many = body.replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [' + b"0, " * 999 + b"0]")
    assert many != body
    parts[key] = head.rpartition(b" ")[0] + f" {len(many)}".encode() + b"\0" + many
    with pytest.raises(MessageError, match="more than"):
        _records(name, parts, 20 * MIB)


@pytest.mark.parametrize(
    "damage", [b"", b"Array 1\0", b"Message \xff\0x", b"\0" * 100, b"{" * 5000]
)
def test_parts_of_another_form_are_an_error_of_the_message(damage: bytes) -> None:
    name, parts, _ = deflated(content_with(b"abc"))
    with pytest.raises(MessageError):
        _records(name, {**parts, name: damage}, MIB)


def test_a_message_of_an_error_or_of_two_arrays_is_none_of_ours() -> None:
    array = Array("uint8", (1,), "safetensors", b"x")
    two = RecordDict({"arrays": ArrayRecord({"a": array, "b": array})})
    name, parts, _ = deflated(two)
    with pytest.raises(MessageError):
        _records(name, parts, MIB)


def test_a_tree_without_end_is_refused() -> None:
    deep = ObjectTree(object_id="0")
    for _ in range(fleet.DEEPEST + 1):
        deep = ObjectTree(object_id="0", children=[deep])
    with pytest.raises(MessageError, match="too many parts"):
        list(_names(deep))
    wide = ObjectTree(object_id="0", children=[ObjectTree(object_id="1")] * fleet.MOST_NODES)
    with pytest.raises(MessageError, match="too many parts"):
        list(_names(wide))


class Endless(httpx.SyncByteStream):
    """A body of a gigabyte, made as it is read."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(1024):
            self.given += MIB
            yield b"\0" * MIB


def answer(stream: httpx.SyncByteStream, **headers: str) -> httpx.Response:
    request = httpx.Request("POST", "https://x/")
    return httpx.Response(200, headers=headers, stream=stream, request=request)


def test_an_answer_is_read_to_its_bound_and_no_further() -> None:
    body = Endless()
    with pytest.raises(httpx.DecodingError, match="without end"):
        bounded(answer(body), 3 * MIB)
    assert body.given <= 5 * MIB


def test_a_compressed_answer_is_not_opened() -> None:
    body = Endless()
    with pytest.raises(httpx.DecodingError, match="compressed"):
        bounded(answer(body, **{"content-encoding": "gzip"}), 3 * MIB)
    assert body.given == 0
