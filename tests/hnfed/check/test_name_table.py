from __future__ import annotations

from omegaconf import OmegaConf

from core.archives.name_matching import match
from core.organs.vocabulary import vocabulary
from hnfed.check.name_table import name_json, name_rows, name_text

VOCAB = vocabulary()
NAMES = {"GTV": 9, "Parotis": 3, 'Larynx "x"': 1, "Lt Parotid": 4, "BrainStem": 9}


def test_the_table_says_what_every_name_means() -> None:
    rows = name_rows(NAMES, VOCAB)
    assert [(r.name, r.cases, r.kind) for r in rows] == [
        ("Parotis", 3, "ask"),
        ("BrainStem", 9, "organ"),
        ("Lt Parotid", 4, "organ"),
        ("GTV", 9, "no"),
        ('Larynx "x"', 1, "no"),
    ]
    text = name_text(rows)
    assert "? Parotid_L or Parotid_R" in text
    assert "5 names: 2 are organs, 1 are asked, 2 are no organ." in text
    told = name_json(rows)
    assert told[0]["candidates"] == ["Parotid_L", "Parotid_R"]
    assert (told[1]["organ"], told[1]["cases"]) == ("Brainstem", 9)


def test_the_lines_for_the_site_file_are_yaml_and_answer_the_question() -> None:
    rows = name_rows({'Par\\otid "old" L': 1, "Parotid": 2}, VOCAB)
    text = name_text(rows)
    answers = OmegaConf.to_container(OmegaConf.create(text[text.index("aliases:") :]))["aliases"]
    assert set(answers) == {"Parotid_L", "Parotid_R", "none"}
    assert set(answers["none"]) == {"Parotid", *answers["Parotid_L"], *answers["Parotid_R"]}
    assert "Parotid" in answers["Parotid_L"]
    assert "Parotid" in answers["Parotid_R"]
    chosen = {"Parotid_R": answers["Parotid_R"]}
    assert match("Parotid", VOCAB, chosen).organ == "Parotid_R"


def test_answered_names_are_asked_no_more() -> None:
    rows = name_rows(NAMES, VOCAB, {"Parotid_R": ["Parotis"]})
    assert "ask" not in {r.kind for r in rows}
    assert "aliases:" not in name_text(rows)
