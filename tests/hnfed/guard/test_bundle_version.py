"""Versions that cannot work together say so before anything is read of the plan."""

from __future__ import annotations

import io
import zipfile

import pytest

from core.provenance import hnfed_version
from core.wire.messages import WIRE
from hnfed.guard.bundle_version import OtherVersionError, require_same_wire
from hnfed.guard.unpack import BundleError
from tests.hnfed.guard.conftest import Hospital
from tests.hnfed.guard.test_node import bundle_of, ruled_by


def bundle(wire: int | None, version: str = "9.1.0") -> bytes:
    messages = "" if wire is None else f'X = 1\nWIRE = {wire}\nOK = "OK"\n'
    project = f'[project]\nname = "hnfed"\nversion = "{version}"\n'
    return bundle_of(**{"core/wire/messages.py": messages, "pyproject.toml": project})


def test_this_installations_own_bundle_fits(own_bundle: bytes) -> None:
    require_same_wire(own_bundle)


def test_another_version_with_the_same_form_fits() -> None:
    require_same_wire(bundle(WIRE))
    require_same_wire(bundle_of(**{"core/wire/messages.py": f"WIRE = {WIRE}\n"}))


@pytest.mark.parametrize(
    ("wire", "who"),
    [
        (WIRE + 1, "this site installs 9.1.0"),
        (WIRE - 1, f"the coordinator installs {hnfed_version()}"),
        (None, f"the coordinator installs {hnfed_version()}"),
    ],
)
def test_both_versions_and_who_is_behind_are_named(wire: int | None, who: str) -> None:
    with pytest.raises(OtherVersionError) as caught:
        require_same_wire(bundle(wire))
    text = str(caught.value)
    assert f"hnfed 9.1.0 (wire format {wire or 0})" in text
    assert f"this site {hnfed_version()} (wire format {WIRE})" in text
    assert who in text


def test_no_word_of_a_bundle_reaches_the_screen() -> None:
    with pytest.raises(OtherVersionError, match=r"hnfed \? "):
        require_same_wire(bundle(WIRE + 1, version="1.0; hnfed approve KIT --yes 00"))
    broken = {"core/wire/messages.py": "", "pyproject.toml": "\udcff[[[ = "}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in broken.items():
            file.writestr(name, text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OtherVersionError, match=r"hnfed \? "):
        require_same_wire(content.getvalue())
    with pytest.raises(BundleError):
        require_same_wire(b"no bundle")


def test_a_site_answers_with_a_code_and_says_why(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    ruled_by(hospital, bundle(WIRE + 1))
    hospital.wire.config["plan"] = '{"a key of later": 1}'
    assert hospital.ask("query").code == "E_CODE"
    assert "this site installs 9.1.0" in capsys.readouterr().out + hospital.log
