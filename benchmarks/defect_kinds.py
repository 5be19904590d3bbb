"""Kinds of defects of an archive, each planted in phantom cases with the code that must name it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.archives.images.volume import read_image, write_image
from core.data.geometry import Geometry

Array = npt.NDArray[Any]
Plant = Callable[[Path, list[Path]], None]
PAIRS = ("Parotid", "Submandibular", "OpticNerve")


@dataclass(frozen=True)
class Kind:
    """One kind of defect.

    Attributes:
        code: what `check` must say.
        plant: changes the archive (its root, its cases) in place.
        site: whose phantoms it is planted in.
        cases: how many of them the archive holds.
    """

    code: str
    plant: Plant
    site: str = "miccai"
    cases: int = 1


def _ct(case: Path, change: Callable[[Array], Array]) -> None:
    image, geometry = read_image(case / "img.nrrd")
    write_image(case / "img.nrrd", change(image), geometry)


def _hu(change: Callable[[Array], Array]) -> Plant:
    return lambda root, cases: _ct(cases[0], lambda image: change(image.astype(np.int32)))


def _file(name: str) -> Callable[[Path], Path]:
    return lambda case: case / ("img.nrrd" if name == "img" else f"structures/{name}.nrrd")


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Plant:
    def plant(root: Path, cases: list[Path]) -> None:
        path = _file(name)(cases[0])
        path.write_bytes(change(path.read_bytes()))

    return plant


def _structure(name: str, change: Callable[[Array, Geometry], tuple[Array, Geometry]]) -> Plant:
    def plant(root: Path, cases: list[Path]) -> None:
        path = _file(name)(cases[0])
        write_image(path, *change(*read_image(path)))

    return plant


def _mask(name: str, change: Callable[[Array], Array]) -> Plant:
    return _structure(name, lambda array, grid: (change(array > 0).astype(np.uint8), grid))


def _grid(change: Callable[[Geometry], Geometry]) -> Plant:
    """The same change of the grid for the CT and all structures."""

    def plant(root: Path, cases: list[Path]) -> None:
        for path in (cases[0] / "img.nrrd", *(cases[0] / "structures").iterdir()):
            array, grid = read_image(path)
            write_image(path, array, change(grid))

    return plant


def _all(change: Callable[[Array], Array], *, image: bool = True) -> Plant:
    """The same change of the voxels of all structures, and of the CT."""

    def plant(root: Path, cases: list[Path]) -> None:
        images = [cases[0] / "img.nrrd"] if image else []
        for path in (*images, *(cases[0] / "structures").iterdir()):
            array, grid = read_image(path)
            changed = np.ascontiguousarray(change(array))
            z, y, x = changed.shape
            write_image(path, changed, replace(grid, size=(z, y, x)))

    return plant


def _exchange(*pairs: tuple[str, str]) -> Plant:
    def plant(root: Path, cases: list[Path]) -> None:
        for one, other in pairs:
            a, b = (_file(name)(cases[0]) for name in (one, other))
            between = a.with_suffix(".tmp")
            a.rename(between)
            b.rename(a)
            between.rename(b)

    return plant


def _copy(source: str, target: str) -> Plant:
    def plant(root: Path, cases: list[Path]) -> None:
        shutil.copy(_file(source)(cases[0]), _file(target)(cases[0]))

    return plant


def _one_side(root: Path, cases: list[Path]) -> None:
    _file("Parotid_R")(cases[0]).replace(_file("Parotid_L")(cases[0]))


def _spread(name: str, other: str) -> Plant:
    """Adds the mask of `other` to that of `name`."""

    def plant(root: Path, cases: list[Path]) -> None:
        more, _ = read_image(_file(other)(cases[0]))
        _mask(name, lambda mask: mask | (more > 0))(root, cases)

    return plant


def _body(name: str) -> Plant:
    def plant(root: Path, cases: list[Path]) -> None:
        image, _ = read_image(cases[0] / "img.nrrd")
        _mask(name, lambda mask: image > -300)(root, cases)

    return plant


def _moved(z: int = 0, y: int = 0, x: int = 0) -> Callable[[Array], Array]:
    return lambda mask: ndimage.shift(mask, (z, y, x), order=0)


def _gaps(mask: Array) -> Array:
    levels = np.flatnonzero(mask.any(axis=(1, 2)))
    mask[levels[1:-1:2]] = False
    return mask


def _halves(mask: Array) -> Array:
    columns = np.flatnonzero(mask.any(axis=(0, 2)))
    middle = columns[len(columns) // 2]
    mask[:, middle - 1 : middle + 1] = False
    return mask


def _upper(mask: Array) -> Array:
    levels = np.flatnonzero(mask.any(axis=(1, 2)))
    mask[: levels[len(levels) * 5 // 9]] = False
    return mask


def _protocol(root: Path, cases: list[Path]) -> None:
    for case in cases[:3]:
        _mask("BrainStem", _upper)(root, [case])


def _low_start(root: Path, cases: list[Path]) -> None:
    mask, _ = read_image(_file("BrainStem")(cases[0]))
    levels = np.flatnonzero(mask.any(axis=(1, 2)))
    _all(lambda array: array[: levels[len(levels) * 2 // 3]])(root, cases)


def _narrow(root: Path, cases: list[Path]) -> None:
    mask, _ = read_image(_file("Parotid_L")(cases[0]))
    columns = np.flatnonzero(mask.any(axis=(0, 1)))
    _all(lambda array: array[:, :, : columns[len(columns) // 2]])(root, cases)


def _again(change: Callable[[Array], Array] | None = None, splits: str = "") -> Plant:
    """The first case a second time, as it is or changed."""

    def plant(root: Path, cases: list[Path]) -> None:
        copy = root / "another"
        shutil.copytree(cases[0], copy)
        if change is not None:
            _all(change)(root, [copy])
        if splits:
            first, second = splits.split()
            _list(root, f"case,split\n{cases[0].name},{first}\nanother,{second}\n")

    return plant


def _list(root: Path, text: str) -> None:
    (root / "cases.csv").write_text(text, encoding="utf-8")


def _noisy(array: Array) -> Array:
    """Another export: the lowest slice missing, some noise on the CT."""
    if array.max() <= 1:
        return array[1:]
    noise = np.random.default_rng(0).normal(0, 12, array.shape)
    return (array + noise).astype(np.int16)[1:]


def _two_splits(root: Path, cases: list[Path]) -> None:
    rows = "".join(f"{c.name},{s},P1\n" for c, s in zip(cases, ("train", "test"), strict=True))
    _list(root, f"case,split,patient\n{rows}")


def _absent(root: Path, cases: list[Path]) -> None:
    _list(root, f"case,split\n{cases[0].name},train\nnobody,test\n")


def _flat(root: Path, cases: list[Path]) -> None:
    image, grid = read_image(cases[0] / "img.nrrd")
    size = (1, image.shape[1], image.shape[2])
    write_image(cases[0] / "img.nrrd", image[:1], replace(grid, size=size))


def _sheared(data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(b"space directions"))
    lines[at] = b"space directions: (2.5,0,0) (2.0,1.5,0) (0,0,4)"
    return b"\n".join(lines)


def _nan(image: Array) -> Array:
    return np.where(image > 600, np.nan, image).astype(np.float32)


def _unnamed(root: Path, cases: list[Path]) -> None:
    for path in (cases[0] / "structures").iterdir():
        path.rename(path.with_name(f"PTV_{path.name}"))


def _to_bytes(image: Array) -> Array:
    return np.clip((image + 1024) / 12, 0, 255)


KINDS: dict[str, Kind] = {
    "CT cut short": Kind("E_IMAGE_UNREADABLE", _bytes("img", lambda b: b[: len(b) // 2])),
    "CT is no image": Kind("E_IMAGE_UNREADABLE", _bytes("img", lambda b: b"not found")),
    "CT missing": Kind(
        "E_IMAGE_MISSING", lambda root, cases: (cases[0] / "img.nrrd").unlink(), cases=2
    ),
    "CT holds NaN": Kind("E_IMAGE_VALUES", lambda root, cases: _ct(cases[0], _nan)),
    "CT of one slice": Kind("E_IMAGE_SHAPE", _flat),
    "CT sheared": Kind("E_IMAGE_GEOMETRY", _bytes("img", _sheared)),
    "spacing in metres": Kind(
        "E_IMAGE_GEOMETRY", _grid(lambda g: replace(g, spacing_mm=(0.004, 0.0025, 0.0025)))
    ),
    "spacing in tenths": Kind(
        "E_IMAGE_GEOMETRY", _grid(lambda g: replace(g, spacing_mm=(40.0, 25.0, 25.0)))
    ),
    "HU 1024 too high": Kind("E_HU_OFFSET", _hu(lambda image: image + 1024)),
    "HU 1000 too high": Kind("E_HU_OFFSET", _hu(lambda image: image + 1000)),
    "HU 1024 too low": Kind("E_HU_OFFSET", _hu(lambda image: image - 1024)),
    "HU inverted": Kind("E_HU_INVERTED", _hu(lambda image: -image)),
    "inverted picture": Kind("E_HU_INVERTED", _hu(lambda image: 4095 - image)),
    "picture of 256 greys": Kind("E_IMAGE_HU", _hu(_to_bytes)),
    "scaled to fractions": Kind(
        "E_IMAGE_HU", lambda root, cases: _ct(cases[0], lambda i: (i / 3000).astype(np.float32))
    ),
    "nothing but air": Kind("E_IMAGE_HU", _hu(lambda image: np.minimum(image, -1000))),
    "soft tissue window": Kind("W_HU_CLIPPED", _hu(lambda image: np.clip(image, -1024, 240))),
    "bone cut off": Kind("W_HU_CLIPPED", _hu(lambda image: np.minimum(image, 600))),
    "mask empty": Kind("E_LABEL_EMPTY", _mask("Parotid_L", lambda mask: mask & False)),
    "mask moved off the grid": Kind(
        "E_LABEL_GRID",
        _structure("Parotid_L", lambda a, g: (a, replace(g, origin_mm=(1.0, 2.0, 3.0)))),
    ),
    "mask of another size": Kind(
        "E_LABEL_GRID",
        _structure("Parotid_L", lambda a, g: (a[1:], replace(g, size=a[1:].shape))),
    ),
    "mask of another spacing": Kind(
        "E_LABEL_GRID",
        _structure("Parotid_L", lambda a, g: (a, replace(g, spacing_mm=(3.0, 2.0, 2.0)))),
    ),
    "mask cut short": Kind(
        "E_LABEL_UNREADABLE", _bytes("Parotid_L", lambda b: b[: len(b) * 3 // 4])
    ),
    "mask of two labels": Kind(
        "E_LABEL_VALUES",
        _structure("Parotid_L", lambda a, g: (a * (1 + np.arange(a.shape[1]) % 2)[:, None], g)),
    ),
    "mask filled all over": Kind("E_LABEL_VALUES", _mask("Parotid_L", lambda mask: mask | True)),
    "two files of one organ": Kind("E_LABEL_AMBIGUOUS", _copy("Parotid_L", "Lt Parotid")),
    "one mask under two names": Kind("E_LABEL_SAME", _copy("Parotid_L", "Submandibular_L")),
    "one organ inside another": Kind("W_ORGAN_OVERLAP", _spread("Mandible", "Submandibular_L")),
    "every other slice drawn": Kind("W_LABEL_GAPS", _mask("Parotid_R", _gaps)),
    "contour in two pieces": Kind("W_LABEL_PIECES", _mask("Parotid_L", _halves)),
    "scan starts in the brainstem": Kind("W_ORGAN_TRUNCATED", _low_start),
    "field of view too narrow": Kind("W_ORGAN_TRUNCATED", _narrow),
    "contour too small": Kind(
        "W_ORGAN_VOLUME", _mask("BrainStem", lambda m: ndimage.binary_erosion(m, iterations=2))
    ),
    "contour too large": Kind(
        "W_ORGAN_VOLUME", _mask("Submandibular_L", lambda m: ndimage.binary_dilation(m, None, 2))
    ),
    "whole body as cord": Kind("E_ORGAN_VOLUME", _body("SpinalCord"), site="clinic"),
    "left and right exchanged": Kind("E_ORGAN_SIDE", _exchange(("Parotid_L", "Parotid_R"))),
    "all sides exchanged": Kind(
        "E_ORGAN_SIDE", _exchange(*((f"{name}_L", f"{name}_R") for name in PAIRS))
    ),
    "CT and masks mirrored": Kind("E_ORGAN_SIDE", _all(lambda array: array[:, :, ::-1])),
    "right organ called left": Kind("E_ORGAN_SIDE", _one_side),
    "names exchanged": Kind("E_ORGAN_PLACE", _exchange(("BrainStem", "Mandible"))),
    "constrictors exchanged": Kind(
        "E_ORGAN_PLACE", _exchange(("Musc_Constrict_S", "Musc_Constrict_I")), site="nyu"
    ),
    "upside down": Kind("E_ORGAN_PLACE", _all(lambda array: array[::-1])),
    "front and back exchanged": Kind("E_ORGAN_PLACE", _all(lambda array: array[:, ::-1])),
    "structures beside the body": Kind("E_LABEL_OFF_BODY", _all(_moved(y=-48), image=False)),
    "structures moved": Kind("W_ORGAN_DENSITY", _all(_moved(y=8, z=3), image=False)),
    "organ too far down": Kind("W_ORGAN_PLACE", _mask("Parotid_R", _moved(z=-17)), site="clinic"),
    "slices twice as far apart": Kind(
        "W_SPACING",
        _grid(lambda g: replace(g, spacing_mm=(g.spacing_mm[0] * 2.5, *g.spacing_mm[1:]))),
    ),
    "pixels half as wide": Kind(
        "W_SPACING",
        _grid(lambda g: replace(g, spacing_mm=(g.spacing_mm[0], 1.2, 1.2))),
    ),
    "slices of 8 mm": Kind(
        "W_SPACING_COARSE",
        lambda root, cases: (
            _all(lambda array: array[::2])(root, cases),
            _grid(lambda g: replace(g, spacing_mm=(8.0, *g.spacing_mm[1:])))(root, cases),
        )[0],
    ),
    "one CT twice": Kind("E_DUPLICATE", _again()),
    "one CT in two splits": Kind("E_DUPLICATE", _again(splits="train test")),
    "one scan exported twice": Kind("W_DUPLICATE_LIKELY", _again(_noisy), cases=3),
    "one patient in two splits": Kind("E_SPLIT_PATIENT", _two_splits, cases=2),
    "two protocols": Kind("W_PROTOCOL_MIXED", _protocol, cases=7),
    "list names an absent case": Kind("E_CASE_ABSENT", _absent),
    "case that the list lacks": Kind(
        "W_CASE_UNLISTED",
        lambda root, cases: _list(root, f"case,split\n{cases[0].name},train\n"),
        cases=2,
    ),
    "unknown structure": Kind("W_STRUCTURE_UNKNOWN", _copy("Parotid_L", "PTV_70")),
    "no organ at all": Kind("E_NO_ORGAN", _unnamed),
}
