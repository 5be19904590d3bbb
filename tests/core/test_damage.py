"""Damage on the disk: flipped bits, cut files, a disk that fails at its i-th call."""

from __future__ import annotations

import builtins
import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.wire.round_checkpoints import RoundStore


def state(seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {"encoder.w": torch.randn(20, 10, generator=made), "head.b": torch.arange(5.0)}


def meta(round_: int) -> dict[str, Any]:
    return {"round": round_, "progress": {"best": 0.5, "sites": ["nyu", "miccai"]}}


def whole(store: RoundStore, round_: int) -> bool:
    """Whether a round loads, and is what was written; what is neither fails the test."""
    try:
        found, about = store.get(round_)
    except UserError:
        return False
    assert all(torch.equal(found[n], t) for n, t in state(round_).items()), "loaded silently"
    assert {k: about[k] for k in meta(round_)} == meta(round_), "loaded silently"
    return True


def damaged(store: RoundStore, chance: random.Random) -> str:
    """Flips one bit of round 2, or cuts one of its files; says what."""
    suffix = chance.choice([".safetensors", ".json"])
    path = store.folder / f"round-00002{suffix}"
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.75:
        content[place] ^= 1 << chance.randrange(8)
        what = f"bit of byte {place} of {suffix}"
    else:
        del content[place:]
        what = f"{suffix} cut at {place}"
    path.write_bytes(content)
    return what


def harm(folder: Path, times: int) -> int:
    """Damages a round so often; returns how often that was noticed."""
    store, chance = RoundStore(folder), random.Random(times)
    for round_ in (1, 2):
        store.put(round_, state(round_), meta(round_))
    files = [folder / f"round-00002{s}" for s in (".safetensors", ".json")]
    good = [f.read_bytes() for f in files]
    noticed = 0
    for _ in range(times):
        damaged(store, chance)
        noticed += not whole(store, 2)
        assert whole(store, 1)
        for file, content in zip(files, good, strict=True):
            file.write_bytes(content)
    return noticed


def test_a_damaged_round_is_noticed(tmp_path: Path) -> None:
    assert harm(tmp_path, 100) >= 99  # a blank or an e of a number may change without any harm


@pytest.mark.chaos
def test_a_thousand_damages(tmp_path: Path) -> None:
    noticed = harm(tmp_path, 1000)
    print(f"1000 bit flips and cuts: {noticed} refused, {1000 - noticed} without effect, 0 loaded")
    assert noticed >= 990


@contextmanager
def failing(nth: int, code: int) -> Iterator[list[int]]:
    """The n-th call that writes, flushes, renames or opens for writing fails with `code`."""
    count = [0]

    def counted(real: Callable[..., Any], of: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if of(*args, **options):
                count[0] += 1
                if count[0] == nth:
                    raise OSError(code, os.strerror(code))
            return real(*args, **options)

        return call

    def always(*args: Any, **options: Any) -> bool:
        return True

    def writes(path: Any, mode: str = "r", *args: Any, **options: Any) -> bool:
        return "w" in mode or "a" in mode

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "open"), (os, "mkdir")):
            patch.setattr(owner, name, counted(getattr(owner, name), always))
        for name in ("replace", "unlink", "write_bytes"):
            patch.setattr(Path, name, counted(getattr(Path, name), always))
        patch.setattr(Path, "open", counted(Path.open, writes))
        patch.setattr(builtins, "open", counted(builtins.open, writes))
        yield count


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk broken"])
def test_a_writer_that_fails_at_any_call_leaves_the_last_good_round(
    tmp_path: Path, code: int
) -> None:
    failures = 0
    for nth in range(1, 100):
        store = RoundStore(tmp_path / str(nth))
        store.put(1, state(1), meta(1))
        with failing(nth, code) as calls:
            try:
                store.put(2, state(2), meta(2))
                store.prune({2, 1})
            except OSError:
                failures += 1
        last = store.rounds()[-1]
        assert whole(store, last) or (last == 2 and whole(store, 1)), nth
        store.put(2, state(2), meta(2))
        assert whole(store, 2), f"after a failure at call {nth} the next save works"
        if calls[0] < nth:
            break
    print(f"failed at each of {failures} calls; the last good round loads")
    assert failures >= 6


def test_a_file_over_the_limit_of_the_disk(tmp_path: Path) -> None:
    """A real short write: the process may write no file longer than some bytes."""
    store = RoundStore(tmp_path)
    store.put(1, state(1), meta(1))
    pid = os.fork()
    if pid == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        try:
            store.put(2, state(2), meta(2))
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert whole(store, 1)
    assert store.rounds() == [1]
