"""`dynammo-site inspect`: the data sheet of a hospital's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.support.terminal import readable_errors


def inspect(
    site_yaml: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")] = Path("site.yaml"),
    experiment: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="The experiment's YAML: its classes, and how files are read."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, which names no image and no patient.")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with some images too.", show_default=False),
    ] = None,
) -> None:
    """Show what this site's images are: classes, patients, sizes, bit depths, duplicates, and what was passed over."""
    with readable_errors():
        from client.consent.settings import load_site
        from client.doctor.data import own_dataset
        from dynammo_core.configuration.config import load_config
        from dynammo_core.data.sheet.show import show_sheet

        site = load_site(site_yaml)
        dataset = own_dataset(site, load_config(experiment) if experiment else None)
        show_sheet(dataset, f"{site.site}: {site.data.root}", as_json=as_json, page=page)
