"""Runs that a comparison need not repeat, since they have finished by themselves in the folder above its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from simulations.comparisons.compare import Cell, missing_cells


def take_over(cells: Sequence[Cell], runs: Path) -> list[str]:
    """Copy what has finished in the folder above, by the same configuration and code; what has begun here stays.

    Checkpoints are left behind: nothing goes on from them.

    Args:
        cells: all runs of the comparisons.
        runs: folder of their run directories.

    Returns:
        What people call the runs that were copied.
    """
    taken = []
    for cell in missing_cells(cells, runs).values():
        if cell.wire.honest and not cell.directory(runs).exists() and cell.summary(runs.parent) is not None:
            runs.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=runs) as folder, suppress(FileExistsError):  # another shard may be faster
                copy = Path(folder) / "run"
                shutil.copytree(cell.directory(runs.parent), copy, ignore=shutil.ignore_patterns("checkpoints"))
                copy.rename(cell.directory(runs))
            taken.append(cell.label)
    return taken
