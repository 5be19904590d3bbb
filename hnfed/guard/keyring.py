"""A site's keyring: its own key, and those of the other sites that a person here has confirmed."""

from __future__ import annotations

import shlex
from pathlib import Path

from core.errors import UserError
from hnfed.guard.kit import Kit
from hnfed.guard.masking_session import Keyring, public_keys
from hnfed.guard.peers import read_peers
from hnfed.guard.receipts import private_key
from hnfed.guard.rules import Policy

FOLDER = "sums"  # of the guard's own folder


def keyring_of(kit: Kit, site: str, guard: Path, policy: Policy) -> Keyring:
    """The keyring with which a site masks what it sends.

    Args:
        kit: of the site.
        site: its name.
        guard: the guard's own folder, out of reach of the code that trains.
        policy: of the site.

    Raises:
        UserError: nobody here has confirmed any other site.
    """
    confirmed = {s: p.certificate for s, p in read_peers(kit).items() if p.confirmed}
    if not confirmed:
        raise UserError(
            "peers.json",
            kit.peers,
            "ring the other sites, compare fingerprints, and confirm each of them: "
            f"hnfed join {shlex.quote(str(kit.folder))} --confirm SITE FINGERPRINT",
            problem="the plan asks for sums over sites, and no other site is confirmed here",
        )
    return Keyring(
        site=site,
        key=private_key(kit.folder / "node.key"),
        peers=public_keys(confirmed),
        folder=guard / FOLDER,
        fewest=policy.secure_aggregation_sites,
        may_change=policy.secure_aggregation_change,
        counts=policy.counts,
        scores=policy.scores,
        agreed=policy.weights == "agreed",
    )
