"""What secure aggregation costs: the same experiment with and without it, in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config, resolve
from simulations.engines.engines import run_local


@dataclass(frozen=True)
class SecureCost:
    """Summaries of two runs that differ in nothing but secure aggregation."""

    plain: Mapping[str, Any]
    secure: Mapping[str, Any]

    def ratio(self, key: str) -> float:
        """Of `seconds`, `bytes_up` or `bytes_down`, secure to plain."""
        return float(self.secure[key] / self.plain[key])

    @property
    def bytes_ratio(self) -> float:
        """Of all bytes of tensors, both ways."""
        secure, plain = (run["bytes_up"] + run["bytes_down"] for run in (self.secure, self.plain))
        return float(secure / plain)

    @property
    def accuracy_difference(self) -> float:
        """Largest difference of the accuracies after each task, in points."""
        pairs = zip(self.secure["accuracy_after_tasks"], self.plain["accuracy_after_tasks"], strict=True)
        return max(abs(float(secure) - float(plain)) for secure, plain in pairs)


def secure_cost(config: Config[Any], folder: Path) -> SecureCost:
    """Run an experiment both ways, each once; `seconds` are those of its steps, with one site after the other.

    The secure run comes first: what the first run in a process has to do beyond its work counts against it.

    Raises:
        ConfigError: the experiment cannot have secure aggregation.
    """
    summaries = {}
    for secure in (True, False):
        data = config.model_dump(mode="json")
        data["federation"]["secure_aggregation"] = secure
        run = run_local(resolve(data, "the experiment with secure aggregation", {}), folder, None, lambda _: None)
        summaries[secure] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return SecureCost(summaries[False], summaries[True])
