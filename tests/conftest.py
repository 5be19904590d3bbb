from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.balls import ball_archive

__all__ = ["ball_archive"]

# A slow machine is no fault of what is tested.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-data", default="", help="folder with real archives")


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder with real archives; the test is skipped, and counted as skipped, without one."""
    given = request.config.getoption("--real-data")
    if not given:
        pytest.skip("no real data: give --real-data DIR")
    root = Path(given).resolve()
    assert root.is_dir(), f"--real-data {root} is no folder"
    return root


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Reproducible sums, and no fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """Commands set their own; the tests that follow begin with the usual one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def task_identity() -> Iterator[None]:
    """Lets a test make Flower messages outside a run, and call an app on them directly."""
    from flwr.supercore.task_identity import TaskIdentity

    names = ("run_id", "task_id", "node_id")
    before = {name: getattr(TaskIdentity, f"_{name}", None) for name in names}
    for name in names:
        setattr(TaskIdentity, name, 1)
    yield
    for name, value in before.items():
        setattr(TaskIdentity, f"_{name}", value)


def heard() -> None:
    """For `preexec_fn`: Ctrl-C reaches the child also where this suite runs behind ``&``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def lose_a_signal() -> None:
    """SIGTERM comes up in code that swallows what it raises; for tests with `leaving`."""
    with contextlib.suppress(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def leaving() -> Iterator[None]:
    """Signals raise as in a command of ours; what the test did is forgotten after it."""
    from core.processes import leave_by_signal

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    leave_by_signal()
    yield
    leave_by_signal()
    for number, handler in before.items():
        signal.signal(number, handler)
