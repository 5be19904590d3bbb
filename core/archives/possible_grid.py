"""What the grid of a CT can be: other ones come from wrong headers.

Spacing is (z, y, x) in mm; origin and direction are as SimpleITK gives them (x, y, z; LPS).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.data.geometry import Geometry
from core.errors import CaseError

SPACING_LIMITS_MM = (0.05, 20.0)
LARGEST_MM, FARTHEST_MM = 3000.0, 1e6


def require_possible(geometry: Geometry, source: Path | str) -> None:
    """Requires a grid that a CT can have.

    Args:
        geometry: the grid.
        source: what it was read from, for the message.

    Raises:
        CaseError: ``E_IMAGE_GEOMETRY``: spacing, direction, extent or origin cannot be.
    """
    low, high = SPACING_LIMITS_MM
    matrix = np.array(geometry.direction).reshape(3, 3)
    if not all(low <= s <= high for s in geometry.spacing_mm):
        problem = f"spacing (z, y, x) is {geometry.spacing_mm} mm"
        remedy = f"correct the spacing; {low} to {high} mm are read"
    elif not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3):
        problem = f"direction {geometry.direction} is no rotation"
        remedy = "correct the direction matrix: its columns must be orthonormal"
    elif max(n * s for n, s in zip(geometry.size, geometry.spacing_mm, strict=True)) > LARGEST_MM:
        problem = f"size {geometry.size} at spacing {geometry.spacing_mm} mm (z, y, x)"
        remedy = f"correct the spacing; images of up to {LARGEST_MM:g} mm are read"
    elif not all(abs(v) <= FARTHEST_MM for v in geometry.origin_mm):
        problem, remedy = f"origin {geometry.origin_mm}", "correct the origin"
    else:
        return
    raise CaseError("E_IMAGE_GEOMETRY", "image", source, remedy, problem=problem)
