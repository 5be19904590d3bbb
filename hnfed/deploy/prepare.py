"""Archive to cache in a process of its own, by installed code: a bundle never sees an archive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from client.site import count_codes
from client.site_file import site_from_file
from core.config import plan_from_json
from core.service import end_with_parent
from hnfed.guard.environment import node_environment
from hnfed.guard.exit import code_of
from hnfed.guard.log import Log
from hnfed.guard.node import PreparationError
from hnfed.guard.policy import read_policy
from hnfed.guard.sandbox import limit_memory
from hnfed.guard.walls import GIB

COMMAND = (sys.executable, "-I", "-m", "hnfed.deploy.prepare")


def prepared_apart(
    site_file: Path, policy_file: Path, plan: str, run: str
) -> tuple[str, Mapping[str, int]]:
    """Prepares a site's cases for a plan, within the time and memory that its policy gives.

    What was prepared by then stays: the next query goes on from there.

    Args:
        site_file: YAML.
        policy_file: ``policy.yaml`` of the kit.
        plan: as JSON, one that was checked.
        run: checked id of the run.

    Returns:
        Keyed hash of the split, and reason code -> how many cases were left out.

    Raises:
        PreparationError: with the code for the server; the site's log says why.
    """
    log = Log(site_from_file(site_file, run).base_folder.parent)
    policy = read_policy(policy_file)
    memory, longest_s = int(policy.memory_gb * GIB), policy.longest_s
    told = {"site": str(site_file), "plan": plan, "run": run, "memory_bytes": memory}
    order = json.dumps(told)
    try:
        done = subprocess.run(
            COMMAND, input=order, capture_output=True, text=True, errors="replace", check=False,
            env=node_environment(), preexec_fn=partial(end_with_parent, os.getpid()),
            timeout=longest_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        log.add(f"preparing took more than {longest_s} s (longest_s of policy.yaml), and was ended")
        raise PreparationError("E_TIME") from error
    log.add(done.stderr)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        killed = done.returncode == -signal.SIGKILL
        raise PreparationError("E_MEMORY" if killed else "E_INTERNAL") from error
    if "code" in answer:
        raise PreparationError(str(answer["code"]))
    return str(answer["split"]), {str(k): int(n) for k, n in answer["left_out"].items()}


def main() -> int:
    """The process: what to do comes by standard input, what was done goes to standard output."""
    os.umask(0o077)
    told = json.loads(sys.stdin.read())
    limit_memory(told["memory_bytes"])
    try:
        site = site_from_file(Path(told["site"]), told["run"])
        _, findings = site.prepare(plan_from_json(told["plan"]))
        answer = {"split": site.split_hash(), "left_out": count_codes(findings)}
    except Exception as error:
        traceback.print_exc()
        answer = {"code": code_of(error)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
