from __future__ import annotations

from tests.hnfed.guard.conftest import Hospital


def test_query_train_and_evaluate_pass_the_guard(hospital: Hospital) -> None:
    told = hospital.ask("query")
    assert told.code == "OK", hospital.log
    assert told.metrics["cases"] == [3, 1, 1]
    trained = hospital.ask("train", hospital.order(), arrays=hospital.start())
    assert trained.code == "OK", hospital.log
    assert trained.state.keys()
    assert trained.metrics["startup"] > 0
    scored = hospital.ask("evaluate", hospital.order(task="test"), arrays=hospital.start())
    assert scored.code == "OK", hospital.log
    assert scored.parcel == b""
