"""`hnfed run`: a plan to the running server, followed to its end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import replace_file
from core.identifiers import folder_name
from core.journal import JOURNAL, LINE, read_events
from core.packaging.app_bundle import staged_app, toml_of, write_private
from core.plan.load import load
from core.processes import held
from core.text import shown, uncoloured
from core.tracking.follow import require_mode, tracked
from core.wire.partition import network, parts_of
from hnfed.deploy.provision import read_roster
from hnfed.deploy.superlink import CONNECTION, answers, bundle_sha256, environment, flower, json_of
from hnfed.guard.kit import Kit
from hnfed.guard.kit_files import kept_text
from server.run_folder import begin, held_folder

FLOWER_RUN = "flower_run"  # in the run's folder: Flower's id of the last attempt
POLL_SECONDS, RESUME_SECONDS = 1.0, 20.0
ASK_SECONDS = 10.0  # each question is a process of Flower's command line: a second of CPU or so
ANSWER_SECONDS, END_SECONDS = 10.0, 20.0
SILENT_SECONDS = 180.0  # a server that is started again answers by then


def submit(
    kit: Kit,
    config: str,
    overrides: Sequence[str],
    *,
    name: str = "",
    resume: bool = False,
    again: int = 0,
) -> int:
    """Runs a plan on the federation and follows it; Ctrl-C stops the run.

    A run to be resumed that is still at work at the server is followed again instead.

    Args:
        kit: the server's; `hnfed server` runs with it.
        config: shipped name or YAML path.
        overrides: KEY=VALUE.
        name: of the run's folder below ``KIT/runs``; by default the plan's.
        resume: go on with the run of that name.
        again: how often a run that ended before its end is resumed unattended.

    Returns:
        0 where all phases completed, else 1.

    Raises:
        UserError: what cannot work, or no server.
    """
    if name:
        folder_name(name, "--name")
    if again < 0:
        raise UserError("--auto-resume", again, "give a whole number >= 0")
    resolved, sources = load(config, overrides)
    require_mode(resolved.tracking)
    for phase in resolved.phases:
        parts_of(network(resolved, phase), resolved, phase)
    if not resume:  # a site that was revoked meanwhile is missing then, as one that is away
        _require_rostered(kit, resolved.site_names)
    if not answers(kit, kit.internal_port, ANSWER_SECONDS):
        raise UserError(
            "--server", kit.folder, f"start it: hnfed server {shlex.quote(str(kit.folder))}",
            problem=f"the server does not answer on 127.0.0.1:{kit.internal_port}",
        )  # fmt: skip
    root = kit.folder / "runs"
    out = root / name if name else None
    with held_folder(Path(config).stem, out, resume, root) as folder:
        values = begin(resolved, resolved, folder, out=folder.name, resume=resume, local="")
        replace_file(folder / "sources.json", json.dumps(sources, indent=1))
    words = ["hnfed", "run", config, *overrides, "--server", str(kit.folder)]
    words.append(f"--name={folder.name}")
    command = shlex.join([*words, "--resume"])
    try:
        with tracked(folder, resolved.tracking):
            status = _run_on(kit, values, folder, again)
    except (KeyboardInterrupt, SystemExit):
        print(f"hnfed: to go on with the run:\n  {command}", file=sys.stderr)
        raise
    from hnfed.report.page import write_report

    print(f"report: {write_report(folder)}")
    if status != "finished:completed":
        print(
            f"hnfed: error: the run ended as {status.rpartition(':')[2]}; what it did is kept.\n"
            f"  remedy: read {folder / 'journal.jsonl'}, mend the cause, then:\n"
            f"  {command}",
            file=sys.stderr,
        )
    return 0 if status == "finished:completed" else 1


def _require_rostered(kit: Kit, wanted: Sequence[str]) -> None:
    known = read_roster(kit.folder)
    if missing := [site for site in wanted if site not in known]:
        raise UserError(
            "phases.sites", ", ".join(missing),
            f"use sites of this federation ({', '.join(known)}), by phases.NAME.sites=[...], or "
            "admit them: hnfed provision --sign REQUEST",
            problem="no such site in this federation",
        )  # fmt: skip


def _run_on(kit: Kit, values: dict[str, str], folder: Path, again: int) -> str:
    """Runs, and resumes what died `again` times; each committed round counts once.

    A run that found that it cannot go on (its journal ends with ``run-end``, failed) is not tried
    again without another round done: the same would end it again. Nor is one that a user stopped.
    """
    for left in reversed(range(again + 1)):
        before = read_events(folder / JOURNAL)
        try:
            status = _run(kit, values, folder)
        except UserError as error:  # the server is down or starting again
            if not left:
                raise
            status = f"unknown ({error.problem})"
        new = read_events(folder / JOURNAL)[len(before) :]
        if status in ("finished:completed", "finished:stopped") or not left or _refused(new):
            return status
        print(f"the run ended as {status}; resumed in {RESUME_SECONDS:.0f} s, {left} tries left",
              flush=True)  # fmt: skip
        time.sleep(RESUME_SECONDS)
        values = {**values, "resume": "1"}
    raise AssertionError("unreachable")


def _refused(new: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an attempt's events say that it found no way on, and committed no round."""
    ended = bool(new) and new[-1]["event"] == "run-end" and new[-1]["status"] == "failed"
    return ended and not any(event["event"] == "round" for event in new)


