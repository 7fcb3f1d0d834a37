"""`dynammo-sim statistics`: what each simulated site would tell of its images before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.configuration.config import load_config
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

console = Terminal()


def statistics(
    config: ConfigFile,
    set_: Overrides = None,
    fewest: Annotated[
        int, typer.Option(min=1, help="Tell of no fewer images, as `fewest_images` in a hospital's policy.")
    ] = 1,
    output: Annotated[Path | None, typer.Option(help="Write them as JSON, too.", show_default=False)] = None,
) -> None:
    """Count the images and patients of simulated sites by class, size and brightness."""
    with readable_errors():
        from client.consent.fewest import Fewest
        from client.hospital.statistics import statistics_of
        from dynammo_core.data.sources import select
        from dynammo_core.experiment import Experiment
        from server.watch.tables import statistics_tables

        settings = load_config(config, parse_overrides(set_ or []))
        experiment = Experiment(settings)
        data, shares, told = experiment.dataset, experiment.partition, {}
        for index in range(settings.federation.sites):
            own = select(data.train, shares.train[index]), select(data.test, shares.test[index])
            counts = statistics_of(experiment.class_names, own, Fewest(fewest))
            told[experiment.site_label(index)] = counts.as_fields()
        for table in statistics_tables(told):
            console.print(table)
        if output is not None:
            write_atomically(output, json.dumps(told, indent=2).encode() + b"\n")
