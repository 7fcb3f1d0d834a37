"""`dynammo-sim inspect`: the data sheet of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import parse_overrides, readable_errors
from simulations.options import Overrides


def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|DATA",
            help="An experiment's YAML file, a folder with class folders, or a manifest.",
            show_default=False,
        ),
    ],
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, which names no image and no patient.")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with some images too.", show_default=False),
    ] = None,
) -> None:
    """Show what a data set holds: classes, patients, sites, sizes, bit depths, duplicates, and what was passed over."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from dynammo_core.data.index.opening import open_dataset
        from dynammo_core.data.sheet.show import show_sheet

        seed = 0
        if source.suffix.lower() in (".yaml", ".yml"):
            config = load_config(source, parse_overrides(set_ or []))
            settings, seed = config.data, config.seed
        elif set_:
            raise ConfigError("--set overrides keys of an experiment", accepted="an experiment's YAML file with --set")
        else:
            manifest = source.is_file() or (source / "manifest.csv").is_file()
            settings = DataSettings(dataset="manifest" if manifest else "image_folder", root=str(source.absolute()))
        show_sheet(open_dataset(settings, seed), str(source), as_json=as_json, page=page)