def _run(kit: Kit, values: dict[str, str], folder: Path) -> str:
    """Submits the app, or finds it at work, and follows it; returns Flower's last word on it."""
    run = _at_work(kit, folder) if values["resume"] else ""
    if not run:
        run = _submitted(kit, values)
        replace_file(folder / FLOWER_RUN, run)
    return _followed(kit, run)


def _at_work(kit: Kit, folder: Path) -> str:
    """Flower's id of the run that is at work in a folder; "" where none is.

    Raises:
        UserError: one is, and Flower does not know it as a run that can be followed.
    """
    lock, path = folder / "state" / ".lock", folder / FLOWER_RUN
    run = kept_text(path) or ""
    status = _status(kit, run, "finished") if run else "finished"
    begins = status.startswith(("pending", "starting"))  # its process has not taken the lock yet
    if begins or (held(lock) and not status.startswith("finished")):
        print("the run is still at work at the server: followed again; Ctrl-C stops it", flush=True)
        return run
    limit = time.monotonic() + END_SECONDS
    while held(lock):
        if not run or time.monotonic() > limit:  # one that was stopped just now ends by itself
            flwr = (
                f"FLWR_HOME={shlex.quote(str(kit.folder))}/flower "
                f"{shlex.quote(str(Path(sys.executable).with_name('flwr')))}"
            )
            raise UserError(
                "--resume", folder.name,
                f"follow {folder / JOURNAL}, or stop it and resume it then:\n"
                f"  {flwr} list {CONNECTION}     # its ID\n"
                f"  {flwr} stop ID {CONNECTION}",
                problem="the run is still at work at the server",
            )  # fmt: skip
        time.sleep(POLL_SECONDS)
    return ""


def _submitted(kit: Kit, values: dict[str, str]) -> str:
    """Submits the app; returns Flower's id of the run."""
    with staged_app() as app:
        print(f"app bundle {bundle_sha256(app)}: what the sites must have approved", flush=True)
        config = app.parent / "run.toml"
        write_private(config, toml_of(values))
        told = flower(
            kit, "run", str(app), CONNECTION, "--run-config", str(config), "--format", "json"
        )
    run = json_of(told).get("run-id")
    if not run:
        remedy = "read the server's log"
        raise UserError("run", told.strip()[-300:], remedy, problem="Flower named no run")
    return str(run)


def _followed(kit: Kit, run: str) -> str:
    """Hands on the run's own lines to its end; Ctrl-C stops it."""
    stream = subprocess.Popen(
        [str(Path(sys.executable).with_name("flwr")), "log", run, CONNECTION, "--stream"],
        env=environment(kit), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    follower = threading.Thread(target=_follow, args=(stream,), daemon=True)
    follower.start()
    try:
        status = _ended(kit, run, follower)
    except (KeyboardInterrupt, SystemExit):
        _stop(kit, run)
        raise
    finally:
        follower.join(timeout=5.0)
        stream.kill()
        stream.wait()
    return status


def _stop(kit: Kit, run: str) -> None:
    try:
        flower(kit, "stop", run, CONNECTION)
    except UserError as error:  # the interruption goes on all the same
        told = f"could not be stopped at the server: {error.problem}"
    else:
        told = "was stopped at the server"
    print(f"hnfed: the run {told}", file=sys.stderr)


def _ended(kit: Kit, run: str, follower: threading.Thread) -> str:
    """Waits for the end of a run; a server that does not answer is asked again for a while.

    Flower ends the stream of a run's log with the run, so while it lasts there is little to ask.

    Args:
        kit: the server's.
        run: Flower's id.
        follower: reads the run's log for as long as its stream lasts.

    Raises:
        UserError: it has been silent for too long.
    """
    heard, pause = time.monotonic(), POLL_SECONDS
    while True:
        try:
            status = _status(kit, run)
            heard = time.monotonic()
        except UserError:
            if time.monotonic() - heard > SILENT_SECONDS:
                raise
            status = ""
        if status.startswith("finished"):
            return status
        if follower.is_alive():
            follower.join(ASK_SECONDS)
        else:
            time.sleep(pause)
            pause = min(2 * pause, ASK_SECONDS)


def _follow(stream: subprocess.Popen[str]) -> None:
    assert stream.stdout is not None
    for raw in stream.stdout:
        _, found, text = uncoloured(raw).partition(LINE)
        if found:
            print(shown(text.rstrip()), flush=True)


def _status(kit: Kit, run: str, unknown: str = "") -> str:
    """Flower's word on a run; `unknown` for one that it does not know.

    Raises:
        UserError: it does not know it, and `unknown` is empty.
    """
    told = flower(kit, "list", CONNECTION, "--run-id", run, "--format", "json")
    runs: list[dict[str, Any]] = json_of(told).get("runs", [])
    if not runs and not unknown:
        raise UserError("run", run, "read the server's log", problem="the server does not know it")
    return str(runs[0]["status"]) if runs else unknown
