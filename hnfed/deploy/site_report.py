"""``report-local.html``: a site's own page of a run, from what it keeps. Nothing of it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data.cached_case import annotating
from core.data.site import Site
from core.errors import UserError
from core.files import replace_file
from core.identifiers import run_id
from core.plan.schema import SPLITS, Plan
from core.tracking.foreign_run import of_run
from hnfed.deploy.site_file import require_own_kit, site_from_file
from hnfed.guard import pins
from hnfed.guard.kit import read_kit
from hnfed.guard.receipts import read_receipts
from hnfed.report.page import render
from hnfed.report.site_run import Kept, read_site_run

REPORT_LOCAL = "report-local.html"


def write_site_report(kit: Path, given: Path | None = None, run: str = "") -> Path:
    """Makes the page of a run at this site: `STATE/RUN/report-local.html`, for its account alone.

    Args:
        kit: folder of the site's kit.
        given: site file; None for ``KIT/site.yaml``.
        run: id of a run that came to this site; "" for the one that came last.

    Returns:
        The page, written in one step over an earlier one. The caller's umask keeps it from others.

    Raises:
        UserError: no such kit, site file or run; or nothing is kept of the run.
    """
    found, site_file = read_kit(kit, "site"), given or kit / "site.yaml"
    if not site_file.is_file():
        remedy = "name the site file: --site SITE.yaml, or lay it into the kit as site.yaml"
        raise UserError("--site", site_file, remedy, problem="no such file")
    state = site_from_file(site_file, "report", new=False).base_folder.parent
    receipts = read_receipts(state)
    run = _chosen(run, receipts, state)
    site = site_from_file(site_file, run, new=False)
    require_own_kit(site, found)
    guard = state / "guard"
    pin = pins.read_pin(guard, run)
    plan = pins.plan_of(guard, pin) if pin is not None else None
    cases, organs = _prepared(site, plan, pin.split if pin is not None else "")
    kept = Kept(
        site=site.name,
        run=run,
        folder=site.run_folder,
        kit=kit,
        site_file=given,
        plan=plan,
        receipts=receipts.get(run, []),
        left_out=pin.left_out if pin is not None else {},
        cases=cases,
        organs=organs,
    )
    with of_run(site.run_folder):
        text = render(read_site_run(kept))
    path = site.run_folder / REPORT_LOCAL
    replace_file(path, text)
    return path


def _chosen(run: str, receipts: Mapping[str, Any], state: Path) -> str:
    """The run that was asked for, or the one whose reply left last."""
    known = [name for name in receipts if name and _is_folder(state / name)]
    if run:
        run_id(run, "--run")
        if run not in known:
            names = ", ".join(known) or "(none yet)"
            raise UserError("--run", run, f"choose one of {names}", problem="no such run here")
        return run
    if not known:
        problem = "no run has left anything at this site yet"
        remedy = "wait for the first order, see: hnfed watch KIT --site SITE.yaml"
        raise UserError("KIT", state, remedy, problem=problem)
    return max(known, key=lambda name: max(r.get("n", 0) for r in receipts[name]))


def _is_folder(path: Path) -> bool:
    """False for a link: the page is written into the state folder and nowhere else."""
    return path.is_dir() and not path.is_symlink()


def _prepared(site: Site, plan: Plan | None, split: str) -> tuple[dict[str, int], dict[str, int]]:
    """Cases by split, and training cases by organ; empty where the cache has been removed."""
    if plan is None or not split:
        return {}, {}
    try:
        entries = site.entries(plan, split)
    except UserError:
        return {}, {}
    trained = [e for e in entries if e.split == "train"]
    counts = {name: sum(e.split == name for e in entries) for name in SPLITS}
    return counts, {organ: len(annotating(trained, organ)) for organ in plan.organ_names}
