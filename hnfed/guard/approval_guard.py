"""What stands before Flower's `flwr-clientapp` at a site: unapproved code is never installed.

What Flower would tell the server of an error, text and all, is replaced by a fixed sentence.
Run as a file (`python -P approval_guard.py`), so that no package of ours is imported before the
app's own. ``HNFED_KIT`` names the kit: ``approved.json`` lists the SHA-256 of the bundles that may
run; another one is kept in ``pending/`` for `hnfed approve` and refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

STARTED = "HNFED_STARTED"  # when this message's process began, seconds since 1970
TOLD = "hnfed: "  # begins a line that `hnfed client` shows to the person at the site

SAID = "an error at the site; its own log says which"


class NotApprovedError(Exception):
    """The bundle's SHA-256 is not in ``approved.json``."""


def require_approved(content: bytes, kit: Path) -> None:
    """Raises `NotApprovedError`, and keeps the bundle for a look, unless it is approved."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        approved = {entry["sha256"] for entry in json.loads((kit / "approved.json").read_text())}
    except (OSError, ValueError, KeyError, TypeError):
        approved = set()
    if digest in approved:
        return
    pending = kit / "pending"
    pending.mkdir(exist_ok=True)
    part = pending / f".{digest}.part"
    part.write_bytes(content)
    part.replace(pending / f"{digest}.fab")
    print(
        f"{TOLD}code bundle {digest[:16]} is not approved at this site, nothing ran; "
        "look at it and pin it with `hnfed approve KIT`",
        file=sys.stderr,
        flush=True,
    )
    raise NotApprovedError("E_BUNDLE")


def scrub(module: Any) -> None:
    """Makes Flower's runner tell of an error without its text: that may hold a name or a path.

    Our handlers answer every error themselves. This is for what goes wrong around them: a bundle
    that does not load, a reply that cannot be sent.

    Args:
        module: `flwr.supernode.runtime.run_clientapp`.
    """
    error, push_output = module.Error, module.push_task_output

    def silent(code: int, reason: str = "") -> Any:
        return error(code=code, reason=SAID if reason else "")

    def push_silent(*arguments: Any, **options: Any) -> Any:
        return push_output(*arguments, **options | {"details": SAID if options["details"] else ""})

    module.Error, module.push_task_output = silent, push_silent


def main() -> None:
    """Runs `flwr-clientapp` with the check in front of its installer."""
    os.environ[STARTED] = repr(time.time())
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    module: Any = run_clientapp
    kit, install = Path(os.environ["HNFED_KIT"]), module.install_from_fab

    def guarded(fab_file: Any, *arguments: Any, **options: Any) -> Any:
        content = fab_file if isinstance(fab_file, bytes) else Path(fab_file).read_bytes()
        require_approved(content, kit)
        return install(fab_file, *arguments, **options)

    module.install_from_fab = guarded
    scrub(module)
    flwr_clientapp()


if __name__ == "__main__":
    main()
