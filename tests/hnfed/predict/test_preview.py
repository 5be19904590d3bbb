"""The page to look at contours: no face, the right slices, by keyboard, without a network."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from core.archives.roi import BODY_HU
from core.data.geometry import Geometry
from hnfed.predict import preview as previews
from hnfed.predict.contours import Contours
from hnfed.predict.inference import Doubt
from hnfed.predict.preview import AIR_HU, BONE_HU, CODED_HU, CODES, preview, scan_of, without_face
from simulations.phantom.cases import SIGNATURES
from simulations.phantom.scan import make_case
from tests.browser import needs_browser, opened, overflow, violations

SLICE_MM = 5.0


@pytest.fixture(scope="module")
def head() -> tuple[npt.NDArray[np.int16], Contours]:
    """A phantom's CT, and its own organs as if a network had drawn them."""
    case = make_case(SIGNATURES["nyu"], np.random.default_rng(3), (5.0, 4.0, 4.0))
    labels = np.zeros(case.image.shape, np.uint8)
    for value, mask in enumerate(case.masks.values(), start=1):
        labels[mask > 0] = value
    geometry = Geometry(labels.shape, case.spacing_mm, case.origin_mm)  # type: ignore[arg-type]
    return case.image, Contours("canary", labels, list(case.masks), geometry, "model")


def doubts(drawn: Contours, organ: str, *levels: int) -> list[Doubt]:
    """Uncertain in the given slices of the CT's grid."""
    geometry = drawn.geometry
    places = [geometry.origin_mm[2] + k * geometry.spacing_mm[0] for k in levels]
    return [Doubt(organ, z, 0.5) for z in places]


def made(head: tuple[npt.NDArray[np.int16], Contours], **changes: Any) -> str:
    image, drawn = head
    values = {"doubts": (), "with_face": False} | changes
    return preview(image, drawn, values["doubts"], doubt_mm=SLICE_MM, with_face=values["with_face"])


def block(text: str, name: str) -> str:
    found = re.search(rf'<script type="[^"]*" id="{name}">(.*?)</script>', text, re.S)
    assert found is not None
    return found[1]


