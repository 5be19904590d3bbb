from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.archives.name_matching import vocabulary_at_site
from core.errors import UserError
from core.organs.vocabulary import (
    BUILT_IN,
    NINE,
    PCM,
    require_known,
    resolve,
    vocabulary,
)

VOCAB = vocabulary()

PDDCA = {
    "BrainStem": "Brainstem",
    "Chiasm": "OpticChiasm",
    "Mandible": "Bone_Mandible",
    "OpticNerve_L": "OpticNrv_L",
    "OpticNerve_R": "OpticNrv_R",
    "Parotid_L": "Parotid_L",
    "Parotid_R": "Parotid_R",
    "Submandibular_L": "Glnd_Submand_L",
    "Submandibular_R": "Glnd_Submand_R",
}
OPENKBP = {
    "Brainstem": "Brainstem",
    "LeftParotid": "Parotid_L",
    "RightParotid": "Parotid_R",
    "Mandible": "Bone_Mandible",
    "Larynx": "Larynx",
    "Esophagus": "Esophagus",
    "SpinalCord": "SpinalCord",
}
HOSPITAL = {
    "Lt Parotid": "Parotid_L",
    "PAROTID_RT": "Parotid_R",
    "parotid gland, left": "Parotid_L",
    "R. Parotid": "Parotid_R",
    "LParotid": "Parotid_L",
    "lt optic nerve": "OpticNrv_L",
    "ON_R": "OpticNrv_R",
    "SMG LT": "Glnd_Submand_L",
    "Right Submandibular Gland": "Glnd_Submand_R",
    "submand_l": "Glnd_Submand_L",
    "Optic Chiasm": "OpticChiasm",
    "SPINAL CORD": "SpinalCord",
    "cord": "SpinalCord",
    "Rueckenmark": "SpinalCord",
    "Parotis re.": "Parotid_R",
    "Parotide G": "Parotid_L",
    "parótida izquierda": "Parotid_L",
    "Oesophagus": "Esophagus",
    "Œsophagus".replace("Œ", "Oe"): "Esophagus",
    "Sup_PCM": "Musc_Constrict_S",
    "PCM_M": "Musc_Constrict_M",
    "Inferior Pharyngeal Constrictor": "Musc_Constrict_I",
    "pharynx_const_sup": "Musc_Constrict_S",
    "brain  stem": "Brainstem",
}
REFUSED = [
    "Parotid",
    "Parotids",
    "parotid_l_r",
    "left parotid right",
    "Mandible_L",
    "Brainstem_R",
    "PCM",
    "Musc_Constrict",
    "Submandibular",
    "Brainstem_PRV",
    "PRV_Brainstem",
    "Brainstem_PRV03",
    "BrainstemPRV",
    "SpinalCord_05",
    "Ring_Parotid_L",
    "ringparotidl",
    "avoid parotid L",
    "Parotid_L_avoid",
    "z_parotid_l",
    "zParotid_L",
    "zzParotid_L",
    "opt_parotid_l",
    "Parotid_L_opt",
    "Opt Nerve L",
    "Parotid_L-PTV",
    "Parotid_L sub",
    "Parotid_L2",
    "contralateral parotid",
    "ipsi parotid",
    "Ron",
    "re parotid",
    "Parotid D",
    "Submandibular I",
    "vocal cord",
    "",
    "___",
    "耳",
]


@pytest.mark.parametrize(("raw", "organ"), [*PDDCA.items(), *OPENKBP.items(), *HOSPITAL.items()])
def test_known_spellings_resolve(raw: str, organ: str) -> None:
    assert resolve(raw, VOCAB) == organ


@pytest.mark.parametrize("raw", REFUSED)
def test_what_is_another_structure_or_has_no_side_is_refused(raw: str) -> None:
    assert resolve(raw, VOCAB) is None


def test_built_in_organs_are_those_that_others_rely_on() -> None:
    assert set(NINE) == set(PDDCA.values())
    assert PCM == ("Musc_Constrict_S", "Musc_Constrict_M", "Musc_Constrict_I")
    assert set(BUILT_IN) == {*NINE, *PCM, "Larynx", "Esophagus", "SpinalCord"}
    assert all(name == organ.name for name, organ in BUILT_IN.items())
    assert len({organ.colour for organ in BUILT_IN.values()}) == len(BUILT_IN)


def test_each_built_in_spelling_means_its_own_organ() -> None:
    for name, organ in BUILT_IN.items():
        for spelling in (name, *organ.aliases):
            assert resolve(spelling, VOCAB) == name, spelling


def test_no_spelling_of_a_paired_organ_resolves_without_its_side() -> None:
    for name in (n for n in BUILT_IN if n.endswith(("_L", "_R"))):
        for spelling in (name.replace("_", " "), *BUILT_IN[name].aliases):
            bare, side = spelling.rsplit(" ", 1)
            assert len(side) <= 4, spelling
            assert resolve(bare, VOCAB) is None, bare
            assert resolve(bare.replace(" ", ""), VOCAB) is None, bare


SPELLINGS = [(name, s) for name, o in BUILT_IN.items() for s in o.aliases if " " in s]


