"""What differential privacy costs in accuracy: one experiment without it, and again for each budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.support.errors import ConfigError
from simulations.engines.engines import run_local


@dataclass(frozen=True)
class PrivacyRow:
    """One run.

    Attributes:
        budget: epsilon; None without privacy.
        epsilon: that the site which spent most has spent; of the whole run with client-level privacy.
        noise_multiplier: of its mechanisms.
        average: incremental accuracy, in percent.
        last: accuracy after the last task, in percent.
    """

    budget: float | None
    epsilon: float | None
    noise_multiplier: float | None
    average: float
    last: float


def privacy_rows(
    config: Path, budgets: Sequence[float], overrides: Mapping[str, Scalar], folder: Path
) -> Iterator[PrivacyRow]:
    """Run the experiment without privacy, then with each budget, one after the other.

    Args:
        config: an experiment whose `privacy.mechanism` is not none.
        budgets: of epsilon.
        overrides: of all runs.
        folder: for the runs.

    Raises:
        ConfigError: the experiment is not private.
    """
    settings = load_config(config, overrides)
    if settings.privacy.mechanism == "none":
        raise ConfigError(
            f"{config}: privacy.mechanism is none: there is nothing to measure",
            remedy="Take configs/private_digits.yaml, or add --set privacy.mechanism=example",
        )
    for budget in (None, *budgets):
        own: dict[str, Scalar] = {"privacy.mechanism": "none"} if budget is None else {"privacy.epsilon": budget}
        run = run_local(load_config(config, {**overrides, **own}), folder, None, lambda event: None)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        spent = summary["privacy"] or {"epsilon": None, "noise_multiplier": None}
        scores = summary["average_incremental_accuracy"], summary["last_accuracy"]
        yield PrivacyRow(budget, spent["epsilon"], spent["noise_multiplier"], *scores)


def privacy_table(rows: Sequence[PrivacyRow], title: str) -> Table:
    """The rows for people, each with what it lost against the first."""
    table = Table(title=title)
    for column in ("epsilon, budget", "epsilon, spent", "noise multiplier", "average %", "last %", "last, lost"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            "none" if row.budget is None else f"{row.budget:g}",
            "-" if row.epsilon is None else f"{row.epsilon:.2f}",
            "-" if row.noise_multiplier is None else f"{row.noise_multiplier:g}",
            f"{row.average:.1f}",
            f"{row.last:.1f}",
            f"{rows[0].last - row.last:.1f}",
        )
    return table
