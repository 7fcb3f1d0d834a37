"""Show a run at Weights & Biases; `WANDB_MODE=offline` keeps it in the run's directory until `wandb sync`.

https://docs.wandb.ai/ref/python/init/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import wandb

from server.trackers.tracker import Ending, TrackedRun

NOTHING_ELSE: Mapping[str, Any] = MappingProxyType(
    {
        "console": "off",
        **dict.fromkeys(("disable_code", "disable_git", "disable_job_creation"), True),
        **dict.fromkeys(("x_disable_meta", "x_disable_machine_info", "x_disable_stats"), True),
        "x_save_requirements": False,
    }
)
"""Settings under which W&B does not also take what is printed, the code, and the machine: its name, load, paths."""


class WandbTracker:
    """Writes into one run of the project that has the experiment's name."""

    def __init__(self, run: TrackedRun) -> None:
        names = {"project": run.experiment, "name": run.directory.name, "dir": str(run.directory)}
        again = {"id": run.known or None, "resume": "allow" if run.known else None}
        self._run = wandb.init(**names, **again, settings=wandb.Settings(**NOTHING_ELSE))
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
