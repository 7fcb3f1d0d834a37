"""`dynammo-sim bench`: how fast a part of the machinery is, beside what it is compared with."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.support.terminal import Terminal, command_line, readable_errors
from simulations.bench.answers import answers
from simulations.bench.engines.command import engines
from simulations.bench.gpu.command import gpu
from simulations.bench.growth_command import growth
from simulations.bench.images.command import images, large
from simulations.bench.inference import inference
from simulations.bench.shares import shares_table
from simulations.bench.sites_command import sites
from simulations.bench.solves import solves
from simulations.bench.training import training
from simulations.measurements.commands import privacy, secure, traffic

bench = command_line("Measure speed, memory, privacy cost and traffic.")
bench.command()(answers)
bench.command("bytes")(traffic)
bench.command()(privacy)
bench.command()(secure)
bench.command()(gpu)
bench.command()(engines)
bench.command()(growth)
bench.command()(images)
bench.command()(inference)
bench.command()(large)
bench.command()(solves)
bench.command()(training)
bench.command("shares")(shares_table)
bench.command()(sites)
console = Terminal()
WANTED = 0.8
"""The least speed of reading through encryption, as a part of plain reading."""


@bench.command()
def memory(
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the replay memory, in MB.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Number of times that each kind is read.")] = 9,
) -> None:
    """Measure how fast a plain and an encrypted memory are read; exit code 1 if the latter is below 80 % of plain."""
    with readable_errors():
        with tempfile.TemporaryDirectory() as folder:
            seconds = memory_reading(Path(folder), megabytes, repeats)
        for kind, taken in seconds.items():
            console.print(f"{kind:<22}{megabytes / 1e3 / taken:6.2f} GB/s", highlight=False)
        ratio = seconds["plain, checksum"] / seconds["encrypted"]
        bare = seconds["safetensors, unchecked"] / seconds["encrypted"]
        console.print(f"encrypted / plain: {ratio:.2f} (required: {WANTED}); / unchecked: {bare:.2f}", highlight=False)
        raise typer.Exit(0 if ratio >= WANTED else 1)


def memory_reading(folder: Path, megabytes: int, repeats: int) -> Mapping[str, float]:
    """Return median seconds to read a memory of so many 10^6 bytes of colour images, 64 pixels wide, by kind of file.

    The kinds take turns, so that what else the machine does falls on all alike. The files come from the page cache:
    a disk, slower than that, would hide what encryption costs.
    """
    import torch
    from safetensors.torch import load, save_file

    from dynammo_core.data.samples import Samples
    from dynammo_core.memory.store import MemoryStore, ReplayMemory, Taken
    from dynammo_core.support.seeding import seeded_generator

    count = megabytes * 10**6 // (3 * 64 * 64)
    images = torch.randint(0, 256, (count, 3, 64, 64), generator=seeded_generator("bench"), dtype=torch.uint8)
    samples = Samples(images, torch.arange(count) % 10, tuple(f"record-{i}" for i in range(count)))
    kept = ReplayMemory(0, samples, (Taken(0, date(2000, 1, 1)),) * count)
    keys = (("plain", None), ("encrypted", os.urandom(32)))
    stores = [MemoryStore(folder / name, run="bench", site="bench", key=key) for name, key in keys]
    for store in stores:
        store.save(kept)
    bare = folder / "bare.safetensors"
    save_file({"images": images, "labels": samples.labels}, bare)
    kinds: dict[str, Callable[[], object]] = {
        "safetensors, unchecked": lambda: load(bare.read_bytes()),
        "plain, checksum": stores[0].load,
        "encrypted": stores[1].load,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, read in kinds.items():
            started = time.perf_counter()
            read()
            seconds[kind].append(time.perf_counter() - started)
    return {kind: statistics.median(times) for kind, times in seconds.items()}
