from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st

from core.wire.countersignature import Countersignature, countersign
from core.wire.messages import Header
from hnfed.cli.json_output import JsonFile
from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision
from hnfed.guard import receipts
from hnfed.guard.countersigned import genuine, missing, note, read
from hnfed.guard.receipt_words import summary
from hnfed.guard.receipts import (
    FIRST,
    Chain,
    hashes_of,
    public_key,
    read_receipts,
    verify,
    write_receipt,
)
from tests.traps import TRAPS, within

HEADER = Header("nyu", "run-1", "pretrain", 3).to_config()
METRICS = {"cases": 12, "seconds": 1.5, "loss": [0.1, 0.2], "val.dice": [0.5], "left_out.E_X": 2}


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kits")
    provision(Federation("hn", "x", 1, 2, ("nyu", "miccai"), 30), folder)
    return folder


def good() -> dict[str, torch.Tensor]:
    return {"head.weight": torch.zeros(2, 3), "body.1": torch.zeros(4)}


def filled(state: Path, kits: Path, count: int = 5) -> list[str]:
    key = kits / "nyu" / "node.key"
    return [
        write_receipt(Chain(state, key), "run-1", "train", HEADER | {"round": i}, METRICS, good())
        for i in range(count)
    ]


def wrong(state: Path, kits: Path) -> list[str]:
    return verify(state, public_key(kits / "nyu" / "node.pub"))


def test_receipts_say_what_left(tmp_path: Path) -> None:
    write_receipt(
        Chain(tmp_path), "run-1", "query", {"site": "nyu", "code": "OK"}, {"cases": [1]}, {}
    )
    write_receipt(Chain(tmp_path), "run-1", "train", HEADER, METRICS, good())
    found = read_receipts(tmp_path)
    last = found["run-1"][-1]
    assert last["bytes"] == 4 * (6 + 4)
    assert [t["name"] for t in last["tensors"]] == ["body.1", "head.weight"]
    assert last["scalars"]["round"] == 3
    text = summary(found)
    assert "pretrain to 3" in text
    assert "1 x train: sent what it trained, or what came of it; 1 of them with weights" in text
    rows = text.partition("have left:\n")[2].splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1:] for line in rows}
    assert set(told) == {*HEADER, *METRICS}
    assert all(told.values()), "each scalar is explained"
    write_receipt(
        Chain(tmp_path), "run-1", "train", HEADER, METRICS, {**good(), "body.1": torch.ones(4)}
    )
    assert read_receipts(tmp_path)["run-1"][-1]["sha256"] != last["sha256"]
    json.dumps(found)
    assert "nothing has left" in summary(read_receipts(tmp_path / "none"))


def test_a_runs_name_hides_nothing(tmp_path: Path) -> None:
    """H3: receipts of a run called a/b lay where nobody looked."""
    write_receipt(Chain(tmp_path), "a/b", "train", HEADER, METRICS, good())
    write_receipt(Chain(tmp_path), "\x1b[2J\u202e", "train", HEADER, METRICS, good())
    assert set(read_receipts(tmp_path)) == {"a/b", "\x1b[2J\u202e"}
    text = summary(read_receipts(tmp_path))
    assert text.isascii()
    assert "\x1b" not in text
    assert "a/b" in text


