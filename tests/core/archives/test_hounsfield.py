from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.archives.hounsfield import clipped, refuse
from core.errors import CaseError

SIZE = (12, 40, 40)


def ct(seed: int = 0, *, border: int = 8) -> np.ndarray:
    """A body with a bone in air."""
    rng = np.random.default_rng(seed)
    image = np.full(SIZE, -1000.0)
    image[:, border:-border, border:-border] = 30
    image[:, 16:20, 16:20] = 1200
    return (image + rng.normal(0, 15, SIZE)).round().astype(np.int32)


def code(image: np.ndarray) -> str:
    try:
        refuse(image, Path("ct.nrrd"))
    except CaseError as error:
        return error.code
    return ""


@pytest.mark.parametrize("border", [2, 5, 8, 12])
def test_hounsfield_units_pass(border: int) -> None:
    assert code(ct(border=border)) == ""


def test_padding_and_a_body_without_air_pass() -> None:
    padded = ct()
    padded[:, :3] = -3024
    assert code(padded) == ""
    assert code(ct()[:, 9:-9, 9:-9]) == ""


@given(st.sampled_from([1024, 1000, -1024, -1000]), st.integers(0, 20), st.integers(3, 12))
def test_a_lost_intercept_is_found(offset: int, seed: int, border: int) -> None:
    assert code(ct(seed, border=border) + offset) == "E_HU_OFFSET"


@pytest.mark.parametrize("top", [0, 255, 1000, 4095])
def test_an_inverted_picture_is_found(top: int) -> None:
    assert code(top - ct()) == "E_HU_INVERTED"


def test_what_is_no_ct_at_all_is_refused() -> None:
    assert code(np.minimum(ct(), -990)) == "E_IMAGE_HU"
    assert code(ct() / 3000) == "E_IMAGE_HU"
    assert code(np.clip((ct() + 1024) / 12, 0, 255)) == "E_IMAGE_HU"


def test_a_window_that_cuts_bone_is_told() -> None:
    assert clipped(ct()) is None
    assert clipped(np.minimum(ct(), 300)) == 300
    without_bone = ct()
    without_bone[without_bone > 600] = 30
    assert clipped(without_bone) is None
