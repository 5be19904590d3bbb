from __future__ import annotations

from benchmarks.overhead import shares


def test_only_computing_within_rounds_is_taken_off_their_seconds() -> None:
    events = [
        {"event": "accepted", "round": 1, "site": "a", "seconds_compute": 4.0},
        {"event": "accepted", "round": 1, "site": "b", "seconds_compute": 3.0},
        {"event": "round", "round": 1, "seconds": 8.0, "seconds_compute": 7.0},
        {"event": "round", "round": 2, "seconds": 6.0, "seconds_compute": 5.0},
        {"event": "accepted", "round": 2, "site": "a", "seconds_compute": 9.0},  # the test scores
    ]
    assert shares(events) == (14.0, 12.0)
