"""The site file: what a site says of itself, checked, and the secret that it keeps."""

from __future__ import annotations

import contextlib
import csv
import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data.quota import GB
from core.data.site import COUNT, REFUSE, Site, Source
from core.errors import UserError, suggestion
from core.files import plain_row, private_folder, require_private
from core.identifiers import run_id, site_name
from core.plan.load import read_yaml
from core.plan.ranges import SPLIT, number_of
from core.plan.schema import SPLITS
from core.training.ranks import numbers_in
from hnfed.guard.kit import Kit
from hnfed.guard.proxy import NONE, REMEDY, has_password, require_proxy, shown

MAX_PATH = 1000
FACES, OVERLAYS = "preview_faces", "overlays"
DRAWN = 3  # test cases of each organ: the worst, the median and the best
CACHE_GB, BASE_GB = 200.0, 10.0  # 200 GB hold some 10,000 cases


def site_from_file(path: Path, run: str, *, new: bool = True) -> Site:
    """The site of a site file (docs/deployment.md).

    Args:
        path: of the site file.
        run: id of the run whose folder of the state is meant.
        new: whether a state folder and its secret are made where there are none.

    Raises:
        UserError: no such file, no YAML, an unknown key, a missing or unusable value, a cache or
            state that other accounts can open, or no state that may not be made.
    """
    known = (
        "name", "format", "root", "aliases", "structure_set", "split", "device", "cache", "state",
        "proxy", "cache_gb", "base_gb", "absent", OVERLAYS, FACES,
    )  # fmt: skip
    values = read_yaml(path)
    for key in values:
        if key not in known:
            remedy = f"{suggestion(str(key), known)}use one of {', '.join(known)}"
            raise UserError(f"site file: {key}", values[key], remedy, problem="unknown key")
    for key in ("name", "root", "cache", "state"):
        if not isinstance(values.get(key), str) or not values[key].strip("\0"):
            raise UserError(f"site file: {key}", values.get(key, "(missing)"), "give it a value")
    for key in ("root", "cache", "state"):
        if "\0" in values[key] or len(values[key]) > MAX_PATH:
            raise UserError(f"site file: {key}", repr(values[key]), "give the path of a folder")
    name = site_name(values["name"], "site file: name")
    split = values.get("split") or {"train": 0.64, "val": 0.16, "test": 0.2, "seed": 0}
    if not isinstance(split, dict) or set(split) - {"file", *SPLIT}:
        remedy = "give train, val, test and seed as numbers, or file: splits.csv"
        raise UserError("site file: split", split, remedy)
    for key in SPLIT:
        if key in split:
            number_of("site file", f"split.{key}", split[key])
    proxy = _proxy(values.get("proxy"), path)
    explicit = _split_file(path.parent / str(split["file"])) if "file" in split else {}
    for key in ("format", "structure_set", "device"):
        if not isinstance(values.get(key) or "", str):
            raise UserError(f"site file: {key}", values[key], "give a text, such as auto")
    device = str(values.get("device") or "auto")
    numbers_in(device, "site file: device")
    absent = values.get("absent", REFUSE)
    if absent not in (REFUSE, COUNT):
        raise UserError("site file: absent", absent, f"write {REFUSE} or {COUNT}")
    _faces(values)
    state = Path(str(values["state"]))
    for key in ("cache", "state"):
        if Path(str(values[key])).is_dir():
            require_private(f"site file: {key}", Path(str(values[key])))
    return Site(
        name=name,
        sources=(
            Source(
                root=str(values["root"]),
                label=name,
                format=str(values.get("format", "auto")),
                aliases=_aliases(values.get("aliases") or {}),
                structure_set=str(values.get("structure_set") or ""),
                split={} if explicit else dict(split),
                splits=explicit,
                absent=absent,
            ),
        ),
        device=device,
        cache=Path(str(values["cache"])),
        run_folder=state / run_id(run),
        base_folder=state / "base",
        secret=_secret(state, new=new),
        proxy=proxy,
        overlays=int(number_of("site file", OVERLAYS, values.get(OVERLAYS, DRAWN))),
        cache_bytes=_quota(values, "cache_gb", CACHE_GB),
        base_bytes=_quota(values, "base_gb", BASE_GB),
    )