def facts(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(block(text, "facts"))
    return value


def voxels(text: str, name: str = "voxels") -> npt.NDArray[np.uint8]:
    data = gzip.decompress(base64.b64decode(block(text, name)))
    return np.frombuffer(data, np.uint8).reshape(facts(text)["size"])


def test_the_face_is_masked_and_the_organs_are_not(
    head: tuple[npt.NDArray[np.int16], Contours],
) -> None:
    image, drawn = head
    shown = without_face(scan_of(image, drawn))
    organs = drawn.labels > 0
    assert np.array_equal(shown[organs], image[organs])
    assert np.array_equal(shown[image >= BONE_HU], image[image >= BONE_HU])
    soft = (shown > BODY_HU) & (shown < BONE_HU) & ~organs
    front = np.argwhere(organs)[:, 1].min()
    assert not soft[:, :front].any()
    assert soft.any()  # round the organs
    body = image > BODY_HU
    first = np.where(body.any(axis=1), body.argmax(axis=1), body.shape[1])[:, None]
    depth = np.arange(image.shape[1])[None, :, None] - first
    skin = (depth >= 0) & (depth * drawn.geometry.spacing_mm[1] < previews.SKIN_MM / 2)
    assert skin.sum() > 1000
    assert not (soft & skin).any()


def test_without_an_organ_no_soft_tissue_is_left(
    head: tuple[npt.NDArray[np.int16], Contours],
) -> None:
    image, drawn = head
    empty = replace(drawn, labels=np.zeros_like(drawn.labels))
    shown = without_face(scan_of(image, empty))
    assert set(np.unique(shown[shown < BONE_HU])) == {AIR_HU}


def test_the_page_holds_what_it_shows(head: tuple[npt.NDArray[np.int16], Contours]) -> None:
    image, drawn = head
    text = made(head)
    masked = without_face(scan_of(image, drawn))
    hu = np.interp(voxels(text), CODES, CODED_HU)
    soft = (masked > -200) & (masked < 200)
    assert np.abs(hu - masked)[soft].max() <= 1
    assert np.abs(hu - np.clip(masked, *CODED_HU[:: len(CODED_HU) - 1])).max() <= 42
    assert np.array_equal(voxels(text, "contours"), drawn.labels)
    told = facts(text)
    assert [o["name"] for o in told["organs"]] == list(drawn.organs)
    mandible = next(o for o in told["organs"] if o["name"] == "Bone_Mandible")
    count = (drawn.labels == drawn.organs.index("Bone_Mandible") + 1).sum()
    assert mandible["ml"] == pytest.approx(count * drawn.geometry.voxel_ml(), abs=0.01)
    face = np.interp(voxels(made(head, with_face=True)), CODES, CODED_HU)
    assert (face > BODY_HU).sum() > 1.5 * (hu > BODY_HU).sum()


def test_it_asks_for_nothing_and_runs_its_own_script_alone(
    head: tuple[npt.NDArray[np.int16], Contours],
) -> None:
    text = made((head[0], replace(head[1], doubt="</script><script>alert(1)</script>")))
    assert "default-src 'none'" in text
    assert "script-src 'sha256-" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "alert(1)</script>" not in text
    assert text.count("Not for clinical use") == 1


@pytest.mark.parametrize("flip", [False, True])
def test_uncertain_slices_are_those_of_the_ct(
    head: tuple[npt.NDArray[np.int16], Contours], flip: bool
) -> None:
    image, drawn = head
    value = drawn.organs.index("Parotid_L") + 1
    level = int(np.flatnonzero((drawn.labels == value).any(axis=(1, 2)))[2])
    told = doubts(drawn, "Parotid_L", level)
    if flip:  # the same patient, stored from superior to inferior
        geometry = drawn.geometry
        top = geometry.origin_mm[2] + (geometry.size[0] - 1) * geometry.spacing_mm[0]
        turned = replace(
            geometry,
            origin_mm=(*geometry.origin_mm[:2], top),
            direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
        )
        image, drawn = image[::-1], replace(drawn, labels=drawn.labels[::-1], geometry=turned)
    found = facts(made((image, drawn), doubts=told))
    parotid = next(o for o in found["organs"] if o["name"] == "Parotid_L")
    assert parotid["uncertain"] == [[level, 0.5]]
    assert found["z_mm"][level] == pytest.approx(told[0].z_mm, abs=0.01)
    assert all(not o["uncertain"] for o in found["organs"] if o["name"] != "Parotid_L")


def test_a_large_ct_is_shown_with_fewer_voxels_and_says_so(
    head: tuple[npt.NDArray[np.int16], Contours], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(head)
    assert "fewer voxels" not in whole
    monkeypatch.setattr(previews, "MOST_VOXELS", head[0].size - 1)
    text = made(head)
    size = [head[0].shape[0] // 2, *head[0].shape[1:]]
    assert facts(text)["size"] == size  # few rows and columns: slices go
    assert "Shown with fewer voxels than the CT has" in text
    monkeypatch.setattr(previews, "MOST_VOXELS", 10**9)
    limit = len(block(whole, "voxels"))
    monkeypatch.setattr(previews, "MOST_BYTES", limit)
    text = made(head)
    assert len(block(text, "voxels")) < limit
    assert "Shown with fewer voxels" in text


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_by_keyboard_in_a_browser(
    tmp_path: Path, head: tuple[npt.NDArray[np.int16], Contours], width: int, scheme: str
) -> None:
    drawn = head[1]
    value = drawn.organs.index("Parotid_L") + 1
    level = int(np.flatnonzero((drawn.labels == value).any(axis=(1, 2)))[1])
    path = tmp_path / "c.preview.html"
    path.write_text(made(head, doubts=doubts(drawn, "Parotid_L", level)))
    with opened(path, width, scheme) as page:
        page.wait_for_selector("body[data-ready=yes]", timeout=20_000)
        assert violations(page) == []
        assert overflow(page) <= 0

        def read(name: str) -> int:
            return int(page.locator(f"#slice-{name}").input_value())

        def picture(name: str) -> str:
            data: str = page.evaluate(f"document.getElementById('view-{name}').toDataURL()")
            return data

        for name in ("axial", "coronal", "sagittal"):  # sliders by arrow keys
            before, seen = read(name), picture(name)
            page.locator(f"#slice-{name}").focus()
            page.keyboard.press("ArrowRight")
            assert read(name) == before + 1
            assert picture(name) != seen
        page.locator("#after").focus()  # to the uncertain slice
        page.keyboard.press("Enter")
        assert read("axial") == level
        assert page.locator("#unsure").inner_text().startswith("Uncertain in this slice: Parotid_L")
        told = page.locator("#slice-axial").get_attribute("aria-valuetext")
        assert f"slice {level + 1} of" in told
        assert "uncertain: Parotid_L (0.50)" in told
        seen = picture("axial")
        page.locator(f"#organ-{value - 1}").focus()  # the organ off
        page.keyboard.press("Space")
        assert picture("axial") != seen
        assert page.locator("#unsure").inner_text() == ""
        assert page.locator("#after").is_disabled()
        seen = picture("axial")
        page.locator("#preset").focus()  # another window
        page.keyboard.press("ArrowDown")
        assert page.locator("#width").input_value() == "80"
        assert picture("axial") != seen
        page.locator("#none").focus()
        page.keyboard.press("Enter")
        assert page.locator("input[id^=organ-]:checked").count() == 0
        order: list[str] = []  # everything is reached by the tab key
        page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        for _ in range(60):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id"))
        assert {"slice-axial", "slice-coronal", "slice-sagittal", "preset", "level", "zoom"} <= set(
            order
        )
