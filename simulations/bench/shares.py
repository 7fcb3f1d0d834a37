"""`dynammo-sim bench shares`: how often honest sites with skewed data are held to `limits.largest_share`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from dynammo_core.configuration.config import Scalar
    from dynammo_core.experiment import Experiment

console = Terminal()
ALPHAS = (0.05, 0.1, 0.5, 1.0)
SITES = (5, 10, 20)


@dataclass(frozen=True)
class Reweighting:
    """What a limit does to honest sites, over the tasks of many partitions.

    Attributes:
        tasks: number of tasks counted.
        limited: percentage of them in which the limit reduces a site's weight.
        moved: weight that changes hands in these, in percent of all, on average.
        most: the largest such weight, in percent.
    """

    tasks: int
    limited: float
    moved: float
    most: float


def shares_table(
    config: ConfigFile,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            help="Concentration of the label skew. Repeatable.", show_default=", ".join(map(str, ALPHAS)), min=0.001
        ),
    ] = None,
    sites: Annotated[
        list[int] | None,
        typer.Option(help="Number of sites. Repeatable.", show_default=", ".join(map(str, SITES)), min=2),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of random partitions for each setting.")] = 100,
    set_: Overrides = None,
) -> None:
    """Count how often a limit on one site's share changes the weights of honest sites, and by how much."""
    with readable_errors():
        table = Table("alpha", "sites", "tasks", "limited", "weight moved then", "at most", box=SIMPLE)
        table.title = escape(" ".join([str(config), *(set_ or [])]))
        for skew in alpha or ALPHAS:
            for count in sites or SITES:
                setting: dict[str, Scalar] = {
                    "federation.partition": "dirichlet",
                    "federation.alpha": skew,
                    "federation.sites": count,
                }
                seen = effect_of_limit(config, {**parse_overrides(set_ or []), **setting}, seeds)
                figures = (f"{figure:.1f} %" for figure in (seen.limited, seen.moved, seen.most))
                table.add_row(f"{skew:g}", str(count), str(seen.tasks), *figures)
        console.print(table)


def effect_of_limit(config: Path, overrides: Mapping[str, Scalar], seeds: int) -> Reweighting:
    """Return what the limit does to the partitions of so many seeds."""
    from dynammo_core.configuration.config import load_config
    from dynammo_core.experiment import Experiment

    moved = [
        part
        for seed in range(1, seeds + 1)
        for part in moved_weights(Experiment(load_config(config, {**overrides, "seed": seed})))
    ]
    parts = [part for part in moved if part > 0] or [0.0]
    share = 100 * sum(part > 0 for part in moved) / len(moved)
    return Reweighting(len(moved), share, 100 * sum(parts) / len(parts), 100 * max(parts))


def moved_weights(experiment: Experiment) -> Iterator[float]:
    """Yield per task the part of all weight that the limit takes from one site's new images and gives to the others."""
    import torch

    from dynammo_core.aggregation.voices import shares_kept
    from dynammo_core.data.samples import FEWEST_SAMPLES

    labels = torch.as_tensor(experiment.dataset.train.labels)
    for task in range(len(experiment.stream)):
        of_task = torch.isin(labels, torch.tensor(experiment.stream.classes(task)))
        claims = torch.tensor(
            [int(of_task[torch.as_tensor(site)].sum()) for site in experiment.partition.train]
        ).double()
        claims = claims[claims >= FEWEST_SAMPLES]
        counted = claims * shares_kept(claims, experiment.config.limits.largest_share)
        yield float((claims / claims.sum() - counted / counted.sum()).abs().sum() / 2)
