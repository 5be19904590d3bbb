"""The plain loop: one process, one site after the other, the mean of what they trained."""

from __future__ import annotations

from benchmarks.peers.task import ROUNDS, SITES, Network, checksum, epoch, mean

state = Network().state_dict()
for _ in range(ROUNDS):
    state = mean([epoch(state, site) for site in range(SITES)])
checksum(state)
