"""What lying sites do to each aggregator: clean runs, runs under attack, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.support.errors import ConfigError, unknown_name
from simulations.comparisons.compare import METRICS, Cell, Json, Wire
from simulations.comparisons.wires import ATTACKS
from simulations.measurements.figures import Columns

CLEAN = "clean"


def plan(
    config: Path, overrides: Mapping[str, Scalar], *, aggregators: Sequence[str], attacks: Sequence[str], liars: int
) -> list[Cell]:
    """Return every run of the table: each aggregator clean and under each attack, the mean first, all with one seed.

    Raises:
        ConfigError: an unknown name, a configuration that is wrong, or more liars than an aggregator withstands.
    """
    for kind, names, known in (("aggregator", aggregators, AGGREGATORS), ("attack", attacks, ATTACKS)):
        for name in names:
            if name not in known:
                raise ConfigError(unknown_name(kind, name, known), accepted=", ".join(known))
    cells = []
    for aggregator in dict.fromkeys(["mean", *aggregators]):
        own = {**overrides, "federation.aggregator": aggregator, "federation.liars": liars}
        read = load_config(config, own)
        if read.federation.sites <= liars:
            raise ConfigError(f"--liars {liars} leaves no honest site among {read.federation.sites}")
        if attacks and read.federation.compression != "none":
            raise ConfigError("the attacks need uncompressed tensors", remedy="Set federation.compression: none")
        cells.append(Cell(CLEAN, aggregator, read.seed, read, Wire(CLEAN)))
        cells += [Cell(attack, aggregator, read.seed, read, Wire(attack, attack=attack)) for attack in attacks]
    return cells


def rows(cells: Sequence[Cell], runs: Path, errors: Mapping[str, str]) -> list[Json]:
    """Return the table, in the order of the cells; `errors` by the name of a run say why others have no figures.

    Accuracies are in percent. Differences, in points, are from the clean run of the same aggregator (`..._from_own`)
    and from the clean run of the mean (`..._from_mean`); those of a run that did not finish are None.
    """
    metric = METRICS["accuracy"]
    figures = {}
    for cell in cells:
        summary = cell.summary(runs) or {}
        figures[cell.row, cell.setting] = {"average": summary.get(metric.average), "last": summary.get(metric.last)}
    table: list[Json] = []
    for cell in cells:
        own = figures[cell.row, cell.setting]
        others = {"own": figures[cell.row, CLEAN], "mean": figures["mean", CLEAN]}
        differences = {
            f"{name}_from_{whose}": _difference(own[name], other[name])
            for whose, other in others.items()
            for name in own
        }
        error = errors.get(cell.run_name, "")
        table.append({"aggregator": cell.row, "attack": cell.setting, **own, **differences, "error": error})
    return table


def _pair(row: Json, of: str, shape: str) -> str:
    return " / ".join("-" if row[key] is None else shape.format(row[key]) for key in (f"average{of}", f"last{of}"))


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one - other, 4)


COLUMNS: Columns = {
    "aggregator": lambda row: "" if row["attack"] != CLEAN else row["aggregator"],
    "attack": lambda row: row["attack"],
    "average / last": lambda row: "broke down" if row["error"] else _pair(row, "", "{:.1f}"),
    "from its own clean run": lambda row: "" if row["attack"] == CLEAN else _pair(row, "_from_own", "{:+.1f}"),
    "from the mean's": lambda row: _pair(row, "_from_mean", "{:+.1f}"),
}
"""Each pair of figures is that of the average and of the last accuracy."""
