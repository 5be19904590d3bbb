from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.archives.name_matching import assign, match, matcher
from core.organs.vocabulary import BUILT_IN, mirrored, resolve, vocabulary

VOCAB = vocabulary()

# Labels of TotalSegmentator's tasks headneck_muscles, head_glands_cavities, craniofacial_structures
# and total, as docs/compare-with.md has them.
TOTAL_SEGMENTATOR = {
    "superior_pharyngeal_constrictor": "Musc_Constrict_S",
    "middle_pharyngeal_constrictor": "Musc_Constrict_M",
    "inferior_pharyngeal_constrictor": "Musc_Constrict_I",
    "parotid_gland_left": "Parotid_L",
    "parotid_gland_right": "Parotid_R",
    "submandibular_gland_left": "Glnd_Submand_L",
    "submandibular_gland_right": "Glnd_Submand_R",
    "optic_nerve_left": "OpticNrv_L",
    "optic_nerve_right": "OpticNrv_R",
    "mandible": "Bone_Mandible",
    "spinal_cord": "SpinalCord",
    "esophagus": "Esophagus",
    "brainstem": "Brainstem",
    "larynx_air": None,
    "hypopharynx": None,
}
# Names as they stand in public data sets, and as planning systems, auto-contouring and hospitals of
# six languages write them; of pairs in both sides.
FOUND = {
    "Brainstem": """BrainStem|Brainstem|brainstem|BRAINSTEM|Brain_Stem|Brain Stem|brain stem|
        BRAIN STEM|Brainstem_MD|BSTEM|Brnstem|Stem Brain|Truncus cerebri|Hirnstamm|HIRNSTAMM|
        Stammhirn|Tronc cérébral|TRONC CEREBRAL|tronc_cerebral|Tronc Encéphalique|Tronco cerebral|
        Tronco encefálico|TRONCO ENCEFALICO|Tronco encefalico|hersenstam|Hersenstam|
        Brainstem (whole)|Brainstem^1|Brainstem_AI""",
    "OpticChiasm": """Chiasm|OpticChiasm|Optic_Chiasm|OPTIC CHIASM|optic chiasma|Chiasma|CHIASMA|
        Chiasma opticum|chiasma optique|Chiasma optique|Quiasma|Quiasma óptico|QUIASMA OPTICO|
        chiasma ottico|Chiasma Ottico|Sehnervenkreuzung|Chiasm_MM|Chiasm Optic""",
    "Bone_Mandible": """Mandible|Bone_Mandible|mandible|MANDIBLE|Mandible^1|MANDIBULA|Mandibula|
        Mandible Bone|Mandible_Bone|Unterkiefer|UNTERKIEFER|Mandibule|mandíbula|Mandibola|
        mandibola|Onderkaak|onderkaak|lower jaw|Lower_Jaw|maxilar inferior|Maxillaire inférieur|
        OS MANDIBULAE|Mandible Auto""",
    "Larynx": """Larynx|larynx|LARYNX|Larynx_MD|larynx (all)|Whole Larynx|Larynx total|Kehlkopf|
        KEHLKOPF|Laringe|laringe|strottenhoofd|Larynx_Organ""",
    "Esophagus": """Esophagus|esophagus|Oesophagus|oesophagus|OESOPHAGUS|Esophagus_S|Esoph|
        Cervical Esophagus|Oesophagus_Cerv|Ösophagus|Speiseröhre|SPEISEROEHRE|Œsophage|oesophage|
        esófago|ESOFAGO|Esofago|slokdarm|Slokdarm|Esophagus_Cerv""",
    "SpinalCord": """SpinalCord|spinal_cord|Spinal Cord|SPINAL CORD|spinal cord|cord|CORD|Cord|
        Spinal_Cord|SpinalCord_MD|Myelon|MYELON|Rückenmark|Rueckenmark|RÜCKENMARK|Moelle|MOELLE|
        moelle épinière|Moelle epiniere|médula|Médula espinal|MEDULA ESPINAL|Midollo|
        midollo spinale|MIDOLLO SPINALE|ruggenmerg|Ruggenmerg|Medulla spinalis|Myelum""",
    "OpticNrv_?": """OpticNerve_{}|OpticNrv_{}|Optic_Nerve_{}|optic_nerve_{word}|{abbr} Optic Nerve|
        OPTIC NERVE {ABBR}|{Word} optic nerve|ON_{}|{} ON|ON {ABBR}|OpticNerve{Word}|Optic_N_{}|
        N. opticus {}|N opticus {de}|Sehnerv {de}|SEHNERV {de}|Sehnerv {deshort}|
        nerf optique {fr}|Nerf Optique {frshort}|NERF_OPTIQUE_{frshort}|nervio óptico {es}|
        Nervo ottico {it}|NERVO OTTICO {itshort}|Oogzenuw {de}|n. opticus {deshort}|
        Nervus opticus {}""",
    "Parotid_?": """Parotid_{}|{Word}Parotid|parotid_gland_{word}|{Abbr} Parotid|PAROTID {ABBR}|
        PAROTID_{ABBR}|parotid gland, {word}|{}. Parotid|{} parotid gl.|Parotid Gland, {Word}|
        {}Parotid|parotid_{}_MM|Parotis {}|Parotis {de}|PAROTIS {de}|Parotis {deshort}|
        Glandula parotis {de}|Gl. parotis {deshort}|Ohrspeicheldrüse {de}|Parotide {fr}|
        PAROTIDE {frshort}|Parotide_{frshort}|parotide {itshort}|PAROTIDE {itshort}|Parotide {it}|
        ghiandola parotide {it}|Parótida {es}|PAROTIDA {esshort}|glándula parótida {es}|
        parotis {de}|Oorspeekselklier {de}|Parotid {word} auto|{ABBR}_PAROTID|parotid{}|
        Glnd_Parotid_{}|{word} parotid gland""",
    "Glnd_Submand_?": """Submandibular_{}|Glnd_Submand_{}|submandibular_gland_{word}|SMG {ABBR}|
        SMG_{}|{Word} Submandibular Gland|{Abbr} Submandibular|SUBMANDIBULAR {ABBR}|submand_{}|
        Submand {ABBR}|Submandibular gl. {}|GLAND SUBMAND {ABBR}|Gl. submandibularis {}|
        Glandula submandibularis {de}|Gl submandibularis {deshort}|Unterkieferspeicheldrüse {de}|
        sous-maxillaire {fr}|Sous maxillaire {frshort}|GLANDE SOUS MAXILLAIRE {frshort}|
        glande submandibulaire {fr}|glándula submandibular {es}|Submaxilar {es}|
        SUBMAXILAR {esshort}|sottomandibolare {it}|Sottomandibolare {itshort}|
        ghiandola sottomandibolare {it}|onderkaakspeekselklier {de}|submandibularis {de}""",
    "Musc_Constrict_S": """PCM Sup|PCM_Sup|Musc_Constrict_S|PCM_S|superior_pharyngeal_constrictor|
        Superior Constrictor|SPC|Phar Const Sup|Constrictor_S|pharynx_const_sup|Const Phar Sup|
        M. constrictor pharyngis superior|constricteur supérieur|costrittore superiore|
        Oberer Schlundschnürer|PHARYNGEAL CONSTRICTOR SUP|PCM upper""",
    "Musc_Constrict_M": """pcm_MID|PCM_Mid|Musc_Constrict_M|PCM_M|middle_pharyngeal_constrictor|
        Middle Constrictor|MPC|Phar Const Mid|Constrictor_M|pharynx_const_mid|
        constrictor pharyngis medius|constricteur moyen|costrittore medio""",
    "Musc_Constrict_I": """Phar Const Inf|PCM_Inf|Musc_Constrict_I|PCM_I|IPC|Inferior Constrictor|
        inferior_pharyngeal_constrictor|Constrictor_I|pharynx_const_inf|PCM lower|
        constrictor pharyngis inferior|constricteur inférieur|costrittore inferiore|
        Inferior Pharyngeal Constrictor""",
}
SIDES = {
    "L": {
        "word": "left", "abbr": "lt", "de": "links", "deshort": "li", "fr": "gauche",
        "frshort": "G", "es": "izquierda", "esshort": "izq", "it": "sinistra", "itshort": "SX",
    },
    "R": {
        "word": "right", "abbr": "rt", "de": "rechts", "deshort": "re", "fr": "droite",
        "frshort": "D", "es": "derecha", "esshort": "dcha", "it": "destra", "itshort": "DX",
    },
}  # fmt: skip


