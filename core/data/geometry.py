"""Where a grid of voxels lies in the patient.

Spacing is (z, y, x) in mm; origin and direction are as SimpleITK gives them (x, y, z; LPS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Geometry:
    """Where a grid of voxels lies in the patient.

    Attributes:
        size: voxels along (z, y, x).
        spacing_mm: distance of voxel centres along (z, y, x).
        origin_mm: centre of voxel (0, 0, 0), as (x, y, z) in LPS.
        direction: 3 x 3 matrix, row by row; its columns are where the x, y and z index point.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @staticmethod
    def of_sitk(image: Any) -> Geometry:
        """Reads the geometry of a three-dimensional `SimpleITK.Image`."""
        assert image.GetDimension() == 3
        x, y, z = image.GetSize()
        dx, dy, dz = image.GetSpacing()
        ox, oy, oz = image.GetOrigin()
        return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), tuple(image.GetDirection()))

    @staticmethod
    def of_json(value: Mapping[str, Any]) -> Geometry:
        """The inverse of `as_json`."""
        z, y, x = (int(v) for v in value["size"])
        dz, dy, dx = (float(v) for v in value["spacing_mm"])
        ox, oy, oz = (float(v) for v in value["origin_mm"])
        direction = tuple(float(v) for v in value["direction"])
        return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), direction)

    def as_json(self) -> dict[str, list[float]]:
        """The four fields as lists, for a JSON file; floats survive the round trip exactly."""
        return {
            "size": list(self.size),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": list(self.direction),
        }

    def to_sitk(self, array: npt.NDArray[Any]) -> Any:
        """Makes a `SimpleITK.Image` of an array (Z, Y, X) on this grid; bool becomes uint8."""
        import SimpleITK as sitk  # training reads prepared cases and needs none

        assert array.shape == self.size, (array.shape, self.size)
        voxels = array.astype(np.uint8) if array.dtype == np.bool_ else array
        image: Any = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
        image.SetSpacing(self.spacing_mm[::-1])
        image.SetOrigin(self.origin_mm)
        image.SetDirection(self.direction)
        return image

    def diagonal_mm(self) -> float:
        """Length of the grid's space diagonal in mm, voxels counted whole."""
        return math.hypot(*(n * s for n, s in zip(self.size, self.spacing_mm, strict=True)))

    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return math.prod(self.spacing_mm) / 1000.0

    def close_to(self, other: Geometry, tol: float = 0.01) -> bool:
        """True where both are the same grid of the same patient, to rounding.

        A difference in spacing or direction counts as far as it moves voxels: the corners of the
        two grids may lie apart by at most `tol` times the smallest edge of this grid's voxels.

        Args:
            other: the grid to compare with.
            tol: allowed distance, as a fraction of a voxel's smallest edge.
        """
        if self.size != other.size:
            return False
        distance = np.linalg.norm(self._corners_mm() - other._corners_mm(), axis=0).max()
        return bool(distance <= tol * min(self.spacing_mm))

    def _corners_mm(self) -> npt.NDArray[np.float64]:
        """The eight corner voxels' centres (3, 8), x, y, z; a flat axis counts as two voxels."""
        last = np.maximum(np.array(self.size[::-1], dtype=np.float64) - 1.0, 1.0)
        index = np.indices((2, 2, 2)).reshape(3, -1) * last[:, None]
        matrix = np.array(self.direction).reshape(3, 3) * np.array(self.spacing_mm[::-1])
        corners: npt.NDArray[np.float64] = matrix @ index + np.array(self.origin_mm)[:, None]
        return corners
