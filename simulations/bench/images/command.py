"""`dynammo-sim bench images` and `bench large`: how fast images are decoded, and what a hundred thousand take."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from dynammo_core.support.terminal import Terminal, readable_errors

console = Terminal()
CLASSES = 10
Megapixels = Annotated[float, typer.Option(min=0.01, help="Of each photograph.")]
Size = Annotated[int, typer.Option(min=8, max=1024, help="Side in pixels to which images are resized.")]


def images(
    count: Annotated[int, typer.Option("--images", min=CLASSES, help="Photographs.")] = 500,
    megapixels: Megapixels = 1,
    size: Size = 224,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is measured; the best counts.")] = 3,
) -> None:
    """Measure how many photographs a second are loaded: by one core, by all cores, from the cache, by torchvision.

    All take turns, and the files come from the page cache: read the ratios.
    """
    with readable_errors():
        from simulations.bench.images.photographs import loading_kinds, write_photographs

        with TemporaryDirectory(prefix="dynammo-images-") as place:
            write_photographs(Path(place) / "images", count, CLASSES, megapixels)
            kinds = loading_kinds(Path(place) / "images", Path(place), size)
            best = dict.fromkeys(kinds, 0.0)
            for _ in range(repeats):
                for kind, load in kinds.items():
                    started = time.perf_counter()
                    loaded = load()
                    best[kind] = max(best[kind], loaded / (time.perf_counter() - started))
        table = Table(f"{megapixels:g}-megapixel photographs", "images/s", "/ one core", "/ torchvision")
        *_, torchvision = best.values()
        for kind, rate in best.items():
            table.add_row(kind, f"{rate:.0f}", f"{rate / best['one core']:.2f}", f"{rate / torchvision:.2f}")
        console.print(table)


def large(
    folder: Annotated[Path, typer.Argument(help="Gets the photographs and all else; keeps them for the next time.")],
    count: Annotated[int, typer.Option("--images", min=CLASSES, help="Photographs.")] = 100_000,
    megapixels: Megapixels = 1,
    size: Size = 224,
    gigabytes: Annotated[float, typer.Option(help="Memory that must be enough; exit code 1 if it is not.")] = 4,
) -> None:
    """Index, split and learn heads on many photographs, twice: seconds, and the peak memory of each run.

    The second run finds what the first decoded. Each is a process of its own.
    """
    with readable_errors():
        from simulations.bench.images.photographs import large_run_apart, write_photographs

        photographs = folder / f"{count}-of-{megapixels:g}-megapixels"
        write_photographs(photographs, count, CLASSES, megapixels)
        runs = [large_run_apart(folder, photographs, size) for _ in range(2)]
        table = Table(f"{count:,} photographs of {megapixels:g} megapixels", "first run", "second run")
        for name in runs[0]:
            table.add_row(name, *(f"{run[name]:,.1f}" for run in runs))
        console.print(table)
        worst = max(run["peak memory with files, GB"] for run in runs)
        raise typer.Exit(0 if worst <= gigabytes else 1)