def _found() -> list[tuple[str, str]]:
    cases = []
    for organ, text in FOUND.items():
        for name in (n.strip() for n in text.split("|")):
            for side, words in SIDES.items() if organ.endswith("?") else [("", {})]:
                more = {k.title(): v.title() for k, v in words.items()}
                more |= {k.upper(): v.upper() for k, v in words.items()}
                cases.append((name.format(side, **words, **more), organ.replace("?", side)))
    return list(dict.fromkeys(cases))


REAL = _found()


def test_three_hundred_real_names_mean_their_organ() -> None:
    assert len({name for name, _ in REAL}) >= 300
    assert {organ for _, organ in REAL} == set(BUILT_IN)
    wrong = {name: match(name, VOCAB) for name, organ in REAL if match(name, VOCAB).organ != organ}
    assert wrong == {}


def test_the_table_has_three_hundred_spellings_each_of_one_organ() -> None:
    spellings = [(organ.name, a) for organ in BUILT_IN.values() for a in organ.aliases]
    assert len(spellings) >= 300
    assert all(match(a, VOCAB).organ == organ for organ, a in spellings)
    assert min(len(a) for _, a in spellings) > 2


# --------------------------------------------------------------------------------------------------
# Never an organ

_WORDS = """
PRV PRV03 PRV5 PTV PTV70 CTV CTV56 GTV GTVn ITV ring Ring5mm rind shell avoid avoidance AVOID z zz
zzz opt optim OPT help hilf helper dummy dose Dose95 hot cold minus sub ohne sans senza sin zonder
without expanded exp margin marge block crop cropped 03 05 5mm 3 +3 x old new copy draft v2
superficial deep lobe duct tail left_half air lumen glottic supraglottic SG canal vocal cartilage
wall JS test PTV-Parotid evitar
"""
WORDS = _WORDS.split()


