"""What stands in the place of a kit's file, or of a site's state, is told; nothing waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from core.errors import UserError
from core.plan.load import read_yaml
from hnfed.deploy.answer import read_answer
from hnfed.deploy.authority import read_request
from hnfed.deploy.doctor import FAIL, _guarded, _own_certificate, _whole
from hnfed.deploy.join import known_authority
from hnfed.deploy.provision import read_roster
from hnfed.guard import answers, case_sets, countersigned, pins, plans, scored_sets, weights_record
from hnfed.guard.approvals import PENDING, _sent, approved
from hnfed.guard.kit import Kit, read_kit, read_private_key, ssl_context
from hnfed.guard.kit_files import kept_bytes, kept_json, require_plain_file
from hnfed.guard.peers import read_peers
from hnfed.guard.plan_words import plan_of
from hnfed.guard.policy import read_policy
from hnfed.guard.receipts import Chain, public_key, read_lines, write_receipt
from hnfed.guard.standing import read_note

Read = Callable[[Path], object]
SECRET = "words of another file"


def kit(folder: Path) -> Kit:
    return Kit(folder, "demo", "a", "localhost", 9000, 9001)


@pytest.fixture(autouse=True)
def seconds() -> Iterator[None]:
    """A reader that waits for a pipe fails its test, and does not stop the others."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def directory(path: Path) -> None:
    path.mkdir()


def link_out(path: Path) -> None:
    other = path.parent.with_name("elsewhere")
    other.write_text(SECRET)
    other.chmod(0o600)
    path.symlink_to(other)


def too_big(path: Path) -> None:
    path.touch(0o600)
    os.truncate(path, 2**33 + 1)


def no_text(path: Path) -> None:
    path.touch(0o600)
    path.write_bytes(b"\xff\xfe{}\n}")


OTHERS = (fifo, directory, link_out, too_big, no_text)
NAMED = (fifo, directory, too_big, no_text)  # by a person: a link is as good as the file
PARTS = (fifo, directory, link_out)  # of any size, read or written on in parts
READERS: list[tuple[str, Read, tuple[Callable[[Path], None], ...]]] = [
    ("kit.json", lambda f: read_kit(f, "site"), OTHERS),
    ("peers.json", lambda f: read_peers(kit(f)), OTHERS),
    ("approved.json", lambda f: approved(kit(f)), OTHERS),
    ("plans.json", plans.agreed, OTHERS),
    ("node.key", lambda f: read_private_key(f / "node.key"), OTHERS),
    ("node.pub", lambda f: public_key(f / "node.pub"), OTHERS),
    ("node.crt", lambda f: ssl_context(kit(f)), PARTS),
    ("ca.crt", known_authority, OTHERS),
    ("roster.json", read_roster, OTHERS),
    ("policy.yaml", lambda f: read_policy(f / "policy.yaml"), NAMED),
    ("site.yaml", lambda f: read_yaml(f / "site.yaml"), NAMED),
    ("answer.json", lambda f: read_answer(f / "answer.json"), NAMED),
    ("request.pem", lambda f: read_request(f / "request.pem"), NAMED),
    ("plan.json", lambda f: plan_of(str(f / "plan.json")), NAMED),
    ("runs/x.json", lambda f: pins.read_pin(f, "x"), OTHERS),
    ("answers/x.json", lambda f: answers._read(f, "x"), OTHERS),
    (scored_sets.FILE, lambda f: scored_sets._read(f / scored_sets.FILE), OTHERS),
    (case_sets.FILE, lambda f: list(case_sets._read(f / case_sets.FILE)), OTHERS),
    (countersigned.FILE, countersigned.read, PARTS),
    ("weights/x/states.jsonl", lambda f: weights_record.record_of(f, "x", print), OTHERS),
    ("receipts.jsonl", lambda f: list(read_lines(f)), PARTS),
    ("receipts.jsonl", lambda f: write_receipt(Chain(f), "x", "query", {}, {}, {}), PARTS),
]
CASES = [
    pytest.param(name, read, damaged, id=f"{name}-{damaged.__name__}")
    for name, read, kinds in READERS
    for damaged in kinds
]


@pytest.mark.parametrize(("name", "read", "damaged"), CASES)
def test_another_thing_in_its_place(
    tmp_path: Path, name: str, read: Read, damaged: Callable[[Path], None]
) -> None:
    path = tmp_path / "folder" / name
    path.parent.mkdir(parents=True)
    damaged(path)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "folder")
    told = str(caught.value)
    assert caught.value.problem
    assert caught.value.remedy
    assert str(path) in told or str(tmp_path / "folder") in told
    assert len(told) < 1200
    assert "Errno" not in told
    assert SECRET not in told


@pytest.mark.parametrize("damaged", OTHERS)
def test_what_is_no_note_or_nothing_that_waits_is_left_out(
    tmp_path: Path, damaged: Callable[[Path], None]
) -> None:
    folder = tmp_path / PENDING
    folder.mkdir()
    for name in ("client.json", f"{'0' * 64}.fab", f"{'0' * 64}{plans.SUFFIX}"):
        damaged(folder / name)
        (tmp_path / "elsewhere").unlink(missing_ok=True)
    assert read_note(folder / "client.json") == {}
    assert _sent(folder) == {}
    assert plans.waiting(tmp_path) == []


@pytest.mark.parametrize("damaged", OTHERS)
@pytest.mark.parametrize("name", ["SHA256SUMS", "node.crt", "README"])
def test_the_doctor_goes_on(tmp_path: Path, damaged: Callable[[Path], None], name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if name == "README":
        (folder / "SHA256SUMS").write_text(f"{'0' * 64}  README\n")
    damaged(folder / name)
    check = _guarded(_own_certificate if name == "node.crt" else _whole, kit(folder))
    assert check.state == FAIL
    assert check.remedy
    assert SECRET not in check.detail


def test_a_missing_file_is_none_and_a_link_inside_is_followed(tmp_path: Path) -> None:
    assert kept_bytes(tmp_path / "none") is None
    assert kept_json(tmp_path / "none" / "below") is None
    assert not require_plain_file(tmp_path / "none")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text('{"a": 1}')
    (tmp_path / "file").symlink_to("data/file")
    assert kept_json(tmp_path / "file") == {"a": 1}
    assert require_plain_file(tmp_path / "file")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    assert kept_json(tmp_path / "linked" / "file") == {"a": 1}  # a folder on another disk


@pytest.mark.parametrize("text", ["null", "{", "[" * 100_000, ""])
def test_what_is_no_json_is_not_taken_for_a_missing_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        kept_json(tmp_path / "file")


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("file")
    with pytest.raises(UserError):
        kept_bytes(tmp_path / "file")
