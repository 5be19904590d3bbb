"""The end of all processes of a launch, whatever they have done to their environment."""

from __future__ import annotations

import subprocess

from simulations.supervise import owned, stop

MARK = "FLWR_HOME=/no/such/launch"


def test_what_process_1_has_inherited_is_found_by_its_session() -> None:
    """Ray's agents write their title over their environment; their supervisor was killed."""
    leader = subprocess.Popen(
        ["sh", "-c", "env -i sleep 60 > /dev/null & echo $!"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    told, _ = leader.communicate(timeout=20)
    orphan = int(told)
    assert orphan not in owned(MARK)
    assert owned(MARK, leader.pid) == {orphan}
    stop(MARK, 0.0, leader.pid)
    assert owned(MARK, leader.pid) == set()
