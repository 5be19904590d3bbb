"""Spellings of the built-in organs: TG-263, public data sets, vendors, hospitals, six languages.

Data, no code: `core.organs.vocabulary` makes organs of it, `core.organs.tokens` compares with it.
One word order, one case and one separator stand for all; accents do not count, and an umlaut is
also written with an e. Of organs that come in pairs the spellings here have no side; the sides are
added.

Gathered from TG-263 (Mayo et al., Int J Radiat Oncol Biol Phys 100, 1057-1066, 2018), the lists of
PDDCA, OpenKBP, HaN-Seg, SegRap2023 and TotalSegmentator, names that auto-contouring tools write,
and the usual words and abbreviations of planning departments.
"""

from __future__ import annotations

# Side words that mean a side beside any spelling, also run together with it.
SIDES: dict[str, tuple[str, ...]] = {
    "l": (
        *("l", "lt", "lft", "left"),
        *("links", "linke", "linker", "linkes", "linken", "lks"),
        *("gauche", "izquierda", "izquierdo", "izq", "izqda", "izqdo", "izda", "izdo"),
        *("sinistra", "sinistro", "sinister", "sinistrum"),
    ),
    "r": (
        *("r", "rt", "rgt", "right"),
        *("rechts", "rechte", "rechter", "rechtes", "rechten"),
        *("droite", "droit", "derecha", "derecho", "dcha", "dcho"),
        *("destra", "destro", "dexter", "dextra", "dextrum"),
    ),
}

# Side words that mean a side only beside spellings of their language: "parotide d", but not
# "parotid d"; "Parotis re", but not "re parotid". Latin is written everywhere.
SIDES_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "de": {"l": ("li",), "r": ("re",)},
    "nl": {"l": ("li",), "r": ("re",)},
    "fr": {"l": ("g",), "r": ("d", "dte")},
    "es": {"l": ("i", "iz"), "r": ("d", "der")},
    "it": {"l": ("sx",), "r": ("d", "dx")},
    "la": {"l": ("li",), "r": ("re", "dext")},
}

SINGLE: dict[str, tuple[str, ...]] = {
    "Brainstem": (
        *("BrainStem", "Brain Stem", "Bstem", "BrStem", "Brnstem", "Brnstm", "Brainstm"),
        *("Truncus Cerebri", "Truncus Encephali", "Truncus Encephalicus"),
        *("Hirnstamm", "Stammhirn", "Gehirnstamm"),
        *("Tronc Cérébral", "Tronc Cereb", "Tronc Encéphalique", "TroncCereb"),
        *("Tronco Cerebral", "Tronco Encefálico", "Tronco del Encéfalo", "Tallo Cerebral"),
        *("Tronco Cerebrale", "Tronco Encef", "Troncoencefalo"),
        *("Hersenstam", "Hersen Stam"),
    ),
    "OpticChiasm": (
        *("Chiasm", "Optic Chiasm", "Optic Chiasma", "Optical Chiasm", "Optics Chiasm"),
        *("Chiasma", "Chiasma Opticum", "Chiasma Optic", "Chiasme"),
        *("Sehnervenkreuzung", "Sehnervkreuzung", "Sehbahnkreuzung"),
        *("Chiasma Optique", "Chiasme Optique", "Quiasma", "Quiasma Óptico"),
        *("Chiasma Ottico", "Chiasma Nervi Ottici", "Optisch Chiasma", "Oogzenuwkruising"),
    ),
    "Bone_Mandible": (
        *("Mandible", "Mandible Bone", "Mandibular Bone", "Mand Bone", "Mandib", "Mandibl"),
        *("Lower Jaw", "Lower Jaw Bone", "Jawbone Lower"),
        *("Mandibula", "Os Mandibulae", "Mandibel", "Unterkiefer", "Unterkieferknochen"),
        *("Mandibule", "Mâchoire Inférieure", "Maxillaire Inférieur", "Os Mandibule"),
        *("Hueso Mandibular", "Maxilar Inferior", "Hueso Mandíbula"),
        *("Mandibola", "Osso Mandibola", "Osso Mandibolare", "Onderkaak", "Onderkaakbot"),
    ),
    "Larynx": (
        *("Larynx Organ", "Larinx", "Kehlkopf", "Laringe", "Strottenhoofd"),
        "Strottehoofd",
    ),
    "Esophagus": (
        *("Oesophagus", "Esoph", "Oesoph", "Esophag", "Oesophag", "Eso", "Oeso"),
        *("Cervical Esophagus", "Cervical Oesophagus", "Cerv Esophagus", "Cerv Oesophagus"),
        *("Esophagus S", "Oesophagus S", "Upper Esophagus", "Upper Oesophagus"),
        *("Ösophagus", "Speiseröhre", "Speiserohr", "Œsophage", "Esophage", "Oesophage Cervical"),
        *("Esófago", "Esófago Cervical", "Esofago Cervicale", "Slokdarm", "Oesofagus", "Esofagus"),
    ),
    "SpinalCord": (
        *("Spinal Cord", "Cord", "Sp Cord", "Spine Cord", "SpinCord", "Spinal Crd", "Spinalcrd"),
        *("Cervical Cord", "Cervical Spinal Cord", "Cord Cervical", "Spinal Cord C"),
        *("Medulla Spinalis", "Med Spinalis", "Myelon", "Myelum", "Rückenmark"),
        *("Moelle", "Moelle Épinière", "Moelle Epin", "Cordon Spinal"),
        *("Médula", "Médula Espinal", "Med Espinal", "Midollo", "Midollo Spinale", "Midollo Spin"),
        *("Ruggenmerg", "Ruggemerg"),
    ),
}

PAIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "OpticNrv": {
        "en": (
            *("OpticNerve", "Optic Nerve", "Optic N", "Optic Nrv", "Optic Nerv", "Optic Nv"),
            *("Optical Nerve", "N Optic", "Nerve Optic", "Nrv Optic", "ON"),
        ),
        "la": (
            *("N Opticus", "Nervus Opticus", "Nerv Opticus", "Opticus", "Optikus"),
            "N Optikus",
        ),
        "de": ("Sehnerv", "Sehnerven", "Nerv Optikus"),
        "fr": ("Nerf Optique", "N Optique", "Nf Optique", "NerfOpt"),
        "es": ("Nervio Óptico", "N Óptico", "Nerv Óptico"),
        "it": ("Nervo Ottico", "N Ottico", "Nerv Ottico"),
        "nl": ("Oogzenuw", "Optische Zenuw"),
    },
    "Parotid": {
        "en": (
            *("Parotid", "Parotid Gland", "Parotid Glnd", "Parotid Gld", "Parotid Gl"),
            *("Parot", "Parotd", "Parotid Salivary Gland", "Parotid Salivary"),
        ),
        "la": (
            *("Parotis", "Glandula Parotis", "Glandula Parotidea", "Gl Parotis", "Gl Parotidea"),
            *("Gland Parotis", "Gld Parotis"),
        ),
        "de": ("Ohrspeicheldrüse", "Parotisdrüse", "Parotis Drüse"),
        "fr": ("Parotide", "Glande Parotide", "Gl Parotide"),
        "es": ("Parótida", "Glándula Parótida", "Gl Parótida", "Gland Parótida"),
        "it": ("Parotide", "Ghiandola Parotide", "Ghiandola Parotidea", "Gh Parotide"),
        "nl": ("Oorspeekselklier", "Parotisklier", "Parotis Klier"),
    },
    "Glnd_Submand": {
        "en": (
            *("Submandibular", "Submandibular Gland", "Submandibular Glnd", "Submandibular Gl"),
            *("Submand", "Submand Gland", "Submand Gl", "Submand Glnd", "Glnd Submandibular"),
            *("Gld Submand", "SMG", "SubMan", "Submandib", "Submandib Gland", "Submandibular Gld"),
            *("Submandibular Salivary Gland", "Submandibular Salivary", "Submaxillary Gland"),
            *("Submaxillary", "Submnd Gland", "Subm Gland", "Subm Gl", "Gland Submnd"),
        ),
        "la": (
            *("Glandula Submandibularis", "Gl Submandibularis", "Submandibularis"),
            *("Gland Submandibularis", "Gl Submandib"),
        ),
        "de": (
            *("Unterkieferspeicheldrüse", "Submandibulardrüse", "Submandibularisdrüse"),
            "Glandula Submand",
        ),
        "fr": (
            *("Sous Maxillaire", "Glande Sous Maxillaire", "Gl Sous Maxillaire"),
            *("Sous Mandibulaire", "Glande Sous Mandibulaire", "Submandibulaire"),
            *("Glande Submandibulaire", "Gl Submandibulaire", "Gl Sous Mandibulaire"),
        ),
        "es": (
            *("Glándula Submandibular", "Glándula Submaxilar", "Submaxilar", "Gl Submaxilar"),
            "Glánd Submaxilar",
        ),
        "it": (
            *("Sottomandibolare", "Ghiandola Sottomandibolare", "Gh Sottomandibolare"),
            *("Sottomascellare", "Ghiandola Sottomascellare", "Submandibolare"),
            "Ghiandola Submandibolare",
        ),
        "nl": (
            *("Onderkaakspeekselklier", "Onderkaaksspeekselklier", "Submandibularisklier"),
            *("Submandibulaire Klier", "Submandibulaire Speekselklier"),
        ),
    },
}

