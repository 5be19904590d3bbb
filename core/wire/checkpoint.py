"""Checkpoints: weights as safetensors beside readable JSON.

A checkpoint is a pair ``STEM.safetensors`` and ``STEM.json``. The JSON holds the SHA-256 of the
weights and of its own content, so a torn or altered pair is never loaded. Nothing here unpickles
anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from core.errors import UserError
from core.files import flush_folder, read_bounded, write_flushed
from core.text import shown
from core.wire.described import input_of, require_sound, require_tensors
from core.wire.state import packed

META_BYTES = 32_000_000  # of the JSON; what hnfed writes has some thousand
WEIGHT_BYTES = 2**33
SCHEMA = 2  # 1 had no checksum of the JSON itself
RESTORE = "restore the file from the run folder"
NO_TENSORS = SafetensorError, ValueError, LookupError, ArithmeticError, RuntimeError, TypeError


def save(
    folder: Path, stem: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a checkpoint; a crash at any moment leaves the old pair or the new one.

    Both new files are complete and flushed before the first takes its place; the JSON goes last. In
    the moment between the two renames the new JSON waits under a fixed name, where `load` finds it.

    Args:
        folder: where ``stem.safetensors`` and ``stem.json`` go; made where missing.
        stem: name of the pair, such as ``best`` or ``last``.
        state: tensors by name, de-duplicated (no two may share memory); any device, any memory
            format.
        meta: anything that JSON can hold; ``schema``, ``sha256``, ``saved`` (UTC) and
            ``meta_sha256`` are added.

    Returns:
        The JSON's content as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = packed(state)
    written: dict[str, Any] = {
        **meta,
        "schema": SCHEMA,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "saved": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    written |= json.loads(json.dumps(written, allow_nan=False))
    written["meta_sha256"] = _digest(written)
    text = json.dumps(written, indent=2, sort_keys=True, allow_nan=False) + "\n"
    weights_next = folder / f".{stem}.safetensors.next"
    meta_next = _next_meta(folder / f"{stem}.safetensors")
    _finish_interrupted(folder / f"{stem}.safetensors")
    write_flushed(weights_next, weights)
    write_flushed(meta_next, text)
    flush_folder(folder)
    weights_next.replace(folder / f"{stem}.safetensors")
    flush_folder(folder)
    meta_next.replace(folder / f"{stem}.json")
    flush_folder(folder)
    return written


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and verifies its SHA-256.

    Args:
        path: the ``.safetensors`` file (its ``.json`` stands beside it).

    Returns:
        The tensors by name, on the CPU, numbers of 16 bits as 32, and the JSON's content. Tensors
        of whole numbers are left out: older files hold a network's own tables.

    Raises:
        UserError: the pair is missing, torn, altered, not safetensors, or of a newer schema, or a
            weight is no finite number.
    """
    weights, sha256 = _read_weights(path)
    meta = _matching_meta(path, sha256)
    if meta is None:  # perhaps replaced between the two reads: look once more
        weights, sha256 = _read_weights(path)
        meta = _matching_meta(path, sha256)
    if meta is None:
        problem = f"SHA-256 {sha256[:12]}... of the weights is not the one in {path.stem}.json"
        remedy = "restore both files from the same run, or use last.safetensors"
        raise UserError("model", path, remedy, problem=problem)
    try:
        state = safetensors.torch.load(weights)
        known = {n: t for n, t in state.items() if t.is_floating_point()}
        spoilt = [n for n, t in known.items() if not bool(torch.isfinite(t.float()).all())]
    except NO_TENSORS as error:
        problem = f"not safetensors: {shown(error, 200)}"
        remedy = "name a checkpoint written by hnfed"
        raise UserError("model", path, remedy, problem=problem) from error
    require_tensors(state, str(path))
    if spoilt:
        remedy = "use other weights: these were spoilt before they were written"
        raise UserError("model", path, remedy, problem=f"{spoilt[0]} is not finite in float32")
    return {n: t.float() if t.element_size() < 4 else t for n, t in known.items()}, meta


def load_meta(path: Path) -> dict[str, Any]:
    """Reads only the JSON of a checkpoint (``path`` names the ``.safetensors``)."""
    meta_path = path.with_suffix(".json")
    try:
        meta = _json_of(meta_path)
    except FileNotFoundError as error:
        remedy = f"put {meta_path.name} beside the weights; both were written together"
        raise UserError("model", path, remedy, problem=f"{meta_path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("model", meta_path, RESTORE, problem=f"unreadable: {error}") from error
    if not isinstance(meta, dict):
        raise UserError("model", meta_path, RESTORE)
    schema = meta.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        remedy = "use the hnfed version that wrote it, or a newer one"
        problem = f"schema {schema!r}, this version reads up to {SCHEMA}"
        raise UserError("model", meta_path, remedy, problem=problem)
    if not _is_whole(meta):
        remedy = f"{RESTORE}; it is not to be edited"
        problem = "its content is not what was written (meta_sha256 differs)"
        raise UserError("model", meta_path, remedy, problem=problem)
    require_sound(meta, str(meta_path))
    return meta


def _json_of(path: Path) -> Any:
    """Raises OSError, ValueError or RecursionError where there is no JSON of a sensible size."""
    return json.loads(read_bounded(path, META_BYTES).decode("utf-8"))


def _is_whole(meta: Mapping[str, Any]) -> bool:
    """Whether the JSON's content is what was written; schema 1 could not tell."""
    return meta.get("schema") == 1 or meta.get("meta_sha256") == _digest(meta)


def _digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of the JSON's content without its own checksum."""
    content = {k: v for k, v in meta.items() if k != "meta_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_described(meta: Mapping[str, Any], path: Path) -> None:
    """Raises `UserError` unless the JSON says how to build and feed the network."""
    input_of(meta, str(path))


def _read_weights(path: Path) -> tuple[bytes, str]:
    try:
        weights = read_bounded(path, WEIGHT_BYTES)
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "strerror", error))
        remedy = "name an existing .safetensors checkpoint"
        raise UserError("model", path, remedy, problem=problem) from error
    return weights, hashlib.sha256(weights).hexdigest()


def _matching_meta(path: Path, sha256: str) -> dict[str, Any] | None:
    """The JSON that belongs to weights of this SHA-256: in its place, or still waiting for it."""
    waiting = _waiting_meta(path)
    if waiting.get("sha256") == sha256:
        return waiting
    meta = load_meta(path)
    return meta if meta.get("sha256") == sha256 else None


def _waiting_meta(path: Path) -> dict[str, Any]:
    try:
        meta = _json_of(_next_meta(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}  # a file cut short precedes the renames: it says nothing
    if not isinstance(meta, dict) or not _is_whole(meta):
        return {}
    require_sound(meta, str(_next_meta(path)))
    return meta


def _finish_interrupted(path: Path) -> None:
    """Puts a JSON that a crash left waiting into place; removes it if its weights never came."""
    waiting = _waiting_meta(path)
    if waiting and path.is_file() and waiting.get("sha256") == _read_weights(path)[1]:
        _next_meta(path).replace(path.with_suffix(".json"))
    else:
        _next_meta(path).unlink(missing_ok=True)


def _next_meta(path: Path) -> Path:
    return path.with_name(f".{path.stem}.json.next")
