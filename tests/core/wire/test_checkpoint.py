"""Checkpoints: the pair on disk, crashes between its two halves, and what MODEL means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from core.plan.schema import Model, Preprocess
from core.wire import checkpoint
from tests.traps import TRAPS, within

META = {
    "organs": ["Brainstem"],
    "preprocess": asdict(Preprocess()),
    "model": asdict(Model()),
    "round": 3,
}


def _state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(8, 4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(8, generator=generator),
    }


def _save(folder: Path, seed: int = 0, **meta: object) -> Path:
    checkpoint.save(folder, "best", _state(seed), {**META, **meta})
    return folder / "best.safetensors"


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_round_trip_keeps_every_bit_and_the_description(tmp_path: Path) -> None:
    path = _save(tmp_path / "deep" / "er")
    state, meta = checkpoint.load(path)
    assert _equal(state, _state(0))
    assert meta["round"] == 3
    assert meta["schema"] == checkpoint.SCHEMA
    assert len(meta["sha256"]) == 64
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.json", "best.safetensors"]


def test_channels_last_weights_are_stored(tmp_path: Path) -> None:
    weight = torch.randn(8, 4, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    checkpoint.save(tmp_path, "last", {"weight": weight}, META)
    state, _ = checkpoint.load(tmp_path / "last.safetensors")
    assert torch.equal(state["weight"], weight)


def test_an_altered_json_that_waits_for_its_place_is_not_believed(tmp_path: Path) -> None:
    path = _save(tmp_path)
    edited = json.loads((tmp_path / "best.json").read_text()) | {"organs": ["Parotid_L"]}
    (tmp_path / ".best.json.next").write_text(json.dumps(edited))
    assert checkpoint.load(path)[1]["organs"] == ["Brainstem"]


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        checkpoint.load(path)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="remedy"):
        checkpoint.load(path)


def test_weights_that_are_no_safetensors_are_refused_even_with_the_right_hash(
    tmp_path: Path,
) -> None:
    path = _save(tmp_path)
    path.write_bytes(b"not a checkpoint")
    meta = json.loads((tmp_path / "best.json").read_text())
    meta["sha256"] = hashlib.sha256(b"not a checkpoint").hexdigest()
    (tmp_path / "best.json").write_text(json.dumps({**meta, "schema": 1}))
    with pytest.raises(UserError, match="not safetensors"):
        checkpoint.load(path)


@pytest.mark.parametrize("shape", [[1] * 65, [0, 2**63], [0, 2**40, 2**40], [-1], [0.5]])
def test_tensors_that_torch_cannot_hold_are_refused(tmp_path: Path, shape: list[float]) -> None:
    """A file with the right hash and 65 dimensions ended as an unexpected RuntimeError."""
    size = 0 if 0 in shape or -1 in shape else 4
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"conv.weight": entry}).encode()
    content = len(text).to_bytes(8, "little") + text + b"\0" * size
    path = _save(tmp_path)
    path.write_bytes(content)
    meta = json.loads((tmp_path / "best.json").read_text())
    meta["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "best.json").write_text(json.dumps({**meta, "schema": 1}))
    with pytest.raises(UserError, match="not safetensors"):
        checkpoint.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    spoilt = {"conv.weight": torch.tensor([1.0, value]).double().to(dtype)}
    checkpoint.save(tmp_path, "best", spoilt, META)
    with pytest.raises(UserError, match=r"conv\.weight is not finite"):
        checkpoint.load(tmp_path / "best.safetensors")


def test_tables_of_whole_numbers_in_older_files_are_left_out(tmp_path: Path) -> None:
    older = _state(0) | {"attn.index": torch.arange(4), "attn.mask": torch.ones(2) > 0}
    checkpoint.save(tmp_path, "best", older, META)
    assert _equal(checkpoint.load(tmp_path / "best.safetensors")[0], _state(0))


def test_a_json_that_waits_and_is_far_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path)
    waiting = tmp_path / ".best.json.next"
    (tmp_path / "best.json").rename(waiting)
    assert checkpoint.load(path)[1]["round"] == 3
    monkeypatch.setattr(checkpoint, "META_BYTES", 100)
    with pytest.raises(UserError, match=r"best\.json is missing"):
        checkpoint.load(path)


@pytest.mark.parametrize("missing", ["best.json", "best.safetensors"])
def test_half_a_pair_is_an_error_that_names_the_file(tmp_path: Path, missing: str) -> None:
    path = _save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=missing.replace(".", r"\.")):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00\x01"])
def test_broken_json_is_a_user_error(tmp_path: Path, text: str) -> None:
    path = _save(tmp_path)
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(UserError):
        checkpoint.load(path)


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path)
    meta = json.loads((tmp_path / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps({**meta, "schema": 3}))
    with pytest.raises(UserError, match="schema 3"):
        checkpoint.load(path)


def test_an_edited_json_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path)
    meta = json.loads((tmp_path / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps({**meta, "round": 4}))
    with pytest.raises(UserError, match="meta_sha256"):
        checkpoint.load(path)


def test_infinite_score_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _save(tmp_path, score=float("inf"))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_a_crash_at_any_point_of_replacement_leaves_one_whole_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: int
) -> None:
    path = _save(tmp_path, seed=1)
    done = 0
    replace = Path.replace

    def crashing(self: Path, target: Path) -> Path:
        nonlocal done
        if done == replaced:
            raise KeyboardInterrupt
        done += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing)
        if replaced < 2:
            with pytest.raises(KeyboardInterrupt):
                _save(tmp_path, seed=2, round=4)
        else:
            _save(tmp_path, seed=2, round=4)
    state, meta = checkpoint.load(path)
    expected = (1, 3) if replaced == 0 else (2, 4)
    assert _equal(state, _state(expected[0]))
    assert meta["round"] == expected[1]

    with monkeypatch.context() as patch:  # a second crash, before anything new is in place
        patch.setattr(checkpoint, "write_flushed", lambda *_: (_ for _ in ()).throw(OSError(28)))
        with pytest.raises(OSError, match="28"):
            _save(tmp_path, seed=5)
    assert checkpoint.load(path)[1]["round"] == expected[1]
    _save(tmp_path, seed=3, round=5)
    assert _equal(checkpoint.load(path)[0], _state(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "best.safetensors"]


def test_description_is_required(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="organs, model"):
        checkpoint.require_described({"preprocess": {}}, tmp_path)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["best.json", "best.safetensors"])
def test_a_pipe_or_device_is_no_checkpoint(
    tmp_path: Path, trap: Callable[[Path], None], name: str
) -> None:
    path = _save(tmp_path)
    trap(tmp_path / name)
    with within(), pytest.raises(UserError, match="no plain file"):
        checkpoint.load(path)
    if name == "best.json":
        with within(), pytest.raises(UserError, match="no plain file"):
            checkpoint.load_meta(path)


@pytest.mark.parametrize("trap", TRAPS)
def test_what_waits_for_its_place_is_a_plain_file(
    tmp_path: Path, trap: Callable[[Path], None]
) -> None:
    path = _save(tmp_path)
    trap(tmp_path / ".best.json.next")
    with within():
        assert checkpoint.load(path)[1] == checkpoint.load_meta(path)


def test_weights_beyond_any_network_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path)
    monkeypatch.setattr(checkpoint, "WEIGHT_BYTES", 10)
    with pytest.raises(UserError, match="more than 10 bytes"):
        checkpoint.load(path)
