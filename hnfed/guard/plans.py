"""Plans that may be worked on at a site, by their hash; one that was refused waits for a look.

``plans.json`` of the kit lists them with the persons who agreed. ``pending/HASH.plan.json`` is a
plan as it came, in its canonical form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.errors import UserError
from core.files import replace_file
from core.plan.load import plan_from_json, plan_hash, plan_json
from core.plan.schema import Plan
from hnfed.guard.kit_files import damage, kept_json, needed_bytes
from hnfed.guard.persons import Agreement, Confirmation, different
from hnfed.guard.rules import Policy, PolicyError

FILE, PENDING, SUFFIX = "plans.json", "pending", ".plan.json"
SHORTEST = 16


def require_agreed(kit: Path, plan: Plan, policy: Policy) -> None:
    """Requires that a plan was approved here, where the policy asks for that.

    Args:
        kit: the site's folder of it; a plan that is refused is kept there for `hnfed approve`.
        plan: that came.
        policy: of the site.

    Raises:
        PolicyError: it was not, or not by enough persons.
    """
    if policy.plans == "any":
        return
    digest = plan_hash(plan)
    found = next((a for a in agreed(kit) if a.digest == digest), None)
    if found is not None and found.enough(policy.approvers):
        return
    _keep(kit / PENDING, digest, plan, policy.pending_mb)
    count = different(found.persons) if found is not None else 0
    raise PolicyError(
        f"plans: {digest[:SHORTEST]} was approved by {count} of {policy.approvers} persons; "
        "look at it with `hnfed approve KIT --plan`"
    )


def agreed(kit: Path) -> list[Agreement]:
    """What was approved, oldest first.

    Raises:
        UserError: a damaged list: under a doubtful one nothing runs.
    """
    path = kit / FILE
    try:
        entries = kept_json(path)
        return [
            Agreement(str(e["sha256"]), tuple(Confirmation.of_json(p) for p in e["persons"]))
            for e in ([] if entries is None else entries)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "restore the file, or delete it and approve again"
        raise UserError(FILE, path, remedy, problem=damage(error)) from error


def agree(kit: Path, digest: str, who: Confirmation) -> Agreement:
    """Adds a person's agreement; a plan that enough agreed to may run at once."""
    entries = agreed(kit)
    before = next((a for a in entries if a.digest == digest), Agreement(digest, ()))
    after = replace(before, persons=(*before.persons, who))
    if different(after.persons) == different(before.persons):
        after = before  # the same person again
    _write(kit, [*(a for a in entries if a.digest != digest), after])
    return after


def withdraw(kit: Path, digest: str) -> bool:
    """Takes the approval of a plan back, of whoever; False where there was none."""
    entries = agreed(kit)
    _write(kit, [a for a in entries if a.digest != digest])
    return any(a.digest == digest for a in entries)


def waiting(kit: Path) -> list[Plan]:
    """Plans that came and were refused for want of an approval, the newest last.

    One that is damaged, or not the plan that its name says, is left out.
    """
    found = []
    files = sorted((kit / PENDING).glob(f"*{SUFFIX}"), key=lambda p: p.lstat().st_mtime)
    for path in files:
        try:
            plan = plan_from_json(needed_bytes(path).decode("ascii"))
        except (OSError, ValueError, UserError):
            continue
        if plan_hash(plan) == path.name.removesuffix(SUFFIX):
            found.append(plan)
    return found


def settled(kit: Path, digest: str) -> None:
    """A plan that was decided on waits no more."""
    (kit / PENDING / f"{digest}{SUFFIX}").unlink(missing_ok=True)


def _keep(folder: Path, digest: str, plan: Plan, most_mb: float) -> None:
    """Keeps a plan; the oldest go where what waits grows beyond its share of the disk."""
    folder.mkdir(exist_ok=True, mode=0o700)
    text = plan_json(plan)
    if len(text) > most_mb * 1e6:
        return
    replace_file(folder / f"{digest}{SUFFIX}", text)
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.lstat().st_mtime)
    total = sum(p.lstat().st_size for p in files)
    for path in files[:-1]:
        if total <= most_mb * 1e6:
            break
        total -= path.lstat().st_size
        path.unlink(missing_ok=True)


def _write(kit: Path, entries: Sequence[Agreement]) -> None:
    listed = [{"sha256": a.digest, "persons": [p.as_json() for p in a.persons]} for a in entries]
    replace_file(kit / FILE, json.dumps(listed, indent=1) + "\n")
