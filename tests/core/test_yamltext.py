"""What stands in a file is what is read: no number for a name, no truth for a word."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.yamltext import dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("y", "y"), ("n", "n"),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("0", 0), ("-7", -7), ("12345678901234567890", 12345678901234567890),
        ("0.1", 0.1), ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-2.5e-3", -0.0025),
        ("3e-05", 3e-5),
        (".inf", math.inf), ("2026-01-31", "2026-01-31"), ("1.2.840.10008", "1.2.840.10008"),
        ("pt_007", "pt_007"), ("007a", "007a"), ("'010'", "010"), ('"1:30"', "1:30"), ("1e", "1e"),
        ("[4, '04']", [4, "04"]), ("!!str 010", "010"), ("a:b", "a:b"), ("=", "="),
    ],
)  # fmt: skip
def test_a_plain_value_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = parse(f"v: {text}")["v"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "010", "001", "08", "00", "-010", "01.5", "0.1_5", "1_000", "1:30", "1:30:00",
        "190:20:30.15",
        "0x1F", "0o17", "0b11", "+5", "+.5", "-0", "!!int '010'", "!!int '0x1F'", "!!float '1_0.5'",
        "!!float 010", "!!bool yes", "1" * 50,
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["v: {}", "- [{}]", "{{a: {}}}", "{}: 1", "a: &x {}\nb: *x"])
def test_what_programs_read_as_different_numbers_is_refused(text: str, form: str) -> None:
    if form == "{}: 1" and ":" in text:
        form = "? {}\n: 1"
    with pytest.raises(UserError, match="line 1") as caught:
        parse(form.format(text))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "!!timestamp 2026-01-31", "!!set {a}", "!!python/object/apply:os.getcwd []",
     "!x 1", "a: [", "a: 1\n---\nb: 2"],
)  # fmt: skip
def test_what_is_no_plain_document_is_no_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse(text)


def test_aliases_name_a_value_again_and_do_not_multiply() -> None:
    assert parse("a: &x {n: 1}\nb: *x\nc: {<<: *x, n: 2}") == {
        "a": {"n": 1}, "b": {"n": 1}, "c": {"n": 2},
    }  # fmt: skip
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    for text in (bomb, "a: &a [*a]"):
        with pytest.raises(UserError, match="too many values"):
            parse(text)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.from_regex(r"\A[-+]?0?[0-9_:.eExo]{1,6}\Z")
    | st.sampled_from(["no", "On", "y", "~", "null", "<<", "=", "2026-01-31", "0o7", "1:30"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@example({"\x85": None})
@example(["a\u2028b", "\u2029"])
@given(PLAIN)
def test_what_is_written_is_read_as_the_same(value: Any) -> None:
    text = dump({"v": value})
    assert parse(text) == {"v": value}
    assert repr(parse(text)) == repr({"v": value})


@given(st.text(alphabet="0123456789+-_:.eExob", min_size=1, max_size=8))
def test_a_number_that_is_read_is_the_one_that_a_person_sees(text: str) -> None:
    try:
        found = parse(f"v: {text}")
    except (UserError, yaml.YAMLError):
        return
    value = found["v"] if isinstance(found, dict) and "v" in found else None
    if isinstance(value, int):
        assert str(value) == text
    elif isinstance(value, float):
        assert value == float(text.replace(".inf", "inf"))


def test_a_long_text_costs_nothing_and_many_values_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """`a: [1,1,...` of 2 MB took a minute and a gigabyte."""
    monkeypatch.setattr("core.yamltext.MOST_SIGNS", 1000)
    with pytest.raises(UserError, match="1001 characters"):
        parse("a: [" + " " * 997)
    assert parse("a: []" + " " * 995) == {"a": []}
    monkeypatch.setattr("core.yamltext.MOST_NODES", 50)
    with pytest.raises(UserError, match="too many values"):
        parse("a: [" + "1," * 200 + "}")  # the error behind them is not come to