# The pharyngeal constrictors: each base with each word of its language for the level.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "S": ("S", "Sup", "Superior", "Upper"),
        "M": ("M", "Mid", "Middle", "Medial", "Med"),
        "I": ("I", "Inf", "Inferior", "Lower"),
    },
    "la": {
        "S": ("Superior", "Sup"),
        "M": ("Medius", "Med"),
        "I": ("Inferior", "Inf"),
    },
    "de": {
        "S": ("Superior", "Oben", "Oberer"),
        "M": ("Medius", "Mitte", "Mittlerer"),
        "I": ("Inferior", "Unten", "Unterer"),
    },
    "fr": {
        "S": ("Supérieur", "Sup"),
        "M": ("Moyen", "Moy"),
        "I": ("Inférieur", "Inf"),
    },
    "es": {"S": ("Superior", "Sup"), "M": ("Medio", "Med"), "I": ("Inferior", "Inf")},
    "it": {"S": ("Superiore", "Sup"), "M": ("Medio", "Med"), "I": ("Inferiore", "Inf")},
    "nl": {"S": ("Bovenste", "Boven"), "M": ("Middelste", "Midden"), "I": ("Onderste", "Onder")},
}
CONSTRICTORS: dict[str, tuple[str, ...]] = {
    "en": (
        *("Musc Constrict", "Musc Constrictor", "Musc Constr", "Constrictor", "Constrict"),
        *("Constr", "Constrictor Muscle", "Constrictor Musc", "Pharyngeal Constrictor"),
        *("Pharyngeal Constrictor Muscle", "Pharyngeal Constrictors", "Pharyngeal Const"),
        *("Pharyngeal Constrict", "Pharynx Constrictor", "Pharynx Constrict", "Pharynx Constr"),
        *("Pharynx Const", "Phar Const", "Phar Constrictor", "Phar Constrict", "PCM"),
    ),
    "la": ("Constrictor Pharyngis", "M Constrictor Pharyngis", "Musculus Constrictor Pharyngis"),
    "de": ("Schlundschnürer", "Pharynxkonstriktor", "Konstriktor", "Pharynx Konstriktor"),
    "fr": ("Constricteur", "Constricteur Pharynx", "Muscle Constricteur", "Constricteur Pharyngé"),
    "es": ("Constrictor", "Músculo Constrictor", "Constrictor Faríngeo", "Constrictor Faringe"),
    "it": ("Costrittore", "Muscolo Costrittore", "Costrittore Faringeo", "Costrittore Faringe"),
    "nl": ("Constrictor", "Pharynx Constrictor", "PCM"),
}
CONSTRICTORS_SHORT: dict[str, tuple[str, ...]] = {
    "S": ("SPC", "PCS", "PC Sup", "PC Superior"),
    "M": ("MPC", "PC Mid", "PC Middle", "PC Medial", "PC Med"),
    "I": ("IPC", "PCI", "PC Inf", "PC Inferior"),
}
