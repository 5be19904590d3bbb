"""What `hnfed doctor` finds out about a site's guard."""

from __future__ import annotations

from core.errors import UserError
from hnfed.deploy.doctor import PASS, WARN, Check, failed
from hnfed.guard.sandbox import Mode, enforceable, require

NAME = "closed in"


def examine_walls(mode: Mode = "required") -> Check:
    """Whether this machine can close in the process that trains; it is tried.

    Args:
        mode: the policy's `sandbox`.
    """
    found = enforceable()
    try:
        warning = require(mode, found)
    except UserError as error:
        return failed(NAME, error)
    if warning:
        return Check(NAME, WARN, found.words, "a kernel from 5.13 on with Landlock")
    return Check(NAME, PASS, found.words)
