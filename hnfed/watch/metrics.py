"""A state as Prometheus text (exposition format 0.0.4): published figures only.

What the journal withholds (`federation.min_cell`) is not there to be told; a site's own scores,
which are exact, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hnfed.watch.kit_state import ClientState, ServerState
from hnfed.watch.run_state import RunState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Name: kind and meaning. A test reads this table and docs/watch.md against each other.
METRICS = {
    "hnfed_up": ("gauge", "whether the server or client of the kit, or the run, is at work"),
    "hnfed_well": ("gauge", "whether all goes as it should; what /health says"),
    "hnfed_site_connected": ("gauge", "server: whether the site is connected"),
    "hnfed_run_state": ("gauge", "1 for the state that the run is in"),
    "hnfed_run_seconds": ("gauge", "since the run began"),
    "hnfed_run_last_event_seconds": ("gauge", "when its journal was written last, since 1970"),
    "hnfed_phase_round": ("gauge", "last committed round of the phase"),
    "hnfed_phase_rounds": ("gauge", "rounds that are planned"),
    "hnfed_phase_best_round": ("gauge", "round of the best weights so far"),
    "hnfed_phase_left_seconds": ("gauge", "of the rounds that are left, at most"),
    "hnfed_mean_dice": ("gauge", "mean Dice of the phase, by split"),
    "hnfed_dice": ("gauge", "Dice of an organ over the published cases of all sites, by split"),
    "hnfed_site_state": ("gauge", "1 for the state that the site is in"),
    "hnfed_site_answered_total": ("counter", "orders of the run that the site answered"),
    "hnfed_site_refused_total": ("counter", "orders of the run that were not answered rightly"),
    "hnfed_sent_bytes_total": ("counter", "to the sites, in all rounds so far"),
    "hnfed_received_bytes_total": ("counter", "from the sites, in all rounds so far"),
    "hnfed_connection_state": ("gauge", "site: 1 for the state of its connection"),
    "hnfed_order_seconds": ("gauge", "site: since the order at work came; 0 without one"),
    "hnfed_replies_total": ("counter", "site: replies that have left, by code"),
    "hnfed_weights_left_bytes_total": ("counter", "site: bytes of weights that have left"),
    "hnfed_processes": ("gauge", "processes of hnfed here that are watched"),
    "hnfed_memory_bytes": ("gauge", "their memory"),
    "hnfed_gpu_busy_ratio": ("gauge", "share of the last moment in which the GPU computed"),
    "hnfed_gpu_memory_used_bytes": ("gauge", "memory of the GPU in use, by all programs"),
    "hnfed_gpu_memory_bytes": ("gauge", "memory of the GPU"),
}
Sample = tuple[str, dict[str, str], float]


def prometheus(state: RunState | ServerState | ClientState, machine: Mapping[str, Any]) -> str:
    """The text that a scraper reads.

    Args:
        state: of what is watched.
        machine: from `hnfed.watch.processes.machine`.
    """
    samples = [*_samples(state), *_of_machine(machine)]
    lines = []
    for name, (kind, meaning) in METRICS.items():
        mine = [s for s in samples if s[0] == name]
        if mine:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {float(value)!r}" for _, labels, value in mine]
    return "\n".join(lines) + "\n"


def _samples(state: RunState | ServerState | ClientState) -> Iterator[Sample]:
    yield "hnfed_well", {}, float(state.well)
    if isinstance(state, ClientState):
        yield "hnfed_up", {"role": "client"}, float(state.state != "not running")
        yield from _client(state)
        return
    if isinstance(state, ServerState):
        yield "hnfed_up", {"role": "server"}, float(state.up)
        for site, known in state.sites.items():
            yield "hnfed_site_connected", {"site": site}, float(bool(known))
    else:
        yield "hnfed_up", {"role": "run"}, float(state.state in ("preparing", "running"))
    run = state.run if isinstance(state, ServerState) else state
    if run is not None:
        yield from _run(run)


def _run(run: RunState) -> Iterator[Sample]:
    of_run = {"run": run.run or run.name}
    yield "hnfed_run_state", {**of_run, "state": run.state}, 1.0
    yield "hnfed_run_seconds", of_run, run.seconds
    if run.last_event is not None:
        yield "hnfed_run_last_event_seconds", of_run, run.last_event
    for phase in run.phases:
        labels = {**of_run, "phase": phase.name}
        yield "hnfed_phase_round", labels, phase.round
        yield "hnfed_phase_rounds", labels, phase.rounds
        yield "hnfed_phase_best_round", labels, phase.best_round
        if phase.seconds_left is not None:
            yield "hnfed_phase_left_seconds", labels, phase.seconds_left
        for split, dice in (("val", phase.dice), ("test", phase.test)):
            if dice is not None:
                yield "hnfed_mean_dice", {**labels, "split": split}, dice
        for organ in phase.organs:
            for split, dice in (("val", organ.dice), ("test", organ.test)):
                if dice is not None:
                    yield "hnfed_dice", {**labels, "split": split, "organ": organ.organ}, dice
    for site in run.sites:
        labels = {**of_run, "site": site.name}
        yield "hnfed_site_state", {**labels, "state": site.state}, 1.0
        yield "hnfed_site_answered_total", labels, site.answered
        yield "hnfed_site_refused_total", labels, site.refused
    yield "hnfed_sent_bytes_total", of_run, run.bytes_to_sites
    yield "hnfed_received_bytes_total", of_run, run.bytes_from_sites


def _client(state: ClientState) -> Iterator[Sample]:
    yield "hnfed_connection_state", {"state": state.state}, 1.0
    yield "hnfed_order_seconds", {}, state.work["seconds"] if state.work else 0.0
    for code, count in sorted(state.replies.items()):
        yield "hnfed_replies_total", {"code": code}, count
    yield "hnfed_weights_left_bytes_total", {}, state.bytes


def _of_machine(machine: Mapping[str, Any]) -> Iterator[Sample]:
    yield "hnfed_processes", {}, machine.get("processes", 0)
    yield "hnfed_memory_bytes", {}, machine.get("memory_bytes", 0)
    gpus: Sequence[Mapping[str, Any]] = machine.get("gpus", [])
    for gpu in gpus:
        labels = {"gpu": str(gpu["index"])}
        if gpu["busy"] is not None:
            yield "hnfed_gpu_busy_ratio", labels, gpu["busy"] / 100
        yield "hnfed_gpu_memory_used_bytes", labels, gpu["used_bytes"]
        yield "hnfed_gpu_memory_bytes", labels, gpu["bytes"]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{told}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
