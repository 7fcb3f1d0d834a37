"""Arguments and options that many commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a leaf, such as --set federation.sites=10. Repeatable."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Runs at a time; a single one is in this process.", show_default="GPUs or cores"),
]
