"""How a model of one site fares at the others: each site learning alone, all together, and by their own statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from flwr.app import Message
from flwr.clientapp import ClientApp
from rich.box import SIMPLE
from rich.table import Table

from client.app import app as client_app
from dynammo_core.configuration.config import Scalar, load_config
from dynammo_core.plan import Action
from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.errors import ConfigError, DynammoError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.envelope import MESSAGE_TYPES
from server.run.run import run_experiment
from simulations.comparisons.compare import Cell, OnEvent, Outcome
from simulations.comparisons.liars import silence
from simulations.engines.local_grid import LocalGrid

TOGETHER = "all sites"
TRAINING = frozenset(MESSAGE_TYPES[action] for action in (Action.FIT, Action.SUMMARISE))


class LonelyGrid(LocalGrid):
    """A grid on which one node learns: the others abstain from all that trains, and do the rest."""

    def __init__(self, client_app: ClientApp, nodes: int, *, learner: int) -> None:
        super().__init__(client_app, nodes, run_config={})
        self._learner = self.get_node_ids()[learner]

    def _answer(self, message: Message) -> Message:
        learns = message.metadata.dst_node_id == self._learner
        if learns or message.metadata.message_type not in TRAINING:
            return super()._answer(message)
        return Message(silence(message.content, message.content), reply_to=message)


@dataclass(frozen=True)
class Trial:
    """Runs, one a seed, of sites with these scanners; in `cells` the setting is the scanners, the row who trains.

    Attributes:
        scanners: kind of scanners that the sites have.
        trained_at: who trains, in words.
        learner: the site that trains alone; None for all.
        cells: one a seed.
    """

    scanners: str
    trained_at: str
    learner: int | None
    cells: tuple[Cell, ...]

    def folder(self, runs: Path) -> Path:
        """Where its run directories lie: a lone site's apart, as its configuration is that of all sites."""
        return runs / ("together" if self.learner is None else f"alone-{self.learner}")

    def accuracies(self, runs: Path) -> list[float | None] | None:
        """Last accuracy at each site, in percent, mean over seeds; None while a run is missing."""
        summaries = [cell.summary(self.folder(runs)) for cell in self.cells]
        if not all(summaries):
            return None
        by_site = zip(*(summary["site_accuracies"] for summary in summaries if summary), strict=True)
        return [None if None in site else round(mean(site), 4) for site in by_site]


def plan(
    config: Path, overrides: Mapping[str, Scalar], *, seeds: Sequence[int], statistics: Sequence[str]
) -> list[Trial]:
    """Each site alone and all together, with one scanner for all and with their own; the latter with own statistics.

    Args:
        config: the experiment's file, with scanners that differ.
        overrides: of its leaves.
        seeds: of the runs; none: the experiment's own.
        statistics: values of `scanners.own_statistics` to try.

    Raises:
        ConfigError: the configuration is wrong, or has one site, no scanners, or answers that nobody sees one by one.
    """
    read = load_config(config, overrides)
    kind, sites = read.scanners.kind, read.federation.sites
    if kind == "same" or sites < 2:
        raise ConfigError(
            f"{config} has {sites} sites and scanners.kind: {kind}, so there is no difference to measure",
            remedy="Give it two sites or more, and another scanners.kind, such as --set scanners.kind=stain",
        )
    if read.federation.secure_aggregation:
        raise ConfigError("one site cannot learn alone where the server sees a sum alone")

    def trial(scanners: str, trained_at: str, learner: int | None, own: str) -> Trial:
        shared = {**overrides, "scanners.kind": scanners, "scanners.own_statistics": own}
        cells = [
            Cell(scanners, trained_at, seed, load_config(config, {**shared, "seed": seed}))
            for seed in seeds or (read.seed,)
        ]
        return Trial(scanners, trained_at, learner, tuple(cells))

    trials = []
    for scanners in ("same", kind):
        trials += [trial(scanners, f"site {site} alone", site, "none") for site in range(sites)]
        trials.append(trial(scanners, TOGETHER, None, "none"))
    return trials + [trial(kind, f"{TOGETHER}, own statistics: {own}", None, own) for own in dict.fromkeys(statistics)]


def missing(trials: Sequence[Trial], runs: Path) -> dict[str, tuple[Trial, Cell]]:
    """The runs that have not finished yet, by label."""
    cells = ((trial, cell) for trial in trials for cell in trial.cells)
    return {cell.label: (trial, cell) for trial, cell in cells if cell.summary(trial.folder(runs)) is None}


def run_cells(left: Mapping[str, tuple[Trial, Cell]], runs: Path, on_event: OnEvent) -> Iterator[Outcome]:
    """Run them one after the other in this process; a site that cannot learn alone does not stop the others."""
    for label, (trial, cell) in left.items():
        nodes = cell.config.federation.sites
        grid = (
            LocalGrid(client_app, nodes, run_config={})
            if trial.learner is None
            else LonelyGrid(client_app, nodes, learner=trial.learner)
        )
        try:
            run_experiment(
                grid, cell.config, runs=trial.folder(runs), resume=None, listeners=[partial(on_event, label)]
            )
        except DynammoError as error:
            if trial.learner is None:
                raise
            yield Outcome(label, "", str(error))
        else:
            yield Outcome(label, "", "")


def rows(trials: Sequence[Trial], runs: Path) -> list[dict[str, object]]:
    """A row for each trial: accuracy at each site; of a lone one that at home and the mean elsewhere, else the mean."""
    table: list[dict[str, object]] = []
    for trial in trials:
        known = trial.accuracies(runs)
        at = dict(enumerate(known or []))
        own = [at.get(trial.learner)] if trial.learner is not None else list(at.values())
        others = [value for site, value in at.items() if site != trial.learner] if trial.learner is not None else []
        table.append(
            {
                "scanners": trial.scanners,
                "trained_at": trial.trained_at,
                "seeds": len(trial.cells),
                **{f"site_{site}": at.get(site) for site in range(trial.cells[0].config.federation.sites)},
                "own": _mean(own),
                "others": _mean(others),
            }
        )
    return table


def write_rows(table: Sequence[Mapping[str, object]], folder: Path, facts: Mapping[str, object]) -> Path:
    """Write `heterogeneity.json`, facts beside the rows, and `heterogeneity.csv`; returns the former's path."""
    write_atomically(folder / "heterogeneity.csv", csv_table(list(table[0]), table).encode())
    file = folder / "heterogeneity.json"
    write_atomically(file, (json.dumps({**facts, "rows": list(table)}, indent=2) + "\n").encode())
    return file


def printed(table: Sequence[Mapping[str, object]], title: str) -> Table:
    """The rows for people, one group for each kind of scanners."""
    sites = [name for name in table[0] if name.startswith("site_")]
    headings = ("trained at", *(f"at {name.removeprefix('site_')}" for name in sites), "own", "others")
    drawn = Table(*headings, box=SIMPLE, padding=0, show_edge=False, title=title, title_justify="left")
    for place, row in enumerate(table):
        if not place or row["scanners"] != table[place - 1]["scanners"]:
            drawn.add_section()
            drawn.add_row(f"[bold]scanners: {row['scanners']}[/]")
        drawn.add_row(str(row["trained_at"]), *(_percent(row[name]) for name in (*sites, "own", "others")))
    return drawn


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 4) if known else None


def _percent(value: object) -> str:
    return "" if value is None else f"{value:.1f}"
