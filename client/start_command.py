"""`dynammo-site start`: this site's SuperNode, until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dynammo_core.terminal import readable_errors

console = Console(highlight=False, emoji=False)


def start(
    site_yaml: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")] = Path("site.yaml"),
    once: Annotated[bool, typer.Option("--once", help="End at the first failure instead of trying again.")] = False,
) -> None:
    """Take part: run the SuperNode, start it again after a failure, until Ctrl-C or SIGTERM."""
    with readable_errors():
        from client.settings import load_site
        from client.supernode import supervise

        settings = load_site(site_yaml)
        console.print(
            f"{settings.site}: SuperLink {settings.superlink}, log {settings.log}", markup=False, soft_wrap=True
        )
        code = supervise(settings, site_yaml, say=_say, once=once)
    raise typer.Exit(code)


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
