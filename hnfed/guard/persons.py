"""Who agreed to something at a site: a name that was given, and the account that gave it."""

from __future__ import annotations

import os
import pwd
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from core.errors import UserError

LONGEST = 100
UNNAMED = "(unnamed)"  # in a list of an earlier version


@dataclass(frozen=True)
class Confirmation:
    """One person's agreement.

    Attributes:
        person: the name that was given.
        account: of the operating system that ran the command.
        behind: the account that called ``sudo``, as the environment says; "" where none did.
        at: when, ISO 8601.
    """

    person: str
    account: str
    behind: str
    at: str

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `as_json`; KeyError where one is missing."""
        return cls(**{k: str(values[k]) for k in ("person", "account", "behind", "at")})

    def as_json(self) -> dict[str, str]:
        """For a file of the kit."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """What persons agreed to: a bundle, or a plan.

    Attributes:
        digest: its SHA-256.
        persons: in the order in which they agreed; of an earlier version's list one without a name.
    """

    digest: str
    persons: tuple[Confirmation, ...]

    def enough(self, approvers: int) -> bool:
        """Whether so many different persons agreed."""
        return different(self.persons) >= approvers


def now(person: str = "") -> Confirmation:
    """The agreement of whoever runs this.

    Args:
        person: the name; by default that of the account.

    Raises:
        UserError: an empty, long or unprintable name.
    """
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an account of a container that has no name
        account = f"uid {os.getuid()}"
    behind = os.environ.get("SUDO_USER", "")[:LONGEST]
    name = " ".join((person or behind or account).split())
    if not name or len(name) > LONGEST or not name.isprintable():
        raise UserError("--as", person, f"give a name of at most {LONGEST} printable signs")
    return Confirmation(name, account, behind, datetime.now(UTC).isoformat(timespec="seconds"))


def different(given: Sequence[Confirmation]) -> int:
    """How many persons agreed: names that differ in more than their case, spaces and encoding.

    An agreement of an earlier version, without a name, may be anybody's: it stands for a person
    where it is the only one.
    """
    named = {_folded(c.person) for c in given if c.person != UNNAMED}
    return len(named) or min(len(given), 1)


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def one_account(given: Sequence[Confirmation]) -> bool:
    """Whether two or more persons confirmed through one and the same account."""
    return len(given) > 1 and len({(c.account, c.behind) for c in given}) == 1


def approvals_json(
    approved: Sequence[Agreement], waiting: Sequence[str], approvers: int
) -> dict[str, Any]:
    """What is approved at a site and what waits, as data.

    Args:
        approved: whatever somebody agreed to.
        waiting: SHA-256 of what nobody, or too few, agreed to yet.
        approvers: persons that the policy asks for.
    """
    rows = [
        {
            "sha256": one.digest,
            "enough": one.enough(approvers),
            "persons": [p.as_json() for p in one.persons],
        }
        for one in approved
    ]
    return {"schema": 1, "approved": rows, "waiting": list(waiting)}
