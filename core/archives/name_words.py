"""Words beside an organ's name in a structure's name, in six languages, and what they say of it.

Data, no code: `core.archives.name_matching` reads names with it.
"""

from __future__ import annotations

# Words that say nothing about what was contoured; as separate words only.
_HARMLESS = """
md mm all whole entire total complete gesamt komplett final fin ok done approved reviewed clin
clinical manual auto ai ki seg roi oar contour structure struct organ organe ct tps atlas abas
mbs dlc smartseg mim mirada limbus limbusai raystation mvision manteia
"""
HARMLESS = frozenset(_HARMLESS.split())

# Words that make another structure of any organ: margins, rings, avoidance, targets, helpers.
HELPERS: dict[str, str] = {
    word: kind
    for kind, words in {
        "a planning margin": "prv prvs expansion expanded exp margin marge rand margen margine "
        "plus",
        "a target": "ptv ctv gtv itv igtv hrctv tumor tumour boost target ln nodes",
        "a ring": "ring rind shell halo anneau anillo anello",
        "an avoidance structure": "avoid avoidance av sparing spare spared protect block blocked "
        "evitement evitar schonung",
        "a helper for optimisation": "opt optim optimisation optimization optimierung opti help "
        "helper hilf hilfe hilfs hilfsstruktur aide aux hulp hulpstructuur dummy tune tuning push "
        "hot cold hotspot coldspot dose dosis iso isodose eval planning z zz zzz zzzz x xx",
        "a part or a difference": "sub minus less without ohne sans senza zonder outside out "
        "ausserhalb crop cropped cut inter intersect overlap rest remain remaining residual part "
        "partial teil partie non not no",
    }.items()
    for word in words.split()
}

# Words that name another structure, or a part of one, beside the organ that is named with them.
_OTHERS = """
vocal vocalis voice fold folds glottis glottic glottal supraglottis supraglottic supraglot sg
subglottis subglottic epiglottis cricoid arytenoid cartilage hyoid air airway lumen mucosa canal
canalis kanal vertebra vertebral vertebrae oblongata equina roots superficial deep lobe wall
duct accessory stensen tail node tract tracts radiation sheath tooth teeth ramus condyle lens
eye retina cochlea lacrimal sublingual thyroid brain maxilla tongue oral cavity
"""
OTHERS = frozenset(_OTHERS.split())

_BOTH = """
both bilateral bilat bil bds beide beidseits beidseitig bilaterale bilaterales beiderseits deux
ambas ambos entrambe entrambi lr rl
"""
BOTH = frozenset(_BOTH.split())
_RELATIVE = """
ipsi ipsilateral contra contralateral ipsilat contralat homolateral homolat heterolateral
kontralateral controlateral controlaterale
"""
RELATIVE = frozenset(_RELATIVE.split())