@settings(max_examples=400)
@given(data=st.data())
def test_a_word_more_is_never_the_organ(data: st.DataObject) -> None:
    name, _ = data.draw(st.sampled_from(REAL))
    word = data.draw(st.sampled_from(WORDS))
    separator = data.draw(st.sampled_from(["_", " ", "-", "", ".", "^", " - "]))
    change = data.draw(st.sampled_from([str, str.lower, str.upper]))
    raw = change(separator.join((word, name) if data.draw(st.booleans()) else (name, word)))
    told = match(raw, VOCAB)
    assert told.organ is None, told
    assert told.why


PAIRS = [(n, o) for n, o in REAL if mirrored(o) != o]


def _without_side(name: str) -> str:
    words = {w for s in SIDES.values() for w in (*s.values(),)} | {"l", "r", "ltd"}
    parts = re.split(r"([_ .,]+|(?<=[a-z])(?=[A-Z]))", name)
    return "".join(p for p in parts if p.lower() not in {w.lower() for w in words})


@given(st.sampled_from(PAIRS))
def test_without_a_side_both_are_asked(pair: tuple[str, str]) -> None:
    name, organ = pair
    bare = _without_side(name)
    told = match(bare, VOCAB)
    if told.organ is not None:  # the side was run together with the name, and is still there
        assert told.organ == organ
        assert len(bare) > len(name) - 2
    elif bare:
        assert set(told.candidates) in ({organ, mirrored(organ)}, {organ}, set())


@given(
    st.sampled_from(PAIRS), st.sampled_from(["left", "L", "lt", "right", "R", "links", "gauche"])
)
def test_a_second_side_never_wins(pair: tuple[str, str], word: str) -> None:
    name, organ = pair
    other = "_L" if word[0] in "Ll" else "_R"
    told = match(f"{name} {word}", VOCAB)
    assert told.organ is None or (told.organ == organ and organ.endswith(other))


@given(st.text(max_size=40))
def test_any_text_gives_an_organ_a_question_or_nothing(raw: str) -> None:
    told = match(raw, VOCAB)
    assert told.organ is None or told.organ in VOCAB
    assert set(told.candidates) <= set(VOCAB)
    assert told.organ is None or not told.candidates
    if resolve(raw, VOCAB) is None and told.organ:
        assert not told.plain


# --------------------------------------------------------------------------------------------------
# What is asked, and what is said


