"""`hnfed simulate`: sites as folders here, the phases through Flower, a report at the end."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from core.errors import UserError
from core.files import replace_file
from core.journal import JOURNAL, LINE, append_event
from core.os_refusals import in_words
from core.plan.load import load as load_config
from core.plan.load import plan_from_json
from core.plan.schema import Config
from core.plan.validate import require_simulated
from core.processes import deaf
from core.text import shown, shown_text
from core.tracking.follow import require_mode, tracked
from core.wire.partition import network, parts_of
from server.run_folder import CELL, begin, completed, held_folder, require_resumable
from simulations.apart import contaminated, keep_prepared, prepare_sites
from simulations.baselines import with_baseline
from simulations.foresight import require_runnable
from simulations.site_map import site_map
from simulations.site_words import sizes_of_logs, told_failure
from simulations.supervise import FAILED_MARK

if TYPE_CHECKING:  # gRPC takes a while to load
    from simulations.cluster import Cluster


def simulate(
    config: str,
    overrides: Sequence[str],
    out: Path | None,
    *,
    resume: bool = False,
    release: str = "",
    report: Callable[[Path], Path] | None = None,
) -> int:
    """Runs all phases of a plan on this machine.

    Args:
        config: shipped name or YAML path.
        overrides: KEY=VALUE.
        out: run folder; default ``runs/NAME``, with a number where that exists.
        resume: continue the run that `out` holds.
        release: ``module:function`` that each reply passes before it leaves its site, see
            `simulations.released`; "" for none.
        report: writes the report of a run folder, and returns its path.

    Returns:
        Exit code: 0 when all phases completed.

    Raises:
        UserError: what cannot work, before any archive is prepared.
    """
    asked, resolved = resolve(config, overrides)
    require_mode(resolved.tracking)
    with held_folder(Path(config).stem, out, resume, local=True) as folder:
        words = [config, *overrides]
        status = _simulate(asked, resolved, folder, words, resume, release)
        if report is not None:
            print(f"report: {report(folder)}")
        return status


def _simulate(
    asked: Config, resolved: Config, folder: Path, words: Sequence[str], resume: bool, release: str
) -> int:
    """`simulate` in a folder that is held."""
    if resume:
        require_resumable(resolved, folder)
        if completed(folder):
            print("completed before, nothing is left to do")
            return 0
    require_runnable(resolved)
    started = time.monotonic()
    logs = sizes_of_logs(folder)
    cluster = _cluster(resolved)
    local = site_map(resolved, folder)
    if cluster is not None:
        _require_shared(cluster, resolved, local, folder)
    prepared = prepare_sites(resolved, local)
    for name, site in prepared.items():
        local["sites"][name]["left_out"] = site.left_out
    values = begin(asked, resolved, folder, out=str(folder), resume=resume, local=json.dumps(local))
    sources = load_config(words[0], words[1:])[1]
    replace_file(folder / "sources.json", json.dumps(sources, indent=1))
    keep_prepared(local, prepared)
    crew = Crew(len(local["sites"]), release, cluster)
    with tracked(folder, resolved.tracking):
        status = _launch_to_its_end(resolved, values, folder, crew)
    _mark_contaminated(folder, contaminated(resolved, {n: p.entries for n, p in prepared.items()}))
    minutes = (time.monotonic() - started) / 60
    if status:
        print(
            f"hnfed: error: the run did not complete after {minutes:.1f} min; "
            f"what it did is kept.\n{shown_text(told_failure(folder, words, logs))}",
            file=sys.stderr,
        )
    else:
        print(f"completed in {minutes:.1f} min")
    return status


def _mark_contaminated(folder: Path, found: dict[str, dict[str, int]]) -> None:
    """Marks test scores of CTs that the start weights have seen: metrics, journal, screen (D17)."""
    path = folder / "metrics.json"
    if not found or not path.is_file():
        return
    metrics = json.loads(path.read_text(encoding="utf-8"))
    for block in metrics["phases"]:
        if sites := found.get(block["name"]):
            block["contaminated"] = sites
            told = ", ".join(f"{number} at {site}" for site, number in sites.items())
            text = (
                f"test scores of phase {block['name']} are contaminated: the checkpoint that it "
                f"starts from was trained on the CTs of test cases ({told})"
            )
            append_event(folder / JOURNAL, {"event": "note", "text": text, "phase": block["name"]})
            print(f"note: {text}")
    replace_file(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def resolve(config: str, overrides: Sequence[str]) -> tuple[Config, Config]:
    """The configuration of a simulation as it is asked for, and as it runs, with its baseline.

    Raises:
        UserError: what cannot work, networks and their stages included.
    """
    asked, sources = load_config(config, overrides)
    require_simulated(asked)
    if sources["federation.min_cell"] == "default":  # nobody's privacy is at stake here (D5)
        asked = replace(asked, federation=replace(asked.federation, min_cell=1))
    resolved = with_baseline(asked)
    for phase in resolved.phases:
        parts_of(network(resolved, phase), resolved, phase)
    return asked, resolved


@dataclass(frozen=True)
class Crew:
    """Who takes part in a launch.

    Attributes:
        sites: how many.
        release: ``module:function`` that each reply passes, see `simulations.released`.
        cluster: a Ray cluster that they run on; None for this machine alone.
    """

    sites: int
    release: str
    cluster: Cluster | None


def _cluster(config: Config) -> Cluster | None:
    """The Ray cluster that the configuration names, looked at; None for this machine alone."""
    if not config.simulation.ray:
        return None
    from simulations.cluster import cluster_of

    return cluster_of(config.simulation)


def _require_shared(cluster: Cluster, config: Config, local: dict[str, Any], folder: Path) -> None:
    """Requires that each node sees the folders of the run, before anything is prepared."""
    from simulations.cluster_nodes import require_shared

    print(f"looking at the nodes of the Ray cluster at {cluster.address} ...", flush=True)
    roots = {Path(s["root"]) for site in local["sites"].values() for s in site["sources"]}
    simulation = config.simulation
    needs = {"CPU": float(simulation.cpus_per_site), "GPU": simulation.gpus_per_site}
    require_shared(cluster, [folder, Path(local["cache"]).parent], sorted(roots), needs)


def _launch_to_its_end(config: Config, values: dict[str, str], folder: Path, crew: Crew) -> int:
    """`_launch`; where the server was ended before it could tell so, this process does."""
    from server.record import end_untold

    ended = "interrupted"
    try:
        status = _launch(config, values, folder, crew)
        ended = "failed"
    except UserError:
        ended = "failed"
        raise
    finally:
        with deaf(), suppress(OSError):  # a full disk: what ended the run is what is told
            end_untold(folder, values["run_id"], plan_from_json(values["plan"]), ended)
    return status


def _launch(config: Config, run_config: dict[str, str], folder: Path, crew: Crew) -> int:
    if config.simulation.engine == "inline":
        from client.app import app as client_app
        from server.app import app as server_app
        from server.dispatch import RunFailed
        from simulations.inline import run_inline
        from simulations.released import Released, resolved

        if crew.release:
            client_app = Released(client_app, resolved(crew.release))
        try:
            with redirect_stdout(_Unmarked(sys.stdout)):
                run_inline(server_app, client_app, run_config, crew.sites)
        except (RunFailed, UserError, OSError) as error:
            told = in_words(error) if isinstance(error, OSError) else error
            if told is None:
                raise
            print(f"hnfed: error: {shown_text(told)}", file=sys.stderr)
            return 1
        return 0
    from core.packaging.app_bundle import app_dir
    from simulations.launch import run_flower
    from simulations.room import room_for, room_on

    if crew.cluster is None:
        print("starting Flower and Ray (about 10 s) ...", flush=True)
        clients = room_for(config, crew.sites, crew.release)
        if (folder / CELL).is_file():  # others of its study have the other cores
            clients = replace(clients, threads={})
    else:
        print(f"starting Flower on the Ray cluster at {crew.cluster.address} ...", flush=True)
        clients = room_on(crew.cluster, config, crew.sites, crew.release)
    work_dir = folder / "flower"
    return run_flower(app_dir(), run_config, clients, work_dir=work_dir, on_line=_Screen())


class _Unmarked(io.TextIOBase):
    """Takes the mark off the run's own lines, which tells them from Flower's in a Ray run."""

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def write(self, text: str) -> int:
        self._target.write(text.removeprefix(LINE))
        return len(text)

    def flush(self) -> None:
        self._target.flush()


class _Screen:
    """The run's own lines, and what ended it untold; all else is in ``flower/flower.log``."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, line: str) -> None:
        _, found, text = line.partition(LINE)
        if found:
            self._told |= text.startswith("error: ")
        elif line.startswith(FAILED_MARK) and not self._told:
            text = f"error: {line}"
        else:
            return
        print(shown(text.rstrip()), flush=True)
