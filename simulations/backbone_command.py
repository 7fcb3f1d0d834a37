"""`dynammo-sim backbone`: what a pretrained network is, and how its weights come to machines without internet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, cell, command_line, listing, readable_errors

backbone = command_line("Describe and compare pretrained networks, or fetch their weights.")
console = Terminal()

Name = Annotated[
    str, typer.Argument(help="As in backbone.name, such as timm/vit_small_patch14_dinov2.", show_default=False)
]


@backbone.command()
def show(
    name: Name,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Side of the images, in pixels.", show_default="that of its training")
    ] = None,
) -> None:
    """Show a network's size, cost, features, places for adapters, licence, and the source of its weights."""
    with readable_errors():
        from dynammo_core.models.description import described, native_size, untrained
        from dynammo_core.scoring.cost import multiply_accumulates

        size = image_size or native_size(name)
        macs = multiply_accumulates(untrained(name, size), size)
        for title, value in (described(name, size) | {f"Cost at {size} pixels": f"{macs / 1e9:.3g} GMAC"}).items():
            console.print(f"{title + ':':<24}{value}", soft_wrap=True, markup=False, highlight=False)


@backbone.command()
def costs(
    names: Annotated[list[str], typer.Argument(help="As in backbone.name.", show_default=False)],
    image_size: Annotated[int, typer.Option(min=8, help="Side of the images, in pixels.")] = 224,
) -> None:
    """Compare networks by what a prediction costs, and what adapters of each form weigh and send."""
    with readable_errors():
        from dynammo_core.scoring.cost import adapter_costs

        console.print(costs_table(adapter_costs(names, image_size)))


def costs_table(rows: Iterable[Mapping[str, object]]) -> Table:
    """Lay out the rows of `adapter_costs`; numbers of parameters are in millions."""
    columns = ("network", "adapters", "M\nparameters", "GMAC", "adapters,\nM", "MB a\nround", "MB of\nsums")
    table = listing(*columns, right=columns[2:])
    for row in rows:
        table.add_row(*(cell(f"{value / 1e6:.3g}" if isinstance(value, int) else value) for value in row.values()))
    return table


@backbone.command()
def take(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A finished run.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write, .safetensors.", show_default=False)],
) -> None:
    """Take the network that a run trained as a whole, so that other experiments start from its weights."""
    with readable_errors():
        from dynammo_core.deployed.backbone_file import write_backbone
        from dynammo_core.models.pretrained import WeightsFile

        _require_safetensors(out)
        name = write_backbone(run, out)
        lines = f"backbone:\n  name: {name}\n  weights: {out.absolute()}\n  sha256: {WeightsFile(out).sha256()}"
        console.print(lines, soft_wrap=True, markup=False, highlight=False)


@backbone.command()
def fetch(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to carry to other machines.", show_default=False)],
) -> None:
    """Download a network's pretrained weights into a folder, and say how machines without internet use it."""
    with readable_errors():
        from dynammo_core.models.fetching import fetched

        for line in fetched(name, out):
            console.print(line, soft_wrap=True, markup=False, highlight=False)


@backbone.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A file that another program saved.", show_default=False)],
    name: Annotated[str, typer.Option(help="The network in it, timm/NAME.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write, .safetensors.", show_default=False)],
    place: Annotated[
        str | None,
        typer.Option(help="What stands before its names, if it is there several times.", show_default=False),
    ] = None,
) -> None:
    """Take a network's weights out of a checkpoint: from its sections, without prefixes, classifier and decoder."""
    with readable_errors():
        from dynammo_core.models.pretrained import WeightsFile
        from dynammo_core.models.timm_networks.checkpoints import convert as converted

        _require_safetensors(out)
        found = converted(checkpoint, name, out, place)
        left_out = ", ".join(f"{beginning} ({count})" for beginning, count in found.left_out.items())
        console.say(f"Taken: {len(found.tensors)} tensors{f' from {found.place}' if found.place else ''}")
        console.say(f"Left out: {left_out or 'nothing'}")
        lines = f"backbone:\n  name: {name}\n  weights: {out.absolute()}\n  sha256: {WeightsFile(out).sha256()}"
        console.print(lines, soft_wrap=True, markup=False, highlight=False)


def _require_safetensors(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out} is no file of weights", accepted="a name that ends in .safetensors")
