"""Names taken apart into words: how `core.organs.vocabulary` compares them with spellings.

A name is compared whole. Case, word order, spaces, underscores, punctuation and accents do not
count, nor which word says the side, nor whether words are run together (`leftparotid`,
`PAROTID_LT`, `Lt Parotid`); a word too many is another name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import TypeVar

from core.organs.synonyms import SIDES

SIDE_OF: dict[str, str] = {word: side for side, words in SIDES.items() for word in words}
SHORTEST, MOST_PERMUTED = 3, 5

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LIGATURES = str.maketrans({"œ": "oe", "Œ": "Oe", "æ": "ae", "Æ": "Ae", "ß": "ss", "ø": "o"})
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})

Words = tuple[str, ...]
_NONE: frozenset[str] = frozenset()
Key = TypeVar("Key")


@dataclass(frozen=True)
class Index:
    """Spellings, ready to be looked up.

    Attributes:
        words: organs by the sorted words of a spelling, a side as ``l`` or ``r``.
        joined: organs by side (``""``, ``l``, ``r``) and the other words run together.
        sideless: organs by the sorted words of a spelling without its side.
    """

    words: Mapping[Words, frozenset[str]]
    joined: Mapping[tuple[str, str], frozenset[str]]
    sideless: Mapping[Words, frozenset[str]]


@lru_cache(maxsize=16384)
def words_of(name: str) -> Words:
    """The lower-case words of a name; run-together capitals (`LeftParotid`, `LParotid`) are cut."""
    plain = unicodedata.normalize("NFKD", name.translate(_LIGATURES))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return tuple(re.findall(r"[^\W_]+", _CAMEL.sub(" ", plain).lower()))


@lru_cache(maxsize=64)
def index_of(spellings: tuple[tuple[str, tuple[str, ...]], ...]) -> Index:
    """Makes an index of (organ, its spellings)."""
    words: dict[Words, set[str]] = {}
    joined: dict[tuple[str, str], set[str]] = {}
    sideless: dict[Words, set[str]] = {}
    for organ, texts in spellings:
        for variant in {w for text in texts for w in _variants(text)}:
            words.setdefault(sided(variant), set()).add(organ)
            sides = [SIDE_OF[w] for w in variant if w in SIDE_OF]
            others = tuple(w for w in variant if w not in SIDE_OF)
            if sides:
                sideless.setdefault(tuple(sorted(others)), set()).add(organ)
            if len(sides) > 1 or len("".join(others)) < SHORTEST:  # "ON": not amid a word
                continue
            for text in _run_together(others):
                joined.setdefault(("".join(sides), text), set()).add(organ)
    return Index(_frozen(words), _frozen(joined), _frozen(sideless))


def find(index: Index, words: Words) -> frozenset[str]:
    """The organs that a name of these `words`, as `words_of` gives them, spells; mostly one."""
    if not words:
        return _NONE
    found = index.words.get(sided(words), _NONE)
    for side, text in _sided_texts("".join(words)):
        found |= index.joined.get((side, text), _NONE)
    if len(words) > 1:  # the side run together with one of the words
        for i, word in enumerate(words):
            for side, rest in _sided_texts(word):
                if side and len(rest) >= SHORTEST:
                    more = sided((*words[:i], rest, side, *words[i + 1 :]))
                    found |= index.words.get(more, _NONE)
    return found


def sided(words: Sequence[str]) -> Words:
    """Sorted words, each side word as ``l`` or ``r``."""
    return tuple(sorted(SIDE_OF.get(word, word) for word in words))


def _sided_texts(text: str) -> Iterable[tuple[str, str]]:
    """(side, rest) for each way in which a text may begin or end with a side word, or has none."""
    yield "", text
    for word, side in SIDE_OF.items():
        if len(text) > len(word):
            if text.startswith(word):
                yield side, text[len(word) :]
            if text.endswith(word):
                yield side, text[: -len(word)]


def _variants(text: str) -> set[Words]:
    return {words_of(text), words_of(unicodedata.normalize("NFC", text).translate(_UMLAUTS))}


def _run_together(words: Words) -> set[str]:
    orders = permutations(words) if len(words) <= MOST_PERMUTED else iter([words])
    return {"".join(order) for order in orders}


def _frozen(table: Mapping[Key, set[str]]) -> dict[Key, frozenset[str]]:
    return {key: frozenset(value) for key, value in table.items()}
