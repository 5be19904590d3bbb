"""Volumes of the built-in organs as they are contoured on planning CT, in mL: the one table.

The phantom is built to it, and plausibility checks compare masks with it. `low` and `high` bound
what is plausible for a complete contour in an adult; they are no limits of anatomy. Where no
published volume of the contour was found, the entry says how the number was estimated.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VolumeRange:
    """Plausible volume of one organ's contour.

    Attributes:
        low: smallest plausible volume of a complete contour, mL.
        typical: median or mean of adults, mL.
        high: largest plausible volume, mL.
        source: where the numbers come from, and which of them are estimates.
    """

    low: float
    typical: float
    high: float
    source: str

    def holds(self, volume_ml: float) -> bool:
        """Tells whether a volume in mL lies in the range, bounds included."""
        return self.low <= volume_ml <= self.high


_OPENKBP = (
    "OpenKBP planning CT (Babier et al., Medical Physics 48:5549-5561, 2021), measured on "
    "clinical contours of 63 patients, 5 %, median, 95 %: "
)
_CONSTRICTOR = (
    "Estimate: no published CT volume was found. Extent by the guidelines of Christianen et al., "
    "Radiotherapy and Oncology 101:394-402, 2011, and Brouwer et al., Radiotherapy and Oncology "
    "117:83-90, 2015: "
)
_NERVE = VolumeRange(
    0.25,
    0.6,
    1.5,
    "Estimate: a cylinder of 40 to 55 mm length (orbit to chiasm) and 4 mm diameter (with sheath) "
    "is 0.5 to 0.7 mL; the range allows for the thickness drawn on 3 mm slices. Extent: Brouwer et "
    "al., Radiotherapy and Oncology 117:83-90, 2015.",
)
_PAROTID = VolumeRange(
    9.0,
    24.0,
    54.0,
    "Medbery et al., Variation in parotid gland size, configuration, and anatomic relations, "
    "Radiotherapy and Oncology, 2000 (MRI, 32 glands): median 25.3, range 9.2 to 54.1 mL. "
    + _OPENKBP
    + "12, 23.5, 40 mL.",
)
_SUBMANDIBULAR = VolumeRange(
    3.0,
    8.1,
    16.0,
    "Quantitative analysis of the submandibular gland using computed tomography (article, 130 "
    "healthy adults): mean 8.07, standard deviation 2.57 mL. The range is the mean - 2 and + 3 "
    "standard deviations, rounded.",
)

VOLUME_ML: dict[str, VolumeRange] = {
    "Brainstem": VolumeRange(
        15.0,
        26.5,
        45.0,
        _OPENKBP
        + "10.5, 26.5, 34 mL, largest 45 mL; below 15 mL the contour is cut (data card's reading).",
    ),
    "OpticChiasm": VolumeRange(
        0.15,
        0.6,
        2.0,
        "Estimate from Wagner et al., AJNR 18:723-726, 1997 (coronal MRI, 114 subjects: area "
        "43.7 mm2, width 14 mm): 43.7 mm2 over 6 to 10 mm from front to back is 0.26 to 0.44 mL; "
        "contours on CT include the ends of nerves and tracts. The upper bound is a generous "
        "contour on 3 mm slices.",
    ),
    "Bone_Mandible": VolumeRange(
        28.0, 59.0, 100.0, _OPENKBP + "38, 59.5, 86 mL (29 to 100 in all; with and without teeth)."
    ),
    "OpticNrv_L": _NERVE,
    "OpticNrv_R": _NERVE,
    "Parotid_L": _PAROTID,
    "Parotid_R": _PAROTID,
    "Glnd_Submand_L": _SUBMANDIBULAR,
    "Glnd_Submand_R": _SUBMANDIBULAR,
    "Musc_Constrict_S": VolumeRange(
        2.5, 6.5, 15.0, _CONSTRICTOR + "a sheet of about 3.5 mm x 45 mm x 40 mm is 6.3 mL."
    ),
    "Musc_Constrict_M": VolumeRange(
        1.0, 3.2, 8.0, _CONSTRICTOR + "a sheet of about 3.5 mm x 45 mm x 20 mm is 3.2 mL."
    ),
    "Musc_Constrict_I": VolumeRange(
        2.5, 6.5, 16.0, _CONSTRICTOR + "a sheet of about 3.5 mm x 45 mm x 42 mm is 6.6 mL."
    ),
    "Larynx": VolumeRange(
        8.0,
        24.0,
        76.0,
        _OPENKBP + "12, 24, 51 mL (8 to 76 in all): glottis only, or the whole organ.",
    ),
    "Esophagus": VolumeRange(
        4.0, 11.6, 32.0, _OPENKBP + "6, 11.6, 20 mL (5 to 32 in all): the cervical part only."
    ),
    "SpinalCord": VolumeRange(
        8.0,
        25.0,
        46.0,
        _OPENKBP
        + "12, 27, 41 mL (10 to 46 in all): grows with the length scanned; some draw the canal.",
    ),
}
