"""The start of secure aggregation: who takes part, and the counts of all sites together."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from core.plan.schema import SPLITS, Plan
from core.plan.secure import ALL
from core.secure.layout import closed_organs
from core.wire.messages import Description, Header, Order
from server.dispatch import RunFailed
from server.enrolment import bounds_of, impossible
from server.exchange import Call, exchange
from server.record import Recorder, tell
from server.secure_round import (
    Masked,
    Secure,
    add_tally,
    inspect_masked,
    secure_set,
    tally_length,
)
from server.strategy import ORDER


def secure_start(
    grid: Grid,
    plan: Plan,
    nodes: Mapping[str, int],
    described: Mapping[str, Description],
    fingerprint: str,
    recorder: Recorder,
) -> Secure | None:
    """Forms the set of sites and asks for their counts, masked; says what cannot be learnt.

    Returns:
        None where the plan does not ask for secure aggregation, or shares nothing.

    Raises:
        UserError: too few sites.
        RunFailed: a site did not answer rightly, too often.
    """
    shared = [p for p in plan.phases if p.share != "none"]
    if not plan.federation.secure_aggregation or not shared:
        return None
    secure = secure_set(plan, described)
    recorder.note(
        f"secure aggregation over {', '.join(secure.hellos)}: only sums are known here; a site "
        "that stands out is not told, and updates are held to a bound at the sites"
    )
    if secure.told:
        secure = _counted(grid, nodes, secure, fingerprint, recorder)
        cell = plan.federation.min_cell
        counts = dict(zip(SPLITS, map(int, secure.cases), strict=True))
        tell(f"all sites: {', '.join(f'{_shown(n, cell)} {k}' for k, n in counts.items())} cases")
    else:
        recorder.note("not every site tells its counts: all sites weigh equally")
    for phase in shared:
        if closed := closed_organs(plan, phase, secure.hellos):
            recorder.note(
                f"fewer than {secure.fewest} sites annotate {', '.join(closed)}: their rows of the "
                "head stay as they begin",
                phase.name,
            )
    return secure


def _shown(count: int, cell: int) -> str:
    return str(count) if count == 0 or count >= cell else f"fewer than {cell}"


def _possible(secure: Secure) -> Secure:
    """The set, if its sums can be those of so many sites.

    Raises:
        ValueError: the masks do not cancel, or a site's counts are impossible.
    """
    bounds = bounds_of(secure.plan)
    rows = {k: tuple(v) for k, v in secure.rows.items()}
    told = Description(
        site=ALL,
        fingerprint="",
        split_hash="",
        cases=(int(secure.cases[0]), int(secure.cases[1]), int(secure.cases[2])),
        annotated=tuple(map(int, rows["annotated"])),
        voxels=rows["voxels"] if any(rows["totals"]) else (),
        totals=rows["totals"] if any(rows["totals"]) else (),
        left_out={},
        versions={},
    )
    if wrong := impossible(told, replace(bounds, cases=bounds.cases * len(secure.hellos))):
        raise ValueError(wrong)
    return secure


def _counted(
    grid: Grid, nodes: Mapping[str, int], secure: Secure, fingerprint: str, recorder: Recorder
) -> Secure:
    """The set with the sums of its counts; all are asked again where one is missing."""
    plan = secure.plan
    rejected: dict[str, str] = {}
    for left in reversed(range(plan.federation.round_retries + 1)):
        order = Order(
            run=recorder.run,
            phase="",
            round=0,
            task="tally",
            fingerprint=fingerprint,
            attempt=secrets.token_hex(16),
            peers=list(secure.peers),
        )
        content = {s: RecordDict({ORDER: ConfigRecord(order.to_config())}) for s in secure.hellos}
        done = exchange(
            grid,
            content,
            nodes,
            Call("query", "tally", plan.federation.prepare_timeout_s),
        )
        verdicts = {
            site: inspect_masked(
                done.replies.get(site),
                Header(site, recorder.run, "", 0),
                words=0,
                numbers=tally_length(secure),
            )
            for site in secure.hellos
        }
        good = [v for v in verdicts.values() if isinstance(v, Masked)]
        rejected = {s: v.code for s, v in verdicts.items() if not isinstance(v, Masked)}
        if not rejected:
            try:
                return _possible(add_tally(secure, good))
            except ValueError:
                rejected = dict.fromkeys(verdicts, "E_MASK")
        told = ", ".join(f"{s}: {c}" for s, c in rejected.items())
        recorder.note(
            f"the counts of all sites cannot be summed ({told}); nothing is opened, "
            + ("all are asked again" if left else "given up")
        )
    raise RunFailed(
        "the counts before the first round: a sum needs all sites of the plan ("
        + ", ".join(f"{s}: {c}" for s, c in rejected.items())
        + "). Mend the sites (each keeps its own client.log) and continue with --resume"
    )
