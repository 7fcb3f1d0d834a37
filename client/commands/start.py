"""`dynammo-site start`: run this site's SuperNode until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.support.terminal import Terminal, readable_errors

console = Terminal(highlight=False, emoji=False)


def start(
    site_yaml: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")] = Path("site.yaml"),
    once: Annotated[bool, typer.Option("--once", help="Stop at the first failure instead of trying again.")] = False,
) -> None:
    """Take part: run the SuperNode, and restart it after failures, until Ctrl-C or SIGTERM."""
    with readable_errors():
        from client.consent.settings import load_site
        from client.service.supernode import supervise

        settings = load_site(site_yaml)
        console.say(f"{settings.site}: SuperLink {settings.superlink}, log {settings.log}")
        code = supervise(settings, site_yaml, say=console.say, once=once)
    raise typer.Exit(code)
