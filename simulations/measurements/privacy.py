"""What differential privacy costs in accuracy: one experiment without it, and again for each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.support.errors import ConfigError
from simulations.comparisons.compare import Cell, Json
from simulations.measurements.figures import Columns, decimals


def plan(config: Path, budgets: Sequence[float], overrides: Mapping[str, Scalar]) -> list[Cell]:
    """Return the run without privacy, then one for each budget.

    Args:
        config: an experiment whose `privacy.mechanism` is not none.
        budgets: values of epsilon.
        overrides: leaves of the experiment, for all runs.

    Raises:
        ConfigError: the experiment is not private, or wrong.
    """
    if load_config(config, overrides).privacy.mechanism == "none":
        raise ConfigError(
            f"{config}: privacy.mechanism is none, so there is nothing to measure",
            remedy="Use configs/private_digits.yaml, or add --set privacy.mechanism=example",
        )
    cells = []
    for budget in (None, *dict.fromkeys(budgets)):
        own: dict[str, Scalar] = {"privacy.mechanism": "none"} if budget is None else {"privacy.epsilon": budget}
        read = load_config(config, {**overrides, **own})
        cells.append(Cell("", "none" if budget is None else f"{budget:g}", read.seed, read))
    return cells


def rows(cells: Sequence[Cell], runs: Path) -> list[Json]:
    """Return a row for each finished run.

    `epsilon` is what the site that spent most has spent, or the whole run with client-level privacy; it and the noise
    multiplier are None without privacy. `average`, `last` and what of it was `lost` against the first are in percent.
    """
    finished = [(cell.row, summary) for cell in cells if (summary := cell.summary(runs)) is not None]
    table: list[Json] = []
    for budget, summary in finished:
        spent = summary["privacy"] or {}
        table.append(
            {
                "budget": budget,
                "epsilon": spent.get("epsilon"),
                "noise_multiplier": spent.get("noise_multiplier"),
                "average": summary["average_incremental_accuracy"],
                "last": summary["last_accuracy"],
                "lost": finished[0][1]["last_accuracy"] - summary["last_accuracy"],
            }
        )
    return table


COLUMNS: Columns = {
    "epsilon, budget": lambda row: row["budget"],
    "epsilon, spent": lambda row: decimals(row["epsilon"], 2) or "-",
    "noise multiplier": lambda row: "-" if row["noise_multiplier"] is None else f"{row['noise_multiplier']:g}",
    "average %": lambda row: decimals(row["average"]),
    "last %": lambda row: decimals(row["last"]),
    "last, lost": lambda row: decimals(row["lost"]),
}