def _quota(values: Mapping[str, Any], key: str, default: float) -> int:
    """Bytes of a limit in gigabytes; a site always has one."""
    return int(number_of("site file", key, values.get(key, default)) * GB)


def require_own_kit(site: Site, kit: Kit) -> None:
    """Requires that site file and kit name the same site.

    Raises:
        UserError: they do not.
    """
    if site.name != kit.role:
        remedy = f"write name: {kit.role} into the site file, or take the other kit"
        raise UserError("site file: name", site.name, remedy, problem=f"the kit is {kit.role}'s")


def require_faces_allowed(path: Path) -> None:
    """Requires that a site file lets previews of its CTs show faces (D20).

    Raises:
        UserError: no such file, no YAML, or it does not say ``preview_faces: true``.
    """
    if not _faces(read_yaml(path)):
        remedy = f"leave --with-face out; whoever answers for the site may write {FACES}: true"
        problem = "the site does not let previews show faces"
        raise UserError(f"site file: {FACES}", "false", remedy, problem=problem)


def _faces(values: Mapping[str, Any]) -> bool:
    """The site file's ``preview_faces``; false where it says nothing."""
    value = values.get(FACES, False)
    if not isinstance(value, bool):
        raise UserError(f"site file: {FACES}", value, "write true or false")
    return value


def _proxy(value: object, path: Path) -> str:
    """The site file's `proxy`; one with a password wants a file that only its owner can read."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError("site file: proxy", type(value).__name__, REMEDY)
    if value == NONE:
        return NONE
    require_proxy(value, "site file: proxy")
    if has_password(value) and path.stat().st_mode & 0o077:
        problem = "a password stands in it, and others can read the file"
        raise UserError(
            "site file: proxy",
            shown(value),
            f"run: chmod 600 {shlex.quote(str(path))}",
            problem=problem,
        )
    return value


def _aliases(values: object) -> dict[str, list[str]]:
    remedy = "write Organ: [spelling, spelling]"
    if not isinstance(values, dict):
        raise UserError("site file: aliases", values, remedy)
    for organ, names in values.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"site file: aliases.{organ}", names, remedy)
    return {str(organ): list(names) for organ, names in values.items()}


def _split_file(path: Path) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {split: [] for split in SPLITS}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [c for c in ("case", "split") if c not in (reader.fieldnames or ())]
            if absent:
                raise ValueError(f"no column {' or '.join(absent)}, separated by commas")
            for row in map(plain_row, reader):
                if row.get("split") not in groups:
                    raise ValueError(f"line {reader.line_num}: split = {row.get('split')!r}")
                groups[row["split"]].append(row["case"])
    except UnicodeDecodeError:
        problem = "it is not in UTF-8"
    except (ValueError, csv.Error) as error:
        problem = str(error)[:200]
    except OSError as error:
        problem = str(error.strerror)
    else:
        return groups
    remedy = "give a CSV with columns case,split (train, val or test)"
    raise UserError("split.file", path, remedy, problem=problem)


def _secret(state: Path, *, new: bool) -> bytes:
    """The site's secret: made once, complete or not there, whoever else makes it meanwhile."""
    path = state / "secret"
    if not new and not path.is_file():
        remedy = "name the site file of the client that worked at this site"
        raise UserError("site file: state", state, remedy, problem="no client has worked with it")
    try:
        if not path.is_file():
            private_folder(state)
            part = state / f".secret.{secrets.token_hex(4)}"
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        return path.read_bytes()
    except OSError as error:
        remedy = "give a folder that can be written and is kept"
        raise UserError("site file: state", state, remedy, problem=str(error)[:200]) from None
