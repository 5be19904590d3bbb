"""`hnfed approve --plan`: what a plan would do here, in words; pinned by its hash."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError

if TYPE_CHECKING:
    from core.data.cached_case import Entry
    from core.plan.schema import Plan
    from hnfed.guard.kit import Kit
    from hnfed.guard.policy import Policy


def add_arguments(parser: Any) -> None:
    """Adds the options for plans to those of `hnfed approve`."""
    parser.add_argument(
        "--plan",
        metavar="PLAN",
        nargs="?",
        const="",
        help="look at a plan instead: a shipped name, a file, or without PLAN those that came and "
        "were refused",
    )
    parser.add_argument(
        "--site", metavar="SITE.yaml", type=Path, help="with --plan: count its cases, prepared here"
    )
    parser.add_argument(
        "--as", dest="person", metavar="NAME", default="", help="who agrees (default: the account)"
    )


def approve_plans(args: argparse.Namespace) -> int:
    """Shows plans and asks; 1 where one waits that was not approved."""
    from core.plan.load import plan_hash
    from hnfed.guard import plans
    from hnfed.guard.kit import read_kit
    from hnfed.guard.persons import approvals_json
    from hnfed.guard.plan_words import plan_of
    from hnfed.guard.policy import read_policy

    kit = read_kit(args.kit, "site")
    policy = read_policy(kit.folder / "policy.yaml")
    if args.yes is not None and len(args.yes) < plans.SHORTEST:
        remedy = f"give its first {plans.SHORTEST} characters or more"
        raise UserError("--yes", args.yes, remedy, problem="too short for a SHA-256")
    if args.withdraw:
        return _withdraw(kit, args.plan, args.yes)
    for one in plans.agreed(kit.folder):
        state = "approved" if one.enough(policy.approvers) else "half approved"
        who = ", ".join(f"{p.person} at {p.at}" for p in one.persons)
        print(f"{state} {one.digest[: plans.SHORTEST]} by {who}")
    if policy.plans == "any":
        print("policy.yaml says plans: any; with plans: approved only those above may run")
    shown = [plan_of(args.plan)] if args.plan else plans.waiting(kit.folder)
    if args.json is not None:
        digests = [plan_hash(plan) for plan in shown]
        args.json.write(approvals_json(plans.agreed(kit.folder), digests, policy.approvers))
        return 0
    if not shown:
        print("no plan waits for approval")
    return max((_decide(kit, policy, plan, args) for plan in shown), default=0)


def _decide(kit: Kit, policy: Policy, plan: Plan, args: argparse.Namespace) -> int:
    """One plan: shown, asked about, pinned; 0 where it may run now."""
    from core.plan.load import plan_hash
    from hnfed.guard import persons, plans
    from hnfed.guard.plan_words import in_words

    digest = plan_hash(plan)
    for line in in_words(plan, kit.role, policy, _entries(args, plan)):
        print(line)
    if args.yes is not None:
        agrees = digest.startswith(args.yes)
    else:
        agrees = sys.stdin.isatty() and input("may it run here? [y/N] ").lower() == "y"
    short = digest[: plans.SHORTEST]
    if not agrees:
        place = shlex.quote(str(args.kit))
        print(f"not approved; to pin it: hnfed approve {place} --plan --yes {short}")
        return 1
    done = plans.agree(kit.folder, digest, persons.now(args.person))
    if not done.enough(policy.approvers):
        print(f"{short}: a second person must approve it too, with --as NAME")
        return 1
    if policy.approvers > 1 and persons.one_account(done.persons):
        print("note: both names were given through one account, which proves no second person")
    plans.settled(kit.folder, digest)
    print(f"approved {short}; a running client need not be restarted")
    return 0


def _withdraw(kit: Kit, name: str, digest: str | None) -> int:
    from core.plan.load import plan_hash
    from hnfed.guard import plans
    from hnfed.guard.plan_words import plan_of

    wanted = plan_hash(plan_of(name)) if name else (digest or "")
    if not wanted:
        raise UserError("--withdraw", "(no plan)", "name it: --plan PLAN, or --plan --yes SHA256")
    found = [a.digest for a in plans.agreed(kit.folder) if a.digest.startswith(wanted)]
    for one in found:
        plans.withdraw(kit.folder, one)
        print(f"withdrawn {one[: plans.SHORTEST]}: its next order is refused")
    if not found:
        print("no such plan was approved")
    return 0 if found else 1


def _entries(args: argparse.Namespace, plan: Plan) -> Sequence[Entry] | None:
    """The site's cases as the plan would prepare them; None where no site file was given."""
    if args.site is None:
        return None
    from core.archives.preparing import prepare
    from hnfed.deploy.site_file import site_from_file

    print("preparing the cases that the plan would use ...", flush=True)
    return prepare(site_from_file(args.site, "approve"), plan).entries
