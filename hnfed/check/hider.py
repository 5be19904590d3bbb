"""Words that could name a patient, replaced by salted hashes in what a check says."""

from __future__ import annotations

import re

from core.archives.archive import Archive
from core.archives.deidentify import HARMLESS, SHORTEST, replaced, words_of
from core.archives.splits import case_hash

HASH_LENGTH = 10


class Hider:
    """Replaces what could name a patient by salted hashes.

    That is every word of `core.archives.deidentify.words_of`, every structure's name that is no
    organ's TG-263 name, and everything between quotation marks.

    Args:
        archive: whose names are hidden.
        secret: salt of the hashes.
    """

    def __init__(self, archive: Archive, secret: bytes) -> None:
        self._secret = secret
        words = {n for n in archive.names if len(n) >= SHORTEST} - HARMLESS
        words |= {f.case for f in archive.findings if len(f.case) >= SHORTEST}
        self._words = words.union(*(words_of(archive, ref) for ref in archive.cases))

    def case(self, case: str) -> str:
        """The hash of a case id; "" for the archive as a whole."""
        return case_hash(case, self._secret)[:HASH_LENGTH] if case else ""

    def __call__(self, text: str) -> str:
        """The text with every known name, and everything quoted, as a hash."""
        text = re.sub(r"'([^']*)'|\"([^\"]*)\"", lambda m: self.case(m[1] or m[2]), text)
        return replaced(text, (w for w in self._words if w in text), self.case)
