"""What secure aggregation costs: the same experiment with and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config, resolve
from simulations.comparisons.compare import Cell


@dataclass(frozen=True)
class SecureCost:
    """Summaries of two runs that differ in nothing but secure aggregation."""

    plain: Mapping[str, Any]
    secure: Mapping[str, Any]

    def ratio(self, key: str) -> float:
        """Return the ratio, secure to plain, of `seconds`, `bytes_up` or `bytes_down`."""
        return float(self.secure[key] / self.plain[key])

    @property
    def bytes_ratio(self) -> float:
        """Return the ratio, secure to plain, of the bytes of all tensors, both ways."""
        secure, plain = (run["bytes_up"] + run["bytes_down"] for run in (self.secure, self.plain))
        return float(secure / plain)

    @property
    def accuracy_difference(self) -> float:
        """Return the largest difference of the accuracies after a task, in points."""
        pairs = zip(self.secure["accuracy_after_tasks"], self.plain["accuracy_after_tasks"], strict=True)
        return max(abs(float(secure) - float(plain)) for secure, plain in pairs)

    def __str__(self) -> str:
        """Say what it costs in one line."""
        secure, plain = self.secure, self.plain
        return (
            f"{secure['sites']} sites, secure / plain: bytes {self.bytes_ratio:.2f} "
            f"(up {self.ratio('bytes_up'):.2f}, down {self.ratio('bytes_down'):.2f}), "
            f"seconds {self.ratio('seconds'):.2f} ({secure['seconds']:.1f} / {plain['seconds']:.1f}); "
            f"last accuracy {secure['last_accuracy']:.1f} / {plain['last_accuracy']:.1f} %, "
            f"accuracies differ by {self.accuracy_difference:.2f} points at most"
        )


def plan(config: Config[Any]) -> list[Cell]:
    """Return the experiment with secure aggregation, then without it.

    The secure run comes first: what the first run in a process has to do beyond its work counts against it.

    Raises:
        ConfigError: the experiment cannot have secure aggregation.
    """
    cells = []
    for row, secure in (("secure", True), ("plain", False)):
        own = resolve(config.model_dump(mode="json"), "the experiment", {"federation.secure_aggregation": secure})
        cells.append(Cell("", row, own.seed, own))
    return cells


def secure_cost(cells: Sequence[Cell], runs: Path) -> SecureCost | None:
    """Return both summaries, None if a run is missing; `seconds` are those of the steps, one site after the other."""
    found = {cell.row: summary for cell in cells if (summary := cell.summary(runs)) is not None}
    return SecureCost(**found) if len(found) == len(cells) else None