@pytest.mark.parametrize(
    ("raw", "candidates"),
    [
        ("Parotid", ("Parotid_L", "Parotid_R")),
        ("Parotis sin", ("Parotid_L", "Parotid_R")),
        ("parotid d", ("Parotid_L", "Parotid_R")),
        ("re parotid", ("Parotid_L", "Parotid_R")),
        ("contralateral parotid", ("Parotid_L", "Parotid_R")),
        ("ON", ("OpticNrv_L", "OpticNrv_R")),
        ("Submandibular I", ("Glnd_Submand_L", "Glnd_Submand_R")),
        ("Opt Nerve L", ("OpticNrv_L",)),
        ("Opt Chiasm", ("OpticChiasm",)),
        ("Paortid_L", ("Parotid_L",)),
        ("Parotid_L_JS", ("Parotid_L",)),
        ("PAROTID LEFT COPY", ("Parotid_L",)),
        ("_Parotid_L", ("Parotid_L",)),
        ("Parotid_L?", ("Parotid_L",)),
    ],
)
def test_what_is_not_plain_is_asked(raw: str, candidates: tuple[str, ...]) -> None:
    told = match(raw, VOCAB)
    assert (told.organ, told.candidates, told.ask) == (None, candidates, True)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("Brainstem_PRV03", "margin"),
        ("SpinalCord_05", "margin"),
        ("SpinalCord+5mm", "margin"),
        ("Parotid_L-PTV70", "target"),
        ("zParotid_L", "optimisation"),
        ("Parotid_L_opt", "optimisation"),
        ("ring Larynx", "ring"),
        ("ringparotidl", "helper"),
        ("Parotid avoid L", "avoidance"),
        ("~Parotid_L", "part"),
        ("Parotids", "both sides"),
        ("Parotid L+R", "both sides"),
        ("left parotid right", "both sides"),
        ("Mandible_L", "one side of Bone_Mandible"),
        ("PCM", "all levels"),
        ("PharynxConst", "all levels"),
        ("Larynx-Esophagus", "several organs"),
        ("Larynx_SG", "another structure"),
        ("larynx_air", "another structure"),
        ("vocal cord", "another structure"),
        ("SpinalCanal", "another structure"),
        ("BODY", "no organ"),
        ("Pharynx", "no organ"),
        ("", "no organ"),
    ],
)
def test_what_is_no_organ_is_said_and_not_asked(raw: str, why: str) -> None:
    told = match(raw, VOCAB)
    assert told.organ is None
    assert not told.ask, told
    assert why in told.why


def test_the_answers_of_the_site_come_first() -> None:
    answers = {
        "Parotid_L": ["Parotid", "z_par", "PTV-like thing"],
        "none": ["Parotid_R", "cord"],
        "Cochlea_L": ["Larynx"],
    }
    assert match("PAROTID", VOCAB, answers).organ == "Parotid_L"
    assert match("z par", VOCAB, answers).organ == "Parotid_L"
    assert match("Rt Parotid", VOCAB, answers).organ is None
    assert not match("Rt Parotid", VOCAB, answers).ask
    assert match("cord", VOCAB, answers).organ is None
    assert match("Spinal Cord", VOCAB, answers).organ == "SpinalCord"
    assert match("Larynx", VOCAB, answers).organ == "Larynx"
    both = {"Parotid_L": ["par"], "Parotid_R": ["PAR"]}
    assert match("par", VOCAB, both).candidates == ("Parotid_L", "Parotid_R")


def test_a_plans_own_organs_are_asked_about_too() -> None:
    vocab = vocabulary({"Lens_L": None, "Lens_R": None, "Brainstem_PRV03": None})
    assert match("lens lt", vocab).organ == "Lens_L"
    assert match("Lens", vocab).candidates == ("Lens_L", "Lens_R")
    assert match("brainstem prv03", vocab).organ == "Brainstem_PRV03"


# --------------------------------------------------------------------------------------------------
# The structures of a case


def test_the_plainer_name_is_taken_and_equals_are_not() -> None:
    names = ["Larynx_MD", "Larynx", "Lt Parotid", "Parotid_L", "GTV", "Mandible^1", "Parotid"]
    found = assign(names, matcher(VOCAB))
    assert found.organs == {"Larynx": 1, "Bone_Mandible": 5}
    assert found.doubled == {"Parotid_L": (2, 3)}
    assert found.unknown == ("GTV", "Parotid")
    assert found.passed_over == (("Larynx", "Larynx_MD"),)


@pytest.mark.parametrize(("label", "organ"), TOTAL_SEGMENTATOR.items())
def test_labels_of_totalsegmentator(label: str, organ: str | None) -> None:
    assert match(label, VOCAB).organ == organ
    page = (Path(__file__).resolve().parents[3] / "docs" / "compare-with.md").read_text()
    assert f"`{label}`" in page
