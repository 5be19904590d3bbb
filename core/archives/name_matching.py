"""What a structure's name in an archive means: an organ, a question for the site, or none.

Taken for an organ is a name that spells one (`core.organs.vocabulary.resolve`), also with words
beside it that say nothing about what was contoured (`core.archives.name_words.HARMLESS`:
`Larynx_MD`, `larynx (all)`, `Mandible^1`). A side is read, never guessed; margins, targets, rings,
avoidance and helper structures, parts and sums of organs are never taken. What may be an organ but
does not say so plainly is asked: the site answers under `aliases` of its site file, where `none`
lists the names that are no organ.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from core.archives.name_words import BOTH, HARMLESS, HELPERS, OTHERS, RELATIVE
from core.organs.synonyms import CONSTRICTORS
from core.organs.tokens import SIDE_OF, Index, find, index_of, words_of
from core.organs.vocabulary import BUILT_IN, Organ, mirrored, spelled, vocabulary, vocabulary_index

NONE = "none"
DOUBT = re.compile(r"^[\s_]*~|^_|[?+]")
COPY_NUMBER = re.compile(r"\^[12]\s*$")
SHORTEST_PART, LONGEST_NAME, MOST_WORDS = 4, 64, 7
LIKENESS = 0.84
WHOLE = (("Musc_Constrict", tuple(b for bases in CONSTRICTORS.values() for b in bases)),)


@dataclass(frozen=True)
class Match:
    """What one name means.

    Attributes:
        organ: TG-263 name; None where the name is not taken for an organ.
        why: one short phrase.
        candidates: organs that it may mean, where the site is asked; empty elsewhere.
        plain: True where the whole name spells the organ, False where words were passed over.
    """

    organ: str | None
    why: str
    candidates: tuple[str, ...] = ()
    plain: bool = True

    @property
    def ask(self) -> bool:
        """True where the site is to answer."""
        return bool(self.candidates)


def match(
    name: str, vocabulary: Mapping[str, Organ], answers: Mapping[str, Sequence[str]] | None = None
) -> Match:
    """Says what a structure's name means.

    Args:
        name: as it stands in the archive (of a file: without its extension).
        vocabulary: organs by TG-263 name, from `core.organs.vocabulary.vocabulary`.
        answers: the site's `aliases`: names by TG-263 name, and under ``none`` those that mean no
            organ. They come before everything else.

    Example:
        >>> from core.organs.vocabulary import vocabulary
        >>> match("Parotis re", vocabulary()).organ
        'Parotid_R'
        >>> match("Parotis", vocabulary()).candidates
        ('Parotid_L', 'Parotid_R')
        >>> match("Parotis re PRV", vocabulary())
        Match(organ=None, why="a planning margin ('prv')", candidates=(), plain=True)
    """
    if answers and (told := _answer(name, vocabulary, answers)):
        return told
    words = words_of(name)
    found = _sorted(spelled(name, vocabulary), vocabulary)
    if DOUBT.search(name):
        return _doubtful(name, words, found, vocabulary)
    if len(found) == 1:
        return Match(found[0], "by name")
    if found:
        return Match(None, "a spelling of several organs", found)
    index = vocabulary_index(vocabulary)
    kept = tuple(w for w in words_of(COPY_NUMBER.sub("", name)) if w not in HARMLESS)
    found = _sorted(find(index, kept), vocabulary)
    if len(found) == 1:
        return Match(found[0], "by name, words that do not matter left out", (), False)
    return _unknown(name, kept, index, vocabulary)


def matcher(
    vocabulary: Mapping[str, Organ], answers: Mapping[str, Sequence[str]] | None = None
) -> Callable[[str], Match]:
    """`match` for the many names of an archive: each name is looked at once."""
    known: dict[str, Match] = {}
    ask = partial(match, vocabulary=vocabulary, answers=answers)
    return lambda name: known[name] if name in known else known.setdefault(name, ask(name))


@dataclass(frozen=True)
class Assignment:
    """The structures of one case, by what their names mean.

    Attributes:
        organs: position of its name, by organ.
        doubled: positions of the names of an organ that several names mean; none is taken.
        unknown: names that are not taken for an organ, those to be asked among them.
        passed_over: names that mean an organ, but less plainly than the one that is taken.
    """

    organs: Mapping[str, int]
    doubled: Mapping[str, tuple[int, ...]]
    unknown: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...]


def assign(names: Sequence[str], lookup: Callable[[str], Match]) -> Assignment:
    """Gives each organ its one structure.

    Of several names for an organ the only one that spells it plainly is taken (`Larynx` before
    `Larynx_MD`); where that leaves several, none is.

    Args:
        names: of the structures of one case.
        lookup: from `matcher`.
    """
    claims: dict[str, list[int]] = {}
    unknown = []
    for i, name in enumerate(names):
        organ = lookup(name).organ
        if organ is None:
            unknown.append(name)
        else:
            claims.setdefault(organ, []).append(i)
    organs, doubled, passed_over = {}, {}, []
    for organ, places in sorted(claims.items()):
        plain = [i for i in places if lookup(names[i]).plain]
        chosen = plain if len(plain) == 1 else places
        if len(chosen) == 1:
            organs[organ] = chosen[0]
            passed_over += [(organ, names[i]) for i in places if i != chosen[0]]
        else:
            doubled[organ] = tuple(chosen)
    return Assignment(organs, doubled, tuple(unknown), tuple(passed_over))


def _answer(
    name: str, vocabulary: Mapping[str, Organ], answers: Mapping[str, Sequence[str]]
) -> Match | None:
    if find(index_of(((NONE, tuple(answers.get(NONE, ()))),)), words_of(name)):
        return Match(None, "no organ, as the site says")
    known = {o: tuple(s) for o, s in answers.items() if o in vocabulary}
    found = find(index_of(tuple(known.items())), words_of(name))
    if len(found) == 1:
        return Match(next(iter(found)), "as the site says")
    if found:
        return Match(None, "an alias of several organs", _sorted(found, vocabulary))
    return None


def _doubtful(
    name: str, words: tuple[str, ...], matches: tuple[str, ...], vocabulary: Mapping[str, Organ]
) -> Match:
    if "~" in name:
        return Match(None, "a part of a structure ('~')")
    if helper := _helper(words):
        return Match(None, helper)
    if len({SIDE_OF[w] for w in words if w in SIDE_OF}) > 1:
        return Match(None, "both sides in one structure")
    if re.search(r"\d", name) and _margin(name):
        return Match(None, "a number with a sign: a planning margin")
    return Match(None, "marked by a sign (_ ? +)", matches) if matches else Match(None, "no organ")


def _unknown(
    name: str, words: tuple[str, ...], index: Index, vocabulary: Mapping[str, Organ]
) -> Match:
    """Of a name that spells no organ: what else it is, or which organs to ask about."""
    if len(name) > LONGEST_NAME or len(words) > MOST_WORDS or not words:
        return Match(None, "no organ")
    sides = {SIDE_OF[w] for w in words if w in SIDE_OF}
    if bare := _sideless(words, index):
        return Match(None, "no side that can be read", _sorted(bare, vocabulary))
    rest = tuple(w for w in words if w not in SIDE_OF)
    near = _parts(words, index)
    optic = "opt" in words and any(o.startswith("Optic") for o in near | _optic(rest, index))
    if not optic and (helper := _helper(words)):
        return Match(None, helper)
    if len(sides) > 1 or BOTH & set(words) or _plural(words, index):
        return Match(None, "both sides in one structure")
    if other := [w for w in words if w in OTHERS]:
        return Match(None, f"another structure, or a part ({other[0]!r})")
    near |= _optic(rest, index) if optic else frozenset()
    if find(index_of(WHOLE), rest):
        return Match(None, "all levels of the constrictors in one structure")
    if sides and (halved := find(index, rest)):
        return Match(None, f"one side of {', '.join(sorted(halved))}, which has none")
    if len({_unsided(o) for o in near}) > 1 and not optic:
        return Match(None, "several organs in one name")
    if not near and _glued_helper("".join(words), index):
        return Match(None, "a helper structure")
    if near and any(re.search(r"\d", w) for w in words) and _margin(name):
        return Match(None, "a number beside the organ: a planning margin")
    reason = "a word beside the organ that may change it"
    if RELATIVE & set(words):
        reason = "a side relative to the tumour"
    elif not near:
        near, reason = _alike(words, index), "spelt much like an organ"
    near = frozenset(o for o in near if not sides or _side(o) in ("", *sides))
    return Match(None, reason, _sorted(near, vocabulary)) if near else Match(None, "no organ")


def _helper(words: Iterable[str]) -> str:
    """What kind of helper structure a name with these words is; "" for none."""
    for i, word in enumerate(words):
        letters = re.sub(r"\d+", "", word)
        kind = HELPERS.get(letters) or (
            HELPERS["z"] if not i and re.match("z+[a-z]{4}", word) else ""
        )
        if kind and letters:
            return f"{kind} ({word!r})"
        for start in ("prv", "ptv", "ctv", "gtv", "itv", "avoid"):
            if start in word:
                return f"{HELPERS[start]} ({start!r})"
    return ""


def _glued_helper(text: str, index: Index) -> bool:
    """True for a helper word run together with an organ: `ringparotidl`."""
    return any(
        find(index, (rest,))
        for word in HELPERS
        for rest in (text.removeprefix(word), text.removesuffix(word))
        if rest != text
    )


def _margin(name: str) -> bool:
    return bool(re.search(r"(?<!\d)0\d|\d\s*(mm|cm)\b|[-+]\s*\d", name.lower()))


def _sideless(words: tuple[str, ...], index: Index) -> frozenset[str]:
    """Both organs of a pair, for a name that spells them but for the side."""
    kept = tuple(sorted(w for w in words if w not in RELATIVE))
    text = "".join(words)
    either = index.joined.get(("l", text)), index.joined.get(("r", text))
    if any(w in RELATIVE for w in words):
        return frozenset()
    return index.sideless.get(kept, frozenset()).union(*(e for e in either if e))


def _plural(words: tuple[str, ...], index: Index) -> bool:
    """True for `parotids`, `optic nerves`."""
    single = [tuple(w.removesuffix("s") if j == i else w for j, w in enumerate(words))
              for i in range(len(words)) if words[i].endswith("s")]  # fmt: skip
    return any(_sideless(s, index) for s in single)


def _parts(words: tuple[str, ...], index: Index) -> frozenset[str]:
    """Organs that some of the words spell, with or without a side."""
    found: frozenset[str] = frozenset()
    used: set[str] = set()
    for size in range(len(words) - 1, 0, -1):
        for part in combinations(words, size):
            if used & {w for w in part if w not in SIDE_OF} or sum(map(len, part)) < SHORTEST_PART:
                continue
            organs = find(index, part) or index.sideless.get(tuple(sorted(part)), frozenset())
            if organs:
                found |= organs
                used |= {w for w in part if w not in SIDE_OF}
    return found


def _optic(rest: tuple[str, ...], index: Index) -> frozenset[str]:
    """Organs that the words spell with `optic` for `opt`: it may be short for either."""
    words = tuple("optic" if w == "opt" else w for w in rest)
    if words == rest:
        return frozenset()
    return find(index, words) or index.sideless.get(tuple(sorted(words)), frozenset())


def _alike(words: tuple[str, ...], index: Index) -> frozenset[str]:
    """Organs with a spelling that a slip of the pen makes of the name."""
    text = "".join(sorted((w for w in words if w not in SIDE_OF), key=len, reverse=True))
    if len(text) < 6:
        return frozenset()
    texts = {t for _, t in index.joined if abs(len(t) - len(text)) <= 2 and t[0] == text[0]}
    near = difflib.get_close_matches(text, texts, n=2, cutoff=LIKENESS)
    return frozenset(
        o for t in near for side in ("", "l", "r") for o in index.joined.get((side, t), ())
    )


def _side(organ: str) -> str:
    return organ[-1].lower() if mirrored(organ) != organ else ""


def _unsided(organ: str) -> str:
    return organ[:-2] if _side(organ) else organ


def _sorted(organs: Iterable[str], vocabulary: Mapping[str, Organ]) -> tuple[str, ...]:
    wanted = set(organs)
    return tuple(organ for organ in vocabulary if organ in wanted)


def vocabulary_at_site(
    extra: Mapping[str, Any] | None, own: Mapping[str, Sequence[str]]
) -> dict[str, Organ]:
    """The organs by which a site's structures are recognised: its own words, none of the plan's.

    A plan comes from elsewhere: with a spelling of its choosing it could take other structures for
    an organ that the site allows, or learn which names exist. Of a plan's own organs only those
    count that the site's file names under `aliases`; all spellings beyond the built-in ones and the
    organ's name are the site's.

    Args:
        extra: the plan's `organs`.
        own: the site's `aliases`.

    Raises:
        UserError: as `vocabulary`.
    """
    return vocabulary({name: None for name in extra or {} if name in own and name not in BUILT_IN})
