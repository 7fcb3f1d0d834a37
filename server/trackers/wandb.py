"""Show a run at Weights & Biases; `WANDB_MODE=offline` keeps it in the run's directory until `wandb sync`.

https://docs.wandb.ai/ref/python/init/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import wandb

from server.trackers.tracker import Ending, TrackedRun


class WandbTracker:
    """Writes into one run of the project that has the experiment's name."""

    def __init__(self, run: TrackedRun) -> None:
        names = {"project": run.experiment, "name": run.directory.name, "dir": str(run.directory)}
        self._run = wandb.init(**names, id=run.known or None, resume="allow" if run.known else None)
        self._run.define_metric("*", step_metric="at")
        self.id = str(self._run.id)

    def parameters(self, values: Mapping[str, str | float]) -> None:
        """Fill the run's config."""
        self._run.config.update(dict(values))

    def points(self, at: int, values: Mapping[str, float]) -> None:
        """Log values over `at`, since W&B's own count of steps only goes up."""
        self._run.log({"at": at, **values})

    def file(self, path: Path) -> None:
        """Upload a file."""
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def end(self, ending: Ending) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(ending != "finished"))
