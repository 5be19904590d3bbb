"""Tracking into MLflow: ``RUN/mlflow.db``, or the server that MLFLOW_TRACKING_URI names.

Through MLflow's client alone: its fluent interface adds the user's name, the command and the git
commit. Weights are named by path and hash, not copied.
"""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.tracking.numbers import Model
from core.tracking.reach import answers
from core.tracking.wandb_run import REACH_TIMEOUT_S, scrubbed

FILE, ARTIFACTS = "mlflow.db", "mlartifacts"
URI = "MLFLOW_TRACKING_URI"
UNFIT = re.compile(r"[^A-Za-z0-9_\-. /]+")
MOST_OF_A_VALUE, MOST_AT_ONCE = 500, 100  # of a parameter; metrics of a call


class MlflowRun:
    """`core.tracking.numbers.Tracker` as an MLflow run.

    Args:
        folder: the run folder.
        run: its id, and name of the MLflow run; a resumed run goes on with the same.
        project: name of the experiment.
        steps: by phase, from `first_steps`.
        config: the plan; logged as parameters, without paths of this machine.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(
        self, folder: Path, run: str, project: str, steps: Mapping[str, int],
        config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["DO_NOT_TRACK"] = "true"
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.notes: list[str] = []
        self._folder, self._steps, self._metric = folder, steps, Metric
        local = f"sqlite:///{folder.resolve() / FILE}"
        uri = os.environ.get(URI) or local
        if uri.startswith("http") and not answers(uri, REACH_TIMEOUT_S):
            self.notes.append(
                f"MLflow: {uri.split('@')[-1]} did not answer within {REACH_TIMEOUT_S:g} s; the "
                f"run is tracked in {FILE} of its folder"
            )
            uri = local
        self._client = client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(project)
        place = (folder.resolve() / ARTIFACTS).as_uri() if uri == local else None
        experiment = known.experiment_id if known else client.create_experiment(project, place)
        text = f"tags.`hnfed.run` = '{run}'"
        earlier = client.search_runs([experiment], text, max_results=1)
        made = earlier[0] if earlier else client.create_run(
            experiment, run_name=run, tags={"hnfed.run": run}
        )  # fmt: skip
        self._run = made.info.run_id
        if not earlier:
            told = _flat(scrubbed(config))
            for start in range(0, len(told), MOST_AT_ONCE):
                part = told[start : start + MOST_AT_ONCE]
                client.log_batch(self._run, params=[Param(key, value) for key, value in part])

    def log(self, phase: str, round: int, values: Mapping[str, Any]) -> None:
        """One round: metrics ``PHASE/KEY``."""
        now, step = int(1000 * time.time()), self._steps.get(phase, 0) + round
        found = [
            self._metric(UNFIT.sub("-", f"{phase}/{key}"), float(value), now, step)
            for key, value in {**values, "round": round}.items()
            if isinstance(value, int | float)
        ]
        for start in range(0, len(found), MOST_AT_ONCE):
            self._client.log_batch(self._run, metrics=found[start : start + MOST_AT_ONCE])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """One table, as CSV."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([columns, *rows])
        self._client.log_text(self._run, text.getvalue(), f"{name}.csv")

    def model(self, model: Model) -> None:
        """Weights by their path in the run folder, as tags."""
        path = model.path.relative_to(self._folder).as_posix()
        about = {"path": path, "uses": model.uses, **model.about}
        for key, value in about.items():
            self._client.set_tag(self._run, f"{model.name}.{key}", str(value))

    def alert(self, title: str, text: str) -> None:
        """What somebody should look at, as a tag."""
        self._client.set_tag(self._run, UNFIT.sub("-", f"alert.{title}")[:200], text[:4000])

    def finish(self, status: str = "completed") -> None:
        """The end."""
        word = {"completed": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED")
        self._client.set_terminated(self._run, word)


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for k, v in value.items() for pair in _flat(v, f"{key}.{k}" if key else k)]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [p for i, v in enumerate(value) for p in _flat(v, f"{key}.{v.get('name', i)}")]
    return [(UNFIT.sub("-", key)[:250], str(value)[:MOST_OF_A_VALUE])]