def test_receipts_of_an_earlier_version_are_listed_without_a_chain(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    line = {"at": "2026", "kind": "train", "scalars": HEADER, "tensors": [], "bytes": 0}
    (tmp_path / "old" / "receipts.jsonl").write_text(json.dumps(line) + '\n{"at": "2026')
    write_receipt(Chain(tmp_path), "new", "train", HEADER, METRICS, {})
    kinds = [[row["kind"] for row in rows] for rows in read_receipts(tmp_path).values()]
    assert kinds == [["train", "unreadable"], ["train"]], "the torn one is told"
    assert "1 receipts of an earlier version stand in no chain" in summary(read_receipts(tmp_path))
    assert verify(tmp_path, None) == []


def test_what_trained_code_leaves_in_a_runs_folder_hides_no_receipt(tmp_path: Path) -> None:
    """A size that is a word, a line of brackets, a folder, a terabyte of nothing."""
    write_receipt(Chain(tmp_path), "r", "query", {"code": "OK"}, {}, {})
    lines = [b'{"scalars": {}, "bytes": "x"}', b'{"scalars": {}, "tensors": 3}', b"[" * 100_000]
    lines += [b'{"scalars": {"seconds": NaN}}', b'{"scalars": {}, "tensors": [1e999]}']
    lines += [b'{"scalars": {}, "n": "x"}', b'{"scalars": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}"]
    lines += [b"\xff", b'{"scalars": {}, "bytes": 7, "kind": ["x\\u001b[2K"], "at": {}}']
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "receipts.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b" / "receipts.jsonl").mkdir()
    with (tmp_path / "c" / "receipts.jsonl").open("wb") as file:
        file.truncate(2**40)
    found = read_receipts(tmp_path)
    kinds = {run: [row["kind"] for row in rows] for run, rows in found.items()}
    assert kinds == {
        "a": ["unreadable"] * 8 + [["x\x1b[2K"]],
        "b": ["unreadable"],
        "c": ["unreadable"],
        "r": ["query"],
    }
    JsonFile(str(tmp_path / "out.json")).write(found)  # NaN was an error of ours there
    told = summary(found)
    assert "1 x query" in told
    assert "no receipt of any version" in told
    assert "\x1b" not in told


def test_a_chain_that_was_let_alone_is_sound(tmp_path: Path, kits: Path) -> None:
    told = filled(tmp_path, kits)
    assert wrong(tmp_path, kits) == []
    assert list(hashes_of(tmp_path)) == told
    lines = [json.loads(t) for t in (tmp_path / "receipts.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["before"] for line in lines] == [FIRST, *told[:-1]]
    assert (tmp_path / "receipts.jsonl").stat().st_mode & 0o77 == 0
    other = public_key(kits / "miccai" / "node.pub")
    assert len(verify(tmp_path, other)) == 5, "another site's key"


def test_lines_without_a_signature_are_told(tmp_path: Path, kits: Path) -> None:
    filled(tmp_path, kits, 1)
    write_receipt(Chain(tmp_path), "run", "train", HEADER, METRICS, {})
    assert wrong(tmp_path, kits) == ["line 2 has no signature"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.sampled_from(["changed", "removed", "swapped", "doubled", "cut"]))
def test_whatever_is_done_to_a_line_is_found(
    sound: tuple[list[str], Path], at: int, what: str
) -> None:
    lines, kits = list(sound[0]), sound[1]
    if what == "changed":
        lines[at] = lines[at].replace('"round":', '"round":1')
    elif what == "removed" and at < 4:
        del lines[at]
    elif what == "swapped" and at < 4:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    elif what == "doubled":
        lines.insert(at, lines[at])
    elif what == "cut":
        lines[at] = lines[at][:-3]
    else:
        return
    state = kits / f"state-{what}-{at}"
    state.mkdir(exist_ok=True)
    (state / "receipts.jsonl").write_text("\n".join(lines) + "\n")
    assert wrong(state, kits), (what, at)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, kits: Path) -> tuple[list[str], Path]:
    state = tmp_path_factory.mktemp("sound")
    filled(state, kits)
    return (state / "receipts.jsonl").read_text().splitlines(), kits


def test_a_history_written_anew_without_the_key_is_found(tmp_path: Path, kits: Path) -> None:
    filled(tmp_path, kits, 3)
    (tmp_path / "receipts.jsonl").unlink()
    for i in range(2):
        write_receipt(
            Chain(tmp_path, kits / "miccai" / "node.key"), "run-1", "train",
            HEADER | {"round": i}, METRICS, {},
        )  # fmt: skip
    assert len(wrong(tmp_path, kits)) == 2


@pytest.mark.parametrize("length", [1, 40, 300])
def test_a_torn_last_line_is_set_aside_and_said(tmp_path: Path, kits: Path, length: int) -> None:
    filled(tmp_path, kits, 3)
    path = tmp_path / "receipts.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:length])
    assert "has no end" in " ".join(wrong(tmp_path, kits))
    filled(tmp_path, kits, 1)
    assert wrong(tmp_path, kits) == []
    kinds = [json.loads(t)["kind"] for t in path.read_text().splitlines()]
    assert kinds == ["train", "train", "repaired", "train"]
    assert (tmp_path / "receipts.torn").read_bytes() == lines[2][:length] + b"\n"
    assert "left unfinished" in summary(read_receipts(tmp_path))


def test_a_torn_first_line_too(tmp_path: Path, kits: Path) -> None:
    (tmp_path / "receipts.jsonl").write_bytes(b'{"n":1,')
    filled(tmp_path, kits, 1)
    assert wrong(tmp_path, kits) == []


def test_a_long_line_is_followed(tmp_path: Path, kits: Path) -> None:
    many = {f"body.{i}": torch.zeros(1) for i in range(500)}
    for _ in range(2):
        write_receipt(
            Chain(tmp_path, kits / "nyu" / "node.key"), "r", "train", HEADER, METRICS, many
        )
    assert wrong(tmp_path, kits) == []


def _writer(state: Path, key: Path) -> None:
    for i in range(10):
        write_receipt(Chain(state, key), "r", "train", HEADER | {"round": i}, {}, {})


def test_two_writers_keep_one_chain(tmp_path: Path, kits: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (tmp_path, kits / "nyu" / "node.key")
    both = [spawn.Process(target=_writer, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [p.exitcode for p in both] == [0, 0]
    assert len(hashes_of(tmp_path)) == 20
    assert wrong(tmp_path, kits) == []


def mark(kits: Path, receipt: str, site: str = "nyu") -> Countersignature:
    folder = kits / "server"
    keys = (folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes()
    return countersign(*keys, site, receipt)


def test_what_the_server_has_seen_cannot_be_cut_off(tmp_path: Path, kits: Path) -> None:
    told, authority = filled(tmp_path, kits), (kits / "nyu" / "ca.crt").read_bytes()
    assert note(tmp_path, "nyu", authority, Countersignature("", "", "")) == ""
    assert note(tmp_path, "nyu", authority, mark(kits, told[2])) == ""
    assert note(tmp_path, "nyu", authority, mark(kits, told[2])) == "", "twice is one"
    assert len(read(tmp_path)) == 1
    for number in (1, 2, 1, 2, 1):
        assert note(tmp_path, "nyu", authority, mark(kits, told[number])) == ""
    assert len(read(tmp_path)) == 2, "two in turn do not make the file grow"
    assert missing(tmp_path, "nyu", authority) == ([], 3)
    path = tmp_path / "receipts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert missing(tmp_path, "nyu", authority) == ([], 3), "what was not seen yet may be lost"
    path.write_bytes(b"".join(lines[:2]))
    assert wrong(tmp_path, kits) == [], "the chain alone cannot tell"
    (found,) = missing(tmp_path, "nyu", authority)[0]
    assert "cut off" in found
    assert "not in this site's file" in note(tmp_path, "nyu", authority, mark(kits, told[4]))


def test_nobody_else_countersigns(tmp_path: Path, kits: Path) -> None:
    authority = (kits / "nyu" / "ca.crt").read_bytes()
    sound = mark(kits, "a" * 64)
    assert genuine(sound, "nyu", authority)
    assert not genuine(sound, "miccai", authority), "made for another site"
    forged: list[dict[str, Any]] = [
        {"receipt": "b" * 64},
        {"receipt": "x"},
        {"signature": "00"},
        {"signature": "zz"},
        {"certificate": "none"},
        {"certificate": "\u00e9"},
        {"certificate": authority.decode()},
        {"certificate": "a" * 10_000},
    ]
    for change in forged:
        values = {**sound.__dict__, **change}
        assert not genuine(Countersignature(**values), "nyu", authority), change
    other = tmp_path / "other"
    provision(Federation("hn", "x", 1, 2, ("nyu",), 30), other)
    assert not genuine(mark(other, "a" * 64), "nyu", authority), "another authority"
    said = note(tmp_path, "nyu", authority, mark(other, "a" * 64))
    assert "no server of this federation" in said
    assert read(tmp_path) == []
    assert isinstance(public_key(kits / "nyu" / "node.pub"), ec.EllipticCurvePublicKey)


def issued(usage: ObjectIdentifier, padding: str = "") -> tuple[Countersignature, str, bytes]:
    """What `genuine` takes; the certificate is for this usage."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in ("ca", "one")]
    made = []
    for key, name in zip(keys, names, strict=True):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), len(made) + 1)
        now = datetime.now(UTC)
        builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
        if made:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA384()).public_bytes(Encoding.PEM))
    pem = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return countersign(pem, padding.encode() + made[1], "nyu", "a" * 64), "nyu", made[0]


def test_a_certificate_that_is_no_servers_or_too_long_signs_nothing() -> None:
    assert genuine(*issued(ExtendedKeyUsageOID.SERVER_AUTH))
    assert not genuine(*issued(ExtendedKeyUsageOID.CLIENT_AUTH))
    assert genuine(*issued(ExtendedKeyUsageOID.SERVER_AUTH, "x\n" * 50))
    assert not genuine(*issued(ExtendedKeyUsageOID.SERVER_AUTH, "x\n" * 5000))


def test_the_command_says_whether_they_are_all_there(
    tmp_path: Path, kits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, site = tmp_path / "state", tmp_path / "nyu.yaml"
    site.write_text(f"name: nyu\nroot: {tmp_path}\ncache: {tmp_path}/cache\nstate: {state}\n")
    told = filled(state, kits, 3)
    authority = (kits / "nyu" / "ca.crt").read_bytes()
    note(state, "nyu", authority, mark(kits, told[-1]))
    command = ["receipts", str(kits / "nyu"), "--site", str(site)]
    assert main([*command, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "3 receipts in the chain, countersigned by the server up to number 3" in said
    path = state / "receipts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert main(command) == 0
    assert main([*command, "--verify"]) == 1
    assert "wrong: receipt" in capsys.readouterr().out


@pytest.mark.parametrize("trap", TRAPS)
def test_a_pipe_or_device_in_a_runs_folder_is_one_unreadable_line(
    tmp_path: Path, trap: Callable[[Path], None]
) -> None:
    write_receipt(Chain(tmp_path), "r", "query", {"code": "OK"}, {}, {})
    (tmp_path / "a").mkdir()
    trap(tmp_path / "a" / "receipts.jsonl")
    with within():
        found = read_receipts(tmp_path)
    assert {run: [row["kind"] for row in rows] for run, rows in found.items()} == {
        "a": ["unreadable"],
        "r": ["query"],
    }


def test_many_lines_in_a_runs_folder_are_counted_and_hide_no_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "MOST_OLD", 1080)
    line = json.dumps({"kind": "train", "scalars": {}})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "receipts.jsonl").write_text("0\n" * 1000 + f"{line}\n" * 200)
    write_receipt(Chain(tmp_path), "r", "query", {"code": "OK"}, {}, {})
    found = read_receipts(tmp_path)
    kinds = [row["kind"] for row in found["a"]]
    assert kinds == ["unreadable"] * 20 + ["train"] * 80
    lines = sum(row["lines"] for row in read_receipts(tmp_path)["a"] if "lines" in row)
    assert f"{lines} x unreadable" in summary(read_receipts(tmp_path))
    assert lines > 20
    assert sum(row.get("lines", 0) for row in found["a"]) == 1000 + 120
    assert [row["kind"] for row in found["r"]] == ["query"]
    monkeypatch.setattr(receipts, "OLD_BYTES", 100)
    assert [row["kind"] for row in read_receipts(tmp_path)["a"]] == ["unreadable"]


def test_a_chain_broken_in_many_places_is_said_in_bounded_words(
    tmp_path: Path, kits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "LONGEST_LINE", 5000)
    filled(tmp_path, kits, 2)
    path = tmp_path / "receipts.jsonl"
    sound_lines = path.read_bytes()
    path.write_bytes(sound_lines + b"0\n" * 5000)
    said = wrong(tmp_path, kits)
    assert len(said) == 101
    assert said[0] == "line 3 is no receipt: torn, or changed"
    assert said[-1] == "and 4900 more lines are not as they were written"
    path.write_bytes(b"0\n" * 5000 + sound_lines + b"{")
    assert "has no end" in wrong(tmp_path, kits)[-1]
    path.write_bytes(sound_lines + b"[" * 20_000)
    assert "line 3 is no receipt: torn, or changed" in wrong(tmp_path, kits)
    path.write_bytes(sound_lines)
    assert wrong(tmp_path, kits) == []