@given(data=st.data())
def test_case_order_and_separators_do_not_count(data: st.DataObject) -> None:
    name, spelling = data.draw(st.sampled_from(SPELLINGS))
    words = data.draw(st.sampled_from(sorted(set(permutations(spelling.split())))))
    separator = data.draw(st.sampled_from([" ", "_", "-", ".", "  ", "_ "]))
    change = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    assert resolve(change(separator.join(words)), VOCAB) == name


@given(data=st.data())
def test_an_unknown_word_more_is_another_structure(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BUILT_IN)))
    word = data.draw(
        st.sampled_from(["PRV", "ring", "avoid", "z", "opt", "05", "copy", "ptv", "x"])
    )
    first = data.draw(st.booleans())
    separator = data.draw(st.sampled_from(["_", " ", ""]))
    raw = separator.join((word, name) if first else (name, word))
    assert resolve(raw, VOCAB) is None


@given(st.text(max_size=30))
def test_any_text_gives_an_organ_or_none(raw: str) -> None:
    assert resolve(raw, VOCAB) in {None, *BUILT_IN}


def test_site_aliases_are_read_first_and_only_for_known_organs() -> None:
    aliases = {"Parotid_L": ["OhrspeichelD links", "z_par"], "Cochlea_L": ["schnecke"]}
    assert resolve("ohrspeicheld_LINKS", VOCAB, aliases) == "Parotid_L"
    assert resolve("z_par", VOCAB, aliases) == "Parotid_L"
    assert resolve("schnecke", VOCAB, aliases) is None
    assert resolve("Mandible", VOCAB, {"Larynx": ["mandible"]}) == "Larynx"


def test_an_alias_of_two_organs_is_not_guessed() -> None:
    assert resolve("par", VOCAB, {"Parotid_L": ["par"], "Parotid_R": ["PAR"]}) is None


def test_a_plans_own_organ_resolves_in_all_its_spellings() -> None:
    vocab = vocabulary(
        {"Cochlea_L": {"aliases": ["Inner Ear L"], "colour": [1, 2, 3]}, "Lips": None}
    )
    assert vocab["Cochlea_L"].colour == (1, 2, 3)
    assert resolve("LeftCochlea", vocab) == "Cochlea_L"
    assert resolve("inner_ear_lt", vocab) == "Cochlea_L"
    assert resolve("Cochlea_R", vocab) is None
    assert resolve("lips", vocab) == "Lips"
    assert all(0 <= c <= 255 for c in vocab["Lips"].colour)
    assert list(vocab)[: len(BUILT_IN)] == list(BUILT_IN)


def test_a_plan_may_name_a_prv_of_its_own() -> None:
    vocab = vocabulary({"Brainstem_PRV03": None})
    assert resolve("brainstem prv03", vocab) == "Brainstem_PRV03"
    assert resolve("brainstem", vocab) == "Brainstem"


def test_a_built_in_organ_gets_further_aliases() -> None:
    vocab = vocabulary({"Brainstem": {"aliases": ["Agytörzs"]}})
    assert resolve("agytorzs", vocab) == "Brainstem"
    assert resolve("brain_stem", vocab) == "Brainstem"
    assert vocab["Brainstem"].colour == BUILT_IN["Brainstem"].colour
    assert resolve("agytorzs", VOCAB) is None


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"../x": None}, "../x"),
        ({"": None}, "TG-263"),
        ({"Lens_L": {"color": [1, 2, 3]}}, "colour"),
        ({"Lens_L": {"colour": [1, 2]}}, "three whole numbers"),
        ({"Lens_L": {"colour": [1, 2, 256]}}, "256"),
        ({"Lens_L": {"aliases": "lens"}}, "list of names"),
        ({"Lens_L": {"aliases": ["--"]}}, "list of names"),
        ({"Lens_L": 3}, "mapping"),
        ({"Lens_L": {"aliases": ["Lt Parotid"]}}, "Parotid_L"),
        ({"parotid_l": None}, "Parotid_L"),
    ],
)
def test_an_unusable_own_organ_is_refused(extra: dict[str, object], fault: str) -> None:
    with pytest.raises(UserError, match="remedy") as error:
        vocabulary(extra)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("name", "near"), [("BrainStem", "Brainstem"), ("Parotid_l", "Parotid_L"), ("Larinx", "Larynx")]
)
def test_an_unknown_organ_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}"):
        require_known(["Parotid_R", name], VOCAB, "phases.a.organs")


def test_known_organs_pass() -> None:
    require_known(BUILT_IN, VOCAB, "organs")


def test_at_a_site_the_plans_spellings_mean_nothing() -> None:
    sent = {
        "Larynx": {"aliases": ["HIV Status", "GTV primary"]},
        "Spying": {"aliases": ["Jane Doe"], "colour": [1, 2, 3]},
    }
    assert resolve("HIV Status", vocabulary(sent)) == "Larynx"
    vocab = vocabulary_at_site(sent, {})
    for name in ("HIV Status", "GTV primary", "Jane Doe", "Spying"):
        assert resolve(name, vocab) is None
    assert resolve("larynx", vocab) == "Larynx"
    own = {"Spying": ["lens z"], "Larynx": ["Kehlkopf x"]}
    vocab = vocabulary_at_site(sent, own)
    assert resolve("Jane Doe", vocab, own) is None
    assert resolve("lens z", vocab, own) == "Spying"
    assert resolve("Kehlkopf x", vocab, own) == "Larynx"
    assert list(vocab)[:1] == list(BUILT_IN)[:1]
