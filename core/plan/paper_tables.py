"""The paper's tables: rows as printed; averages are computed (`docs/paper.md`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NINE = (
    "OpticChiasm",
    "Bone_Mandible",
    "Brainstem",
    "OpticNrv_L",
    "OpticNrv_R",
    "Parotid_L",
    "Parotid_R",
    "Glnd_Submand_L",
    "Glnd_Submand_R",
)
CONSTRICTORS = ("Musc_Constrict_S", "Musc_Constrict_M", "Musc_Constrict_I")
ROUNDING = {"dice": 0.0501, "hd95_mm": 0.0101}  # of means over rows that were rounded
LOSS_ABLATION = {"Dice loss alone": 31.80, "three losses": 57.44, "dynamic weighting": 73.24}


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        title: what it compares.
        score: ``dice`` (in percent) or ``hd95_mm``.
        organs: of the rows, TG-263 names.
        columns: values by method, one an organ, as printed.
        printed: averages as printed, by method.
        notes: slips and how they are read.
    """

    title: str
    score: str
    organs: tuple[str, ...]
    columns: Mapping[str, tuple[float, ...]]
    printed: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def averages(self) -> dict[str, float]:
        """Unweighted mean over the rows, by method."""
        return {name: sum(values) / len(values) for name, values in self.columns.items()}

    def differing(self) -> dict[str, tuple[float, float]]:
        """(printed, recomputed) where the printed average is not that of the rows."""
        return {
            name: (self.printed[name], mean)
            for name, mean in self.averages().items()
            if abs(self.printed[name] - mean) > ROUNDING[self.score]
        }


def _table(
    title: str,
    score: str,
    organs: tuple[str, ...],
    columns: Sequence[tuple[str, tuple[float, ...], float]],
    *notes: str,
) -> Table:
    values = {name: rows for name, rows, _ in columns}
    return Table(title, score, organs, values, {n: mean for n, _, mean in columns}, notes)


_TRANSFER_DICE = (53.0, 93.0, 87.8, 69.2, 68.0, 85.8, 83.5, 77.3, 76.7)
_TRANSFER_MM = (2.79, 1.29, 2.17, 1.48, 1.29, 4.99, 3.34, 3.29, 3.28)
_FROZEN_DICE, _FROZEN_MM = (53.8, 57.5, 52.6), (2.78, 2.96, 4.83)
_PCM_VOLUMES = (
    "The paper gives the constrictors 0.5, 0.3 and 0.8 % of the input volume: tens of mL, which no "
    "real constrictor has."
)

TABLES: dict[str, Table] = {
    "table1": _table(
        "Nine organs, MICCAI 2015 test set: pretrained at NYU, and after transfer",
        "dice",
        NINE,
        [
            (
                "Res3DUnet, pretrained",
                (23.2, 83.8, 86.0, 59.0, 56.4, 81.4, 80.6, 72.4, 72.0),
                68.3,
            ),
            ("Res3DUnet, transfer", _TRANSFER_DICE, 77.1),
            ("UNETR, pretrained", (16.5, 82.2, 80.5, 57.5, 53.2, 74.2, 71.7, 57.5, 57.9), 61.3),
            ("UNETR, transfer", (42.7, 92.2, 84.6, 69.6, 67.4, 83.2, 79.4, 70.9, 73.0), 73.7),
        ],
        "Printed with the two UNETR cells of the chiasm exchanged (16.5 under transfer): only so "
        "do the printed averages fit.",
    ),
    "table2": _table(
        "Nine organs, MICCAI 2015 test set: pretrained at NYU, and after transfer",
        "hd95_mm",
        NINE,
        [
            (
                "Res3DUnet, pretrained",
                (6.06, 1.88, 2.43, 3.42, 5.08, 7.38, 4.75, 4.34, 7.02),
                4.71,
            ),
            ("Res3DUnet, transfer", _TRANSFER_MM, 2.66),
            (
                "UNETR, pretrained",
                (6.95, 37.66, 3.75, 5.58, 5.58, 10.85, 5.57, 6.02, 12.70),
                10.52,
            ),
            ("UNETR, transfer", (4.41, 1.85, 8.09, 1.48, 1.74, 3.89, 4.48, 5.47, 6.30), 4.14),
        ],
    ),
    "table3": _table(
        "New organs from 12 cases",
        "dice",
        CONSTRICTORS,
        [
            ("from scratch", (47.9, 46.2, 48.3), 47.5),
            ("no freezing", (46.0, 52.0, 53.7), 50.6),
            ("first half frozen", _FROZEN_DICE, 54.6),
        ],
        "With only the last layers frozen the paper's model did not converge: no figures.",
        _PCM_VOLUMES,
    ),
    "table4": _table(
        "New organs from 12 cases",
        "hd95_mm",
        CONSTRICTORS,
        [
            ("from scratch", (3.15, 4.97, 5.03), 4.38),
            ("no freezing", (3.29, 4.47, 4.80), 4.19),
            ("first half frozen", _FROZEN_MM, 3.76),
        ],
        "Printed under the caption 'test set of MICCAI 2015'; its rows are the new organs.",
    ),
    "table5": _table(
        "Nine organs, MICCAI 2015 test set: other methods",
        "dice",
        NINE,
        [
            ("Capstone model", (50.2, 93.8, 83.8, 67.6, 68.7, 82.9, 82.0, 72.4, 74.0), 75.0),
            ("Res3DUnet, transfer", _TRANSFER_DICE, 77.1),
            (
                "MICCAI 2015 winner",
                (55.7, 93.0, 88.0, 64.4, 63.9, 82.7, 81.4, 72.3, 72.3),
                74.9,
            ),
            ("FocusNet", (59.6, 93.5, 87.5, 73.5, 74.4, 86.3, 87.9, 79.8, 80.1), 80.3),
        ],
    ),
    "table6": _table(
        "Nine organs, MICCAI 2015 test set: other methods",
        "hd95_mm",
        NINE,
        [
            ("Capstone model", (3.04, 1.64, 2.34, 1.52, 1.46, 5.71, 3.87, 4.19, 4.23), 3.11),
            ("Res3DUnet, transfer", _TRANSFER_MM, 2.66),
            (
                "MICCAI 2015 winner",
                (2.78, 1.97, 4.59, 2.76, 3.15, 5.11, 6.13, 5.35, 5.42),
                4.14,
            ),
            ("FocusNet", (3.16, 1.18, 2.14, 3.76, 2.65, 2.52, 2.07, 2.67, 3.41), 2.62),
        ],
    ),
    "table7": _table(
        "New organs: other methods",
        "dice",
        CONSTRICTORS,
        [
            ("Stoyanov", (59.0, 48.0, 42.0), 49.7),
            ("Gan", (30.0, 30.0, 40.0), 33.3),
            ("Res3DUnet, first half frozen", _FROZEN_DICE, 54.6),
        ],
        _PCM_VOLUMES,
    ),
    "table8": _table(
        "New organs: other methods",
        "hd95_mm",
        CONSTRICTORS,
        [
            ("Gan", (7.5, 12.5, 5.0), 8.33),
            ("Res3DUnet, first half frozen", _FROZEN_MM, 3.76),
        ],
    ),
}
