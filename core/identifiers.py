"""Names that come from elsewhere: one type and one pattern a kind, parsed where they come in.

A run, a phase, a site, an organ and a case become names of files and folders; a name from a
message, a plan, a checkpoint or an archive's list is parsed here before it is used for anything.
No accepted name is empty, ``.`` or ``..``, absolute, of two parts, or holds control, bidirectional
or unseen characters; none of those that become folders is one that hnfed or an operating system
keeps for itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NewType

from core.errors import UserError
from core.text import flagged, shown

RunId = NewType("RunId", str)
PhaseName = NewType("PhaseName", str)
SiteName = NewType("SiteName", str)
OrganName = NewType("OrganName", str)
CaseName = NewType("CaseName", str)
TensorName = NewType("TensorName", str)
Digest = NewType("Digest", str)
Word = NewType("Word", str)

LONGEST = 64
MAX_ROUND = 1_000_000
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ORGAN = re.compile(r"[A-Za-z][A-Za-z0-9_~+-]{0,63}")
_TENSOR = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*(?:::[A-Za-z0-9_]+)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.+-]{0,127})?")
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])", re.ASCII)
# What stands in a site's state folder, and in a site's folder of a run, beside such names.
STATE_NAMES = frozenset(
    (
        "base",
        "secret",
        "flower",
        "guard",
        "client",
        "receipts",
        "pending",
        "approved",
        "plans",
        "pins",
        "lock",
        "tmp",
    )
)
RUN_NAMES = frozenset(("base", "scratch", "rounds", "init", "state"))
CASE_FILES = frozenset(("img", "background"))  # of a case's folder, beside its structures
MAX_FOLDER_BYTES = 240
MAX_CASE_BYTES = 200  # room for a suffix within the 255 of a file's name

_REMEDY_PART = "use letters, digits, '-' and '_' only, 64 at most, the first a letter or digit"


def run_id(value: object, field: str = "run") -> RunId:
    """A run's id: letters, digits, ``.``, ``_``, ``-``, at most 64, beginning with no sign.

    Raises:
        UserError: not of that form, ``..`` in it, a dot at its end, or a name that is kept.
    """
    remedy = "use letters, digits, '.', '-' and '_', 64 at most, the first a letter or digit"
    text = _matched(value, _RUN, field, remedy)
    if ".." in text or text.endswith("."):
        raise UserError(field, shown(text), "write no two dots together and none at the end")
    return RunId(_free(text, STATE_NAMES, field))


def run_id_from(name: str, suffix: str = "") -> RunId:
    """The id of a run whose folder is called `name`.

    The rule: `name` itself where it is an id. Otherwise every run of other characters becomes one
    ``-``, dots do not stand together, signs at both ends go, the rest is cut, and ``-`` with eight
    digits of the SHA-256 of `name` follows, so that two names that differ only in what was replaced
    get two ids; ``run-`` stands before one whose first part is kept for itself. `suffix` follows
    after another ``-``.

    Args:
        name: of a folder, any text.
        suffix: letters and digits; "" for none.
    """
    ending = f"-{suffix}" if suffix else ""
    try:
        if len(name) + len(ending) <= LONGEST:
            return run_id(run_id(name) + ending)
    except UserError:
        pass
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    clean = re.sub(r"\.{2,}", ".", _UNFIT.sub("-", name)).strip("._-")
    first = clean.split(".", 1)[0].lower()
    if first in STATE_NAMES or _DEVICE.fullmatch(first):
        clean = f"run-{clean}"
    clean = clean[: LONGEST - len(digest) - 1 - len(ending)].rstrip("._-") or "run"
    return run_id(f"{clean}-{digest}{ending}")


def folder_name(value: object, field: str = "folder") -> str:
    """The name of a run's folder at the server: one name, of any script, such as ``lauf ä:2``.

    Raises:
        UserError: empty, a path, a leading dot, characters that are not seen, or too long.
    """
    text = value if isinstance(value, str) else ""
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_FOLDER_BYTES or text[0] == "." or "/" in text or "\0" in text:
        remedy = "give the name of a folder, without a path or a leading dot, "
        remedy += f"at most {MAX_FOLDER_BYTES} bytes"
        raise UserError(field, shown(value, 100), remedy)
    if flagged(text) or "\n" in text or "\t" in text:
        found = flagged(text) or ["a line break or tab"]
        remedy = "write the name without characters that are not seen"
        raise UserError(field, shown(text), remedy, problem=found[0])
    return text


def phase_name(value: object, field: str = "phase") -> PhaseName:
    """The name of a plan's phase.

    Raises:
        UserError: not of that form, or a name kept for other things.
    """
    return PhaseName(_free(_matched(value, _PART, field, _REMEDY_PART), RUN_NAMES, field))


def site_name(value: object, field: str = "site") -> SiteName:
    """The name under which a site appears.

    Raises:
        UserError: not of that form, or a name kept for other things.
    """
    return SiteName(_free(_matched(value, _PART, field, _REMEDY_PART), frozenset(), field))


def organ_name(value: object, field: str = "organ") -> OrganName:
    """An organ's name, as TG-263 writes them.

    Raises:
        UserError: not of that form, or a name kept for other things.
    """
    remedy = "use a TG-263 name: letters, digits and underscores, starting with a letter"
    return OrganName(_free(_matched(value, _ORGAN, field, remedy), CASE_FILES, field))


def organ_names(values: object, field: str = "organs") -> tuple[OrganName, ...]:
    """A list of organs, each once.

    Raises:
        UserError: no list, an empty one, an organ twice, or a name that is none.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(field, shown(values, 100), "give a list of organs")
    names = tuple(organ_name(value, field) for value in values)
    if not names or len({name.lower() for name in names}) < len(names):
        raise UserError(field, list(names), "list each organ once, at least one")
    return names


