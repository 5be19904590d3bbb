"""Organs: TG-263 names, their spellings in archives, colours. Names are resolved here only.

A spelling is compared as a set of words, whole: a word too many (`PRV`, `ring`, `avoid`, `z`,
`opt`, `05`) makes another structure, which is refused. Case, word order, spaces, underscores and
punctuation do not count, nor whether words are run together (`leftparotid`, `PAROTID_LT`,
`Lt Parotid`). A side is read, never guessed.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from core.errors import UserError

_SIDES = {"l": "l", "lt": "l", "left": "l", "r": "r", "rt": "r", "right": "r"}
_SIDE_WORDS = {"l": ("left", "lt", "l"), "r": ("right", "rt", "r")}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_~+-]{0,63}")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Organ:
    """An organ of a plan.

    Attributes:
        name: TG-263 name, such as ``Parotid_L``.
        aliases: other spellings; one word order and one side word stand for all.
        colour: red, green, blue, 0 to 255.
    """

    name: str
    aliases: tuple[str, ...]
    colour: tuple[int, int, int]


def _levels(words: Sequence[str]) -> tuple[str, ...]:
    """Spellings of one of the three pharyngeal constrictors; `words` are those of its level."""
    bases = (
        "Musc Constrict",
        "Constrictor",
        "Constrictor Muscle",
        "Constrict",
        "Pharyngeal Constrictor",
        "Pharyngeal Constrictor Muscle",
        "Pharynx Constrictor",
        "Pharynx Const",
        "Phar Const",
        "PCM",
    )
    short = tuple(f"PC {word}" for word in words if len(word) > 1)  # "PC M" would be "PCM"
    return tuple(f"{base} {word}" for base in bases for word in words) + short


def mirrored(organ: str) -> str:
    """The organ on the other side: ``Parotid_L`` for ``Parotid_R``; itself where it has no side."""
    other = {"_L": "_R", "_R": "_L"}.get(organ[-2:], "")
    return organ[:-2] + other if other else organ


def one_sided(organs: Sequence[str]) -> list[str]:
    """Those of `organs` whose other side is not among them."""
    return [organ for organ in organs if mirrored(organ) not in organs]


def _paired(bases: Sequence[str], side: str) -> tuple[str, ...]:
    return tuple(f"{base} {side}" for base in bases)


_OPTIC_NERVE = (
    "OpticNerve",
    "Optic N",
    "Optic Nrv",
    "N Optic",
    "N Opticus",
    "Nervus Opticus",
    "ON",
)
_PAROTID = ("Parotid", "Parotid Gland", "Parotid Glnd", "Parotid Gld", "Parotid Gl", "Parotis")
_SUBMANDIBULAR = (
    "Submandibular",
    "Submandibular Gland",
    "Submandibular Glnd",
    "Submandibular Gl",
    "Submand",
    "Submand Gland",
    "Submand Gl",
    "Glnd Submandibular",
    "Gld Submand",
    "SMG",
    "SubMan",
)

BUILT_IN: dict[str, Organ] = {
    organ.name: organ
    for organ in (
        Organ("Brainstem", ("BrainStem", "Brain Stem", "Truncus Cerebri", "Bstem"), (230, 159, 0)),
        Organ(
            "OpticChiasm",
            ("Chiasm", "Optic Chiasm", "Optic Chiasma", "Chiasma", "Chiasma Opticum"),
            (204, 121, 167),
        ),
        Organ("Bone_Mandible", ("Mandible", "Mandibula", "Mandible Bone"), (240, 228, 66)),
        Organ("OpticNrv_L", _paired(_OPTIC_NERVE, "L"), (86, 180, 233)),
        Organ("OpticNrv_R", _paired(_OPTIC_NERVE, "R"), (0, 114, 178)),
        Organ("Parotid_L", _paired(_PAROTID, "L"), (0, 158, 115)),
        Organ("Parotid_R", _paired(_PAROTID, "R"), (120, 200, 80)),
        Organ("Glnd_Submand_L", _paired(_SUBMANDIBULAR, "L"), (213, 94, 0)),
        Organ("Glnd_Submand_R", _paired(_SUBMANDIBULAR, "R"), (255, 140, 90)),
        Organ(
            "Musc_Constrict_S",
            (*_levels(("S", "Sup", "Superior")), "SPC", "PCS"),
            (178, 24, 43),
        ),
        Organ(
            "Musc_Constrict_M",
            (*_levels(("M", "Mid", "Middle", "Medial", "Med")), "MPC"),
            (118, 42, 131),
        ),
        Organ(
            "Musc_Constrict_I",
            (*_levels(("I", "Inf", "Inferior")), "IPC", "PCI"),
            (27, 120, 55),
        ),
        Organ("Larynx", ("Larynx Organ",), (153, 112, 171)),
        Organ(
            "Esophagus",
            ("Oesophagus", "Esoph", "Oesoph", "Cervical Esophagus", "Cervical Oesophagus"),
            (140, 81, 10),
        ),
        Organ("SpinalCord", ("Spinal Cord", "Cord", "Medulla Spinalis", "Myelon"), (90, 90, 220)),
    )
}

NINE: tuple[str, ...] = (
    "Brainstem",
    "OpticChiasm",
    "Bone_Mandible",
    "OpticNrv_L",
    "OpticNrv_R",
    "Parotid_L",
    "Parotid_R",
    "Glnd_Submand_L",
    "Glnd_Submand_R",
)
PCM: tuple[str, ...] = ("Musc_Constrict_S", "Musc_Constrict_M", "Musc_Constrict_I")


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """The lower-case words of a name; run-together capitals (`LeftParotid`, `LParotid`) are cut."""
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return tuple(re.findall(r"[^\W_]+", _CAMEL.sub(" ", plain).lower()))


def _spells(text: str, words: tuple[str, ...]) -> bool:
    """True where `text` is the `words` run together in some order; a side is any of its words."""
    if not words:
        return not text
    for i, word in enumerate(words):
        forms = _SIDE_WORDS[_SIDES[word]] if word in _SIDES else (word,)
        rest = words[:i] + words[i + 1 :]
        if any(text.startswith(f) and _spells(text[len(f) :], rest) for f in forms):
            return True
    return False


def _matches(raw: str, spelling: str) -> bool:
    raw_words, words = _words(raw), _words(spelling)
    if not raw_words or not words:
        return False
    if sum(len(w) for w in words if w not in _SIDES) < 3:  # "ON_L": not in the midst of a word
        return sorted(_SIDES.get(w, w) for w in raw_words) == sorted(
            _SIDES.get(w, w) for w in words
        )
    return _spells("".join(raw_words), words)


def resolve(
    raw_name: str,
    vocab: Mapping[str, Organ],
    site_aliases: Mapping[str, Sequence[str]] | None = None,
) -> str | None:
    """Finds the organ that a structure's name in an archive means.

    The site's own spellings come first, then the vocabulary's names and aliases. A name with a
    word too many, a paired organ without a side, an unpaired one with a side, and a name that fits
    two organs give None.

    Args:
        raw_name: the name as it stands in the archive (for a file: without its extension).
        vocab: organs by TG-263 name, from `vocabulary`.
        site_aliases: further spellings by TG-263 name, known to this site only.

    Returns:
        The TG-263 name, or None where the name means no organ of the vocabulary.

    Example:
        >>> resolve("Lt Parotid", vocabulary())
        'Parotid_L'
        >>> resolve("Parotid_L_PRV05", vocabulary()) is None
        True
    """
    sources: tuple[Mapping[str, Iterable[str]], ...] = (
        site_aliases or {},
        {name: (name, *organ.aliases) for name, organ in vocab.items()},
    )
    for spellings in sources:
        found = {
            n for n, s in spellings.items() if n in vocab and any(_matches(raw_name, a) for a in s)
        }
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def vocabulary(extra: Mapping[str, Any] | None = None) -> dict[str, Organ]:
    """The built-in organs and a plan's own.

    Args:
        extra: ``{Name: {aliases: [...], colour: [r, g, b]}}``, both optional; a built-in name gets
            further aliases.

    Returns:
        Organs by TG-263 name; the built-in ones first.

    Raises:
        UserError: on a name unfit for a file, an unknown key, a bad colour, or a spelling that
            two organs claim.
    """
    organs = dict(BUILT_IN)
    for name, value in (extra or {}).items():
        field = f"organs.{name}"
        organs[str(name)] = _organ(str(name), value, organs.get(str(name)), field)
    for name in extra or {}:
        for spelling in (str(name), *organs[str(name)].aliases):
            others = [
                o.name
                for o in organs.values()
                if o.name != name and any(_matches(spelling, a) for a in (o.name, *o.aliases))
            ]
            if others:
                raise UserError(
                    f"organs.{name}",
                    spelling,
                    "choose a spelling that belongs to one organ only",
                    problem=f"already a spelling of {', '.join(others)}",
                )
    return organs


def _organ(name: str, value: Any, base: Organ | None, field: str) -> Organ:
    if not _NAME.fullmatch(name):
        remedy = "use a TG-263 name: letters, digits and underscores, starting with a letter"
        raise UserError(field, name, remedy)
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise UserError(field, value, "give a mapping with `aliases` and `colour`, or nothing")
    for key in value:
        if key not in ("aliases", "colour"):
            raise UserError(f"{field}.{key}", value[key], "use the keys `aliases` and `colour`")
    aliases = value.get("aliases") or ()
    if isinstance(aliases, str) or not all(isinstance(a, str) and _words(a) for a in aliases):
        raise UserError(
            f"{field}.aliases", aliases, "give a list of names, as in [Lens Left, l_lens]"
        )
    base = base or Organ(name, (), _colour_of(name))
    colour = value.get("colour")
    if colour is not None:
        channels = () if isinstance(colour, str) else tuple(colour)
        if len(channels) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in channels):
            raise UserError(f"{field}.colour", colour, "give three whole numbers from 0 to 255")
        base = replace(base, colour=channels)
    return replace(base, aliases=tuple(dict.fromkeys((*base.aliases, *aliases))))


def _colour_of(name: str) -> tuple[int, int, int]:
    """A colour that depends on nothing but the name."""
    seed = sum((i + 1) * ord(c) * 7919 for i, c in enumerate(name))
    return (60 + seed % 180, 60 + seed // 180 % 180, 60 + seed // 32400 % 180)


def require_known(names: Iterable[str], vocab: Mapping[str, Organ], field: str) -> None:
    """Checks that all names are organs of the vocabulary.

    Args:
        names: TG-263 names, exact.
        vocab: organs by name, from `vocabulary`.
        field: where the names come from, for the message.

    Raises:
        UserError: on the first unknown name, with the nearest known one as a suggestion.
    """
    for name in names:
        if name in vocab:
            continue
        near = resolve(str(name), vocab) or next(
            iter(difflib.get_close_matches(str(name), list(vocab), n=1, cutoff=0.5)), None
        )
        hint = f"did you mean {near}? " if near else ""
        raise UserError(
            field,
            name,
            f"{hint}known organs: {', '.join(vocab)}; others are defined under `organs`",
            problem="unknown organ",
        )
