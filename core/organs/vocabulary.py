"""Organs: TG-263 names, their spellings in archives, colours. Names are resolved here only.

A spelling is compared whole, as `core.organs.tokens` does: a word too many (`PRV`, `ring`, `avoid`,
`z`, `opt`, `05`) makes another structure. The built-in spellings stand in `core.organs.synonyms`;
what is to be said about a name that is none of them, `core.archives.name_matching` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import UserError, suggestion
from core.identifiers import organ_name
from core.organs.synonyms import CONSTRICTORS, CONSTRICTORS_SHORT, LEVELS, PAIRED, SIDES_OF, SINGLE
from core.organs.tokens import Index, find, index_of, words_of


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


def mirrored(organ: str) -> str:
    """The organ on the other side: ``Parotid_L`` for ``Parotid_R``; itself where it has no side."""
    other = {"_L": "_R", "_R": "_L"}.get(organ[-2:], "")
    return organ[:-2] + other if other else organ


def one_sided(organs: Sequence[str]) -> list[str]:
    """Those of `organs` whose other side is not among them."""
    return [organ for organ in organs if mirrored(organ) not in organs]


def _paired(base: str, side: str) -> tuple[str, ...]:
    """Spellings of one of a pair: each with L or R, and with the side words of its language."""
    spellings: list[str] = []
    for language, texts in PAIRED[base].items():
        sides = (side.upper(), *SIDES_OF.get(language, {}).get(side, ()))
        spellings += [f"{text} {word}" for text in texts for word in sides]
    return tuple(dict.fromkeys(spellings))


def _constrictor(level: str) -> tuple[str, ...]:
    """Spellings of one of the three pharyngeal constrictors: S, M or I."""
    spellings = [
        f"{base} {word}"
        for language, bases in CONSTRICTORS.items()
        for base in bases
        for word in LEVELS[language][level]
    ]
    return tuple(dict.fromkeys([*spellings, *CONSTRICTORS_SHORT[level]]))


BUILT_IN: dict[str, Organ] = {
    organ.name: organ
    for organ in (
        Organ("Brainstem", SINGLE["Brainstem"], (230, 159, 0)),
        Organ("OpticChiasm", SINGLE["OpticChiasm"], (204, 121, 167)),
        Organ("Bone_Mandible", SINGLE["Bone_Mandible"], (240, 228, 66)),
        Organ("OpticNrv_L", _paired("OpticNrv", "l"), (86, 180, 233)),
        Organ("OpticNrv_R", _paired("OpticNrv", "r"), (0, 114, 178)),
        Organ("Parotid_L", _paired("Parotid", "l"), (0, 158, 115)),
        Organ("Parotid_R", _paired("Parotid", "r"), (120, 200, 80)),
        Organ("Glnd_Submand_L", _paired("Glnd_Submand", "l"), (213, 94, 0)),
        Organ("Glnd_Submand_R", _paired("Glnd_Submand", "r"), (255, 140, 90)),
        Organ("Musc_Constrict_S", _constrictor("S"), (178, 24, 43)),
        Organ("Musc_Constrict_M", _constrictor("M"), (118, 42, 131)),
        Organ("Musc_Constrict_I", _constrictor("I"), (27, 120, 55)),
        Organ("Larynx", SINGLE["Larynx"], (153, 112, 171)),
        Organ("Esophagus", SINGLE["Esophagus"], (140, 81, 10)),
        Organ("SpinalCord", SINGLE["SpinalCord"], (90, 90, 220)),
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


def spelled(
    raw_name: str,
    vocab: Mapping[str, Organ],
    site_aliases: Mapping[str, Sequence[str]] | None = None,
) -> frozenset[str]:
    """All organs that `resolve` finds for a name: none, one, or the several that it fits."""
    own = {o: tuple(s) for o, s in (site_aliases or {}).items() if o in vocab}
    for index in (index_of(tuple(own.items())), vocabulary_index(vocab)):
        found = find(index, words_of(raw_name))
        if found:
            return found
    return frozenset()


def vocabulary_index(vocab: Mapping[str, Organ]) -> Index:
    """The names and aliases of a vocabulary, ready to be looked up."""
    return index_of(tuple((name, (name, *organ.aliases)) for name, organ in vocab.items()))


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
    found = spelled(raw_name, vocab, site_aliases)
    return next(iter(found)) if len(found) == 1 else None


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
        others = vocabulary_index({n: o for n, o in organs.items() if n != name})
        for spelling in (str(name), *organs[str(name)].aliases):
            found = find(others, words_of(spelling))
            if found:
                raise UserError(
                    f"organs.{name}",
                    spelling,
                    "choose a spelling that belongs to one organ only",
                    problem=f"already a spelling of {', '.join(sorted(found))}",
                )
    return organs


def _organ(name: str, value: Any, base: Organ | None, field: str) -> Organ:
    organ_name(name, field)
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise UserError(field, value, "give a mapping with `aliases` and `colour`, or nothing")
    for key in value:
        if key not in ("aliases", "colour"):
            raise UserError(f"{field}.{key}", value[key], "use the keys `aliases` and `colour`")
    aliases = value.get("aliases") or ()
    if isinstance(aliases, str) or not all(isinstance(a, str) and words_of(a) for a in aliases):
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
        near = resolve(str(name), vocab)
        hint = f"did you mean {near}? " if near else suggestion(str(name), vocab, cutoff=0.5)
        raise UserError(
            field,
            name,
            f"{hint}known organs: {', '.join(vocab)}; others are defined under `organs`",
            problem="unknown organ",
        )
