"""`dynammo-server sites`: register sites, and print the lines by which an experiment names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dynammo_core.support.terminal import Terminal, cell, command_line, listing, readable_errors

if TYPE_CHECKING:
    from server.consortium.sites import RegisteredSite, SiteRegister

sites_app = command_line("Register, list and remove the sites of the consortium.")
console = Terminal(emoji=False)  # a fingerprint may hold ":cd:", which is the name of one

Folder = Annotated[
    Path,
    typer.Option("--folder", envvar="DYNAMMO_CONSORTIUM", help="The consortium's folder, made by `init`."),
]
HERE = Path("consortium")


@sites_app.command("add")
def add_site(
    name: Annotated[str, typer.Argument(help="The name in the site's site.yaml.", show_default=False)],
    public_key: Annotated[
        Path, typer.Argument(metavar="KEY.pub", help="The public key that the site sent.", show_default=False)
    ],
    folder: Folder = HERE,
) -> None:
    """Register a site's public key, so that it can connect."""
    with _register(folder) as register:
        site = register.add(name, public_key)
        console.say(f"Registered {name}: {site.fingerprint}. Compare this with the site by telephone.")


@sites_app.command("remove")
def remove_site(
    name: Annotated[str, typer.Argument(help="A registered name.", show_default=False)], folder: Folder = HERE
) -> None:
    """Remove a site, so that it can no longer connect."""
    with _register(folder) as register:
        from server.consortium.sites import NEW_KEY

        register.remove(name)
        console.say(f"Removed {name}; its key is refused from now on, and for good: to come back, {NEW_KEY}.")


@sites_app.command("list")
def list_sites(folder: Folder = HERE) -> None:
    """List the registered sites, and which of them are connected."""
    with _register(folder) as register:
        sites = register.with_status()
        console.print(sites_table(sites))
        for name, (site, _, _) in sites.items():  # not in the table: a fingerprint is compared whole, by telephone
            console.say(f"{site.fingerprint}  {name}")


def sites_table(sites: Mapping[str, tuple[RegisteredSite, str, str]]) -> Table:
    """Return a table of sites with their status and since when they have it, as `SiteRegister.with_status` has them."""
    table = listing("site", "status", "since", "registered")
    for name, (site, status, since) in sites.items():
        table.add_row(*map(cell, (name, status, since, site.added)))
    return table


@sites_app.command("keys")
def site_keys(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Registered names.", show_default="all of them")
    ] = None,
    folder: Folder = HERE,
) -> None:
    """Print the lines of an experiment that name its sites and their keys, which secure aggregation needs."""
    with _register(folder) as register:
        for line in register.key_lines(names or []):
            typer.echo(line)


@contextmanager
def _register(folder: Path) -> Iterator[SiteRegister]:
    with readable_errors():
        from server.consortium.control import Control
        from server.consortium.settings import load_server
        from server.consortium.sites import SiteRegister

        settings = load_server(folder)
        yield SiteRegister(settings, Control(settings))