def case_name(value: object, field: str = "case") -> CaseName:
    """A case's id: one name of a file, of any script.

    Raises:
        UserError: empty, a leading dot, a slash or backslash, too long, or unseen characters.
    """
    text = value if isinstance(value, str) else ""
    size = len(text.encode("utf-8", "surrogatepass"))
    signs = any(sign in text for sign in "/\\:\n\t")
    if not 0 < size <= MAX_CASE_BYTES or text[0] == "." or text != text.strip() or signs:
        remedy = f"give an id without slashes or a leading dot, at most {MAX_CASE_BYTES} bytes"
        raise UserError(field, shown(value, 100), remedy)
    if flagged(text):
        remedy = "write the id without characters that are not seen"
        raise UserError(field, shown(text), remedy, problem=flagged(text)[0])
    return CaseName(_free(text, frozenset(), field))


def tensor_name(value: object, field: str = "tensor") -> TensorName:
    """The name of a parameter: parts of letters, digits and ``_``, joined by dots.

    A value of the optimiser follows its parameter behind ``::``.

    Raises:
        UserError: not of that form, or longer than 200.
    """
    text = _matched(value, _TENSOR, field, "use weights that hnfed wrote")
    if len(text) > 200:
        raise UserError(field, shown(text, 100), "use weights that hnfed wrote")
    return TensorName(text)


def digest(value: object, field: str = "sha256") -> Digest:
    """A SHA-256 in 64 small hexadecimal digits.

    Raises:
        UserError: not of that form.
    """
    return Digest(_matched(value, _DIGEST, field, "give a SHA-256: 64 digits, 0-9 and a-f"))


def word(value: object, field: str) -> Word:
    """A fingerprint, a code, a version: letters, digits and ``_.+-``, at most 128; never a path.

    The first is a letter or digit; "" stands for none.

    Raises:
        UserError: not of that form.
    """
    return Word(_matched(value, _WORD, field, "use letters, digits and _.+- only"))


def round_number(value: object, field: str = "round") -> int:
    """The number of a round, from 0.

    Raises:
        UserError: no whole number, or outside 0 to `MAX_ROUND`.
    """
    if type(value) is not int or not 0 <= value <= MAX_ROUND:
        raise UserError(field, shown(value, 100), f"give a whole number from 0 to {MAX_ROUND}")
    return value


def _matched(value: object, pattern: re.Pattern[str], field: str, remedy: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UserError(field, shown(value, 100), remedy)
    return value


def _free(text: str, kept: frozenset[str], field: str) -> str:
    """The name, unless its first part is kept for files of hnfed or devices of Windows."""
    first = text.split(".", 1)[0].lower()
    if first in kept or _DEVICE.fullmatch(first):
        raise UserError(field, text, "choose another name", problem=f"{first} is kept for itself")
    return text
