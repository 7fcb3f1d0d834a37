"""Show a run in MLflow: at `$MLFLOW_TRACKING_URI`, or in the database `mlflow.db` beside the run's directory.

https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from server.trackers.tracker import Ending, TrackedRun

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import: nobody else is to hear of a run

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

URI = "MLFLOW_TRACKING_URI"
MOST_PARAMETERS, MOST_METRICS, LONGEST = 100, 1000, 6000
"""What MLflow takes at a time, and of a parameter's value."""
STATUS: Mapping[Ending, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MlflowTracker:
    """Writes into one MLflow run, in the MLflow experiment that has the experiment's name."""

    def __init__(self, run: TrackedRun) -> None:
        self._beside = run.directory.absolute().parent
        self._client = MlflowClient(os.environ.get(URI) or f"sqlite:///{self._beside / 'mlflow.db'}")
        self.id = run.known or self._new(run)
        self._client.update_run(self.id, status="RUNNING")

    def parameters(self, values: Mapping[str, str | float]) -> None:
        """Log the parameters, which MLflow lets nobody change later."""
        known = [Param(key, str(value)[:LONGEST]) for key, value in values.items()]
        for start in range(0, len(known), MOST_PARAMETERS):
            self._client.log_batch(self.id, params=known[start : start + MOST_PARAMETERS])

    def points(self, at: int, values: Mapping[str, float]) -> None:
        """Log metrics of one step."""
        now = int(time.time() * 1000)
        known = [Metric(curve, value, now, at) for curve, value in values.items()]
        for start in range(0, len(known), MOST_METRICS):
            self._client.log_batch(self.id, metrics=known[start : start + MOST_METRICS])

    def file(self, path: Path) -> None:
        """Log an artefact."""
        self._client.log_artifact(self.id, str(path))

    def end(self, ending: Ending) -> None:
        """Mark how the run ended."""
        self._client.set_terminated(self.id, STATUS[ending])

    def _new(self, run: TrackedRun) -> str:
        place = None if os.environ.get(URI) else (self._beside / "mlartifacts").as_uri()
        experiment = self._client.get_experiment_by_name(run.experiment)
        known = experiment.experiment_id if experiment else self._client.create_experiment(run.experiment, place)
        return str(self._client.create_run(known, run_name=run.directory.name).info.run_id)
