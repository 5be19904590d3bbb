"""Where the built-in organs lie to each other in the patient: the one table, beside their volumes.

Axes are the patient's (LPS): x to the left, y to posterior, z to superior. An `Order` is gross
anatomy and holds in every adult that lies as on a planning CT; an `Offset` is a measured range.
"""

from __future__ import annotations

from dataclasses import dataclass

X, Y, Z = 0, 1, 2
Range = tuple[float, float]


@dataclass(frozen=True)
class Order:
    """The centroid of `larger` lies further along `axis` than that of `smaller`.

    Attributes:
        larger: the organ that lies more to the left, to posterior or to superior.
        smaller: the other organ.
        axis: `X`, `Y` or `Z`.
    """

    larger: str
    smaller: str
    axis: int


@dataclass(frozen=True)
class Offset:
    """Centroid of `organ` minus centroid of `reference`, mm along x, y, z: smallest and largest.

    Attributes:
        organ: the organ looked at.
        reference: the organ it is measured from.
        x, y, z: ranges in mm.
        cases: number of patients in which both were contoured.
    """

    organ: str
    reference: str
    x: Range
    y: Range
    z: Range
    cases: int


# Gross anatomy in supine patients; extents of the contours by Brouwer et al., Radiotherapy and
# Oncology 117:83-90, 2015. Every one of them that the 63 OpenKBP patients can tell holds there.
ORDERS: tuple[Order, ...] = (
    Order("Brainstem", "Bone_Mandible", Z),
    Order("Brainstem", "Bone_Mandible", Y),
    Order("Brainstem", "Larynx", Z),
    Order("Brainstem", "Esophagus", Z),
    Order("Brainstem", "SpinalCord", Z),
    Order("Brainstem", "Parotid_L", Z),
    Order("Brainstem", "Parotid_R", Z),
    Order("Brainstem", "Glnd_Submand_L", Z),
    Order("Brainstem", "Glnd_Submand_R", Z),
    Order("Brainstem", "Musc_Constrict_M", Z),
    Order("Brainstem", "Musc_Constrict_I", Z),
    Order("Brainstem", "OpticChiasm", Y),
    Order("Brainstem", "OpticNrv_L", Y),
    Order("Brainstem", "OpticNrv_R", Y),
    Order("OpticChiasm", "OpticNrv_L", Y),
    Order("OpticChiasm", "OpticNrv_R", Y),
    Order("OpticChiasm", "Bone_Mandible", Z),
    Order("OpticNrv_L", "Bone_Mandible", Z),
    Order("OpticNrv_R", "Bone_Mandible", Z),
    Order("OpticChiasm", "Parotid_L", Z),
    Order("OpticChiasm", "Parotid_R", Z),
    Order("Parotid_L", "Glnd_Submand_L", Z),
    Order("Parotid_R", "Glnd_Submand_R", Z),
    Order("Parotid_L", "Bone_Mandible", Y),
    Order("Parotid_R", "Bone_Mandible", Y),
    Order("Parotid_L", "Larynx", Z),
    Order("Parotid_R", "Larynx", Z),
    Order("Parotid_L", "Esophagus", Z),
    Order("Parotid_R", "Esophagus", Z),
    Order("Bone_Mandible", "Larynx", Z),
    Order("Bone_Mandible", "Esophagus", Z),
    Order("SpinalCord", "Bone_Mandible", Y),
    Order("SpinalCord", "Larynx", Y),
    Order("Larynx", "Esophagus", Z),
    Order("Esophagus", "Larynx", Y),
    Order("Musc_Constrict_S", "Musc_Constrict_M", Z),
    Order("Musc_Constrict_M", "Musc_Constrict_I", Z),
    Order("Musc_Constrict_S", "Bone_Mandible", Y),
)

# OpenKBP planning CT (Babier et al., Medical Physics 48:5549-5561, 2021), measured on clinical
# contours of 63 patients: smallest and largest offset of the centroids.
OFFSETS: tuple[Offset, ...] = (
    Offset("Parotid_L", "Brainstem", (48, 67), (-37, -11), (-62, -19), 58),
    Offset("Parotid_R", "Brainstem", (-69, -46), (-40, -10), (-57, -22), 59),
    Offset("Bone_Mandible", "Brainstem", (-7, 7), (-82, -49), (-76, -24), 55),
    Offset("SpinalCord", "Brainstem", (-8, 12), (-5, 49), (-179, -47), 59),
    Offset("Esophagus", "Brainstem", (-5, 18), (-26, 27), (-216, -142), 33),
    Offset("Larynx", "Brainstem", (-8, 10), (-64, -13), (-145, -91), 47),
    Offset("Parotid_L", "Bone_Mandible", (50, 69), (34, 61), (-13, 31), 59),
    Offset("Parotid_R", "Bone_Mandible", (-66, -45), (30, 54), (-11, 27), 59),
    Offset("Larynx", "Bone_Mandible", (-7, 8), (9, 58), (-87, -35), 47),
    Offset("Esophagus", "Bone_Mandible", (-7, 20), (42, 87), (-166, -89), 34),
    Offset("Parotid_L", "Parotid_R", (99, 133), (-12, 10), (-12, 11), 62),
    Offset("Esophagus", "Larynx", (-12, 3), (17, 49), (-94, -36), 33),
)
