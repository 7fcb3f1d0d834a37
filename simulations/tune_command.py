"""`dynammo-sim tune`: choose values for each row under each setting on held-out training images, never on the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from dynammo_core.support.errors import ConfigError, nearest_match, unknown_name
from dynammo_core.support.terminal import Terminal, readable_errors
from simulations.options import Workers

if TYPE_CHECKING:
    from simulations.comparisons.compare import Cell, Comparison, Metric

console = Terminal()


@dataclass(frozen=True)
class Trial:
    """One run of a row with values that may be chosen for it.

    Attributes:
        setting: under which it runs.
        row: whose values are tried.
        values: by dotted key.
        cell: the run, tested on held-out training images.
    """

    setting: str
    row: str
    values: Mapping[str, Any]
    cell: Cell


def tune(
    file: Annotated[Path, typer.Argument(metavar="COMPARISON", help="Comparison file.", show_default=False)],
    try_: Annotated[
        list[str],
        typer.Option(
            "--try",
            metavar="KEY=V1,V2",
            help="Values of a key to choose from, such as method.train.learning_rate=0.01,0.03. Repeatable: every "
            "combination is tried. Rows whose method lacks the key stay as they are.",
            show_default=False,
        ),
    ],
    row: Annotated[
        list[str] | None, typer.Option(help="Name of a row to tune; repeatable. By default all.", show_default=False)
    ] = None,
    validation: Annotated[int, typer.Option(min=1, help="Training images per class to hold out and test on.")] = 50,
    runs: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs/tune"),
    workers: Workers = None,
) -> None:
    """Choose values for each row under each setting of a comparison, with its first seed, on held-out training images.

    The last lines belong into the comparison file; safe to stop and continue.
    """
    with readable_errors():
        from simulations.comparisons.compare import load_comparison
        from simulations.comparisons.progress import run_under_display
        from simulations.comparisons.run_groups import measure

        comparison = load_comparison(file)
        made = trials(comparison, parse_tries(try_), validation, row or ())
        failed = run_under_display([trial.cell for trial in made], runs, console, workers=workers)
        summaries = [trial.cell.summary(runs) or {} for trial in made]
        metric = measure(comparison.metric, summaries)
        for trial, summary in zip(made, summaries, strict=True):
            figures = ", ".join(f"{summary.get(key)}" for key in (metric.average, metric.last))
            console.print(
                f"{trial.cell.label}: average and last {metric.words} {figures}", soft_wrap=True, markup=False
            )
        block = yaml.safe_dump({"chosen": chosen(made, metric, runs)}, sort_keys=False)
        block = block.replace("? ''\n  : ", "'':\n    ")  # the setting of a comparison without settings has no name
        console.print(f"\n{block}", soft_wrap=True, markup=False, highlight=False)
        if failed:
            raise typer.Exit(1)


def parse_tries(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values to try, by dotted key.

    Raises:
        ConfigError: a text is not KEY=V1,V2.
    """
    tried = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            tried[key] = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            equals = ""
        if not (key and equals and tried.get(key)):
            raise ConfigError(f"--try {text!r} names no values", accepted="KEY=V1,V2, such as method.alpha=0.1,0.5")
    return tried


def trials(
    comparison: Comparison, tried: Mapping[str, Sequence[Any]], validation: int, rows: Sequence[str] = ()
) -> list[Trial]:
    """List every combination of values for each row that has one of the keys, under each setting.

    Args:
        comparison: whose first seed is used.
        tried: values by dotted key.
        validation: training images per class to hold out.
        rows: those that are tuned; none: all.

    Raises:
        ConfigError: no row has such a name or key, or a value is not accepted.
    """
    from dynammo_core.configuration.config import resolve
    from simulations.comparisons.run_groups import leaves_of

    names = list(dict.fromkeys(cell.row for cell in comparison.cells))
    for name in rows:
        if name not in names:
            raise ConfigError(f"{comparison.file}: {unknown_name('row', name, names)}", accepted=", ".join(names))
    every = {key for cell in comparison.cells for key, _ in leaves_of(cell.config.model_dump(mode="json"))}
    for key in tried:
        if key not in every:
            raise ConfigError(f"no row of {comparison.file} has the key --try {key}{nearest_match(key, sorted(every))}")
    made = []
    for cell in comparison.cells:
        settings = cell.config.model_dump(mode="json")
        known = dict(leaves_of(settings))
        keys = [key for key in tried if key in known]
        if not keys or cell.seed != comparison.cells[0].seed or cell.row not in (rows or names):
            continue
        for values in product(*(tried[key] for key in keys)):
            own = dict(zip(keys, values, strict=True))
            changes = {**own, "data.validation_per_class": validation}
            config = resolve(cell.config.model_dump(mode="json"), f"{cell.label}, --try", changes)
            label = ", ".join([cell.row, *(f"{key}={value}" for key, value in own.items())])
            made.append(Trial(cell.setting, cell.row, own, replace(cell, row=label, config=config)))
    if not made:
        raise ConfigError(f"no row of {comparison.file} has a key of --try: {', '.join(tried)}")
    return made


def chosen(made: Sequence[Trial], metric: Metric, runs: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, by setting and row, the values with the best average of the metric; of equals, those that stand first."""
    best: dict[tuple[str, str], tuple[float, Trial]] = {}
    for trial in made:
        average = (trial.cell.summary(runs) or {}).get(metric.average)
        place = trial.setting, trial.row
        if average is not None and (place not in best or average > best[place][0]):
            best[place] = average, trial
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (setting, row), (_, trial) in best.items():
        found.setdefault(setting, {})[row] = dict(trial.values)
    return found
