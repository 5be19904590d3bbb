from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from hnfed.predict.model_files import resolve_model
from tests.core.wire.test_checkpoint import _save as save_one


def _run(root: Path) -> Path:
    save_one(root / "checkpoints" / "warmup")
    save_one(root / "checkpoints" / "pretrain")
    for site in ("nyu", "miccai"):
        save_one(root / "sites" / site / "personalise")
    return root


def test_run_folder_means_the_last_phase(tmp_path: Path) -> None:
    root = tmp_path
    save_one(root / "checkpoints" / "zz-first")
    save_one(root / "checkpoints" / "aa-second")
    assert resolve_model(root).parent.name == "aa-second"
    assert resolve_model(root, "zz-first").parent.name == "zz-first"


def test_personal_phase_of_several_sites_asks_for_the_site(tmp_path: Path) -> None:
    root = _run(tmp_path)
    with pytest.raises(UserError, match=r"--site.*\n?.*miccai, nyu"):
        resolve_model(root)
    found = resolve_model(root, site="nyu")
    assert found == root / "sites" / "nyu" / "personalise" / "best.safetensors"
    assert resolve_model(root, "pretrain", "nyu").parent.parent.name == "checkpoints"
    with pytest.raises(UserError, match="elsewhere"):
        resolve_model(root, site="elsewhere")


def test_one_site_with_weights_needs_no_choice(tmp_path: Path) -> None:
    save_one(tmp_path / "checkpoints" / "pretrain")
    save_one(tmp_path / "sites" / "nyu" / "personalise")
    assert "nyu" in resolve_model(tmp_path).parts


def test_folders_and_files_of_a_run_are_models_too(tmp_path: Path) -> None:
    root = _run(tmp_path)
    path = root / "checkpoints" / "pretrain" / "best.safetensors"
    assert resolve_model(path) == path
    assert resolve_model(path.with_suffix(".json")) == path
    assert resolve_model(path.parent) == path
    site = root / "sites" / "nyu"
    assert resolve_model(site) == site / "personalise" / "best.safetensors"


@pytest.mark.parametrize("kind", ["missing", "empty", "phase", "file"])
def test_what_is_no_model_is_a_user_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "weights.pt").write_text("")
    _run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    path = {"phase": "run", "file": "weights.pt"}.get(kind, kind)
    with pytest.raises(UserError, match="remedy"):
        resolve_model(tmp_path / path, "nope" if kind == "phase" else None)


@pytest.mark.parametrize("name", ["best.safetensors", "best.json"])
@pytest.mark.parametrize(
    "place", ["checkpoints/pretrain", "sites/nyu/personalise", "personalise", "."]
)
def test_weights_of_another_folder_are_none_of_this_run(
    tmp_path: Path, place: str, name: str
) -> None:
    """Personal weights of whoever exports it would go along with what is handed on."""
    run, other = tmp_path / "run", tmp_path / "other"
    save_one(run / place)
    assert resolve_model(run).parent == run / place
    (run / place / name).rename(other)
    (run / place / name).symlink_to(other)
    with pytest.raises(UserError, match="no link out of it counts"):
        resolve_model(run)
