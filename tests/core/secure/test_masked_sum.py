from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.secure.masked_sum import (
    NUMBER_BITS,
    UPDATE_BITS,
    Segment,
    Words,
    context,
    fixed,
    masked,
    opened,
    seeds,
)

ABOUT = context({"run": "r"})


def keys(names: list[str]) -> dict[str, X25519PrivateKey]:
    return {n: X25519PrivateKey.generate() for n in names}


def sent(
    values: dict[str, np.ndarray[Any, Any]],
    segments: list[Segment],
    *,
    bits: int = UPDATE_BITS,
    width: int = 32,
    fewest: int = 3,
    about: bytes = ABOUT,
    private: dict[str, X25519PrivateKey] | None = None,
) -> dict[str, Words]:
    private = private or keys(list(values))
    publics = {n: k.public_key().public_bytes_raw() for n, k in private.items()}
    share = 1 if width == 32 else len(values)
    return {
        n: masked(
            fixed(v, bits, share, width),
            segments,
            n,
            seeds(private[n], n, publics, about, "x"),
            fewest,
        )
        for n, v in values.items()
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 10), st.integers(0, 2**32 - 1), st.data())
def test_the_sum_of_what_is_masked_is_the_sum(n: int, seed: int, data: st.DataObject) -> None:
    names = [f"s{i}" for i in range(n)]
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    groups = [frozenset(data.draw(st.sets(st.sampled_from(names)))) for _ in lengths]
    segments = [Segment(k, g) for k, g in zip(lengths, groups, strict=True)]
    random = np.random.default_rng(seed)
    values = {s: random.uniform(-8, 8, sum(lengths)) / n for s in names}
    out = sent(values, segments)
    total = opened(list(out.values()), UPDATE_BITS)
    at = 0
    for segment in segments:
        part = slice(at, at + segment.length)
        if len(segment.members) < 3:
            assert not total[part].any()
            assert not any(v[part].any() for v in out.values())
        else:
            exact = sum(np.rint(values[s][part] * 2**UPDATE_BITS) for s in segment.members)
            assert np.array_equal(total[part] * 2**UPDATE_BITS, exact)
            mean = sum(values[s][part] for s in segment.members)
            assert np.abs(total[part] - mean).max(initial=0.0) <= 1e-7
        at += segment.length


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=10))
def test_whole_numbers_are_summed_exactly(numbers: list[int]) -> None:
    names = [f"s{i}" for i in range(len(numbers))]
    values = {n: np.asarray([float(v)]) for n, v in zip(names, numbers, strict=True)}
    segment = Segment(1, frozenset(names))
    out = sent(values, [segment], bits=0, width=64)
    assert opened(list(out.values()), 0)[0] == sum(numbers)


@pytest.mark.parametrize("width", [32, 64])
def test_one_vector_and_every_sum_over_fewer_is_uniform(width: int) -> None:
    names = ["a", "b", "c", "d"]
    length = 200_000
    values = {n: np.full(length, 0.25) for n in names}
    out = sent(values, [Segment(length, frozenset(names))], width=width)
    for count in (1, 2, 3):
        for some in itertools.combinations(names, count):
            total = np.sum([out[n] for n in some], axis=0, dtype=out["a"].dtype)
            for shift in (0, width // 2, width - 8):
                byte = ((total >> total.dtype.type(shift)) & total.dtype.type(255)).astype(np.int64)
                found = stats.chisquare(np.bincount(byte, minlength=256))
                assert found.pvalue > 1e-6, (some, shift)
    whole = opened([out[n] for n in names], UPDATE_BITS)
    assert np.array_equal(whole, np.ones(length))


def test_masks_differ_by_exchange_by_label_and_by_pair() -> None:
    private = keys(["a", "b", "c"])
    publics = {n: k.public_key().public_bytes_raw() for n, k in private.items()}
    made = [
        seeds(private["a"], "a", publics, about, label)[peer]
        for about in (ABOUT, context({"run": "other"}))
        for label in ("weights", "numbers")
        for peer in ("b", "c")
    ]
    assert len(set(made)) == len(made)
    assert seeds(private["b"], "b", publics, ABOUT, "weights")["a"] == made[0]


def test_who_is_told_something_else_leaves_noise() -> None:
    names = ["a", "b", "c"]
    private, length = keys(names), 50_000
    values = {n: np.full(length, 0.1) for n in names}
    segments = [Segment(length, frozenset(names))]
    out = sent(values, segments, private=private)
    other = sent(values, segments, private=private, about=context({"run": "r", "longest": 0.0}))
    total = opened([out["a"], out["b"], other["c"]], UPDATE_BITS)
    assert np.abs(total - 0.3).mean() > 1


def test_sums_over_two_sets_of_sites_do_not_give_one_site() -> None:
    """What a set without a site leaves has other seeds: nothing cancels between the two."""
    names = ["a", "b", "c", "d"]
    private, length = keys(names), 100_000
    values = {n: np.full(length, 0.2) for n in names}
    whole = sent(values, [Segment(length, frozenset(names))], private=private)
    less = {n: values[n] for n in names[:3]}
    about = context({"run": "r", "peers": names[:3]})
    part = sent(less, [Segment(length, frozenset(names[:3]))], private=private, about=about)
    difference = np.sum([whole[n] - part[n] for n in names[:3]], axis=0, dtype=np.uint32)
    byte = (difference & 255).astype(np.int64)
    assert stats.chisquare(np.bincount(byte, minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("value", [17.0, -17.0, float("nan"), float("inf")])
def test_what_does_not_fit_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be masked"):
        fixed(np.asarray([value]), UPDATE_BITS, 1, 32)


def test_large_numbers_fit_as_many_sites_as_there_are() -> None:
    most = 2.0 ** (63 - NUMBER_BITS)
    fixed(np.asarray([most / 10 * 0.999]), NUMBER_BITS, 10)
    with pytest.raises(ValueError):
        fixed(np.asarray([most / 10]), NUMBER_BITS, 10)


def test_floats_count_to_the_last_bit() -> None:
    assert context({"a": [0.1]}) != context({"a": [float(np.nextafter(0.1, 1))]})
    with pytest.raises(ValueError):
        context({"a": float("nan")})
