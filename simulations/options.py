"""Arguments and options that many commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as federation.sites=10. Repeatable."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of runs at a time; with 1, runs stay in this process.", show_default="GPUs or cores"
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        envvar="DYNAMMO_TRACK",
        help="Show the run in tensorboard, mlflow or wandb, too. Repeatable.",
        show_default=False,
    ),
]
