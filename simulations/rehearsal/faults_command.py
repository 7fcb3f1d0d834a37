"""`dynammo-sim faults`: a deployment on this machine, one fault after another, and a table of what came of each."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dynammo_core.configuration.config import load_config
from dynammo_core.support.errors import ConfigError, DynammoError, RunError, unknown_name
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

console = Terminal()
STAGES = ("adapt", "balance", "remember", "evaluate")
POINTS = 1.0
"""The most that a fault may change the last accuracy, in percentage points, where a quorum lived."""


def faults(
    config: ConfigFile,
    fault: Annotated[list[str] | None, typer.Option(help="Fault to inject. Repeatable.", show_default="all")] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Stage of the last task in which it strikes. Repeatable.", show_default=", ".join(STAGES)),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Inject faults that hospitals meet into a real deployment on this machine, and check that nothing is lost.

    Compares each run with an undisturbed one: last accuracy, and every exemplar at every site. Takes minutes per fault.
    """
    with readable_errors(), tempfile.TemporaryDirectory(prefix="dynammo-faults-") as folder:
        from simulations.rehearsal.faults import FAULTS

        chosen = fault or list(FAULTS)
        for name in chosen:
            if name not in FAULTS:
                raise ConfigError(unknown_name("fault", name, FAULTS), accepted=", ".join(FAULTS))
        experiment_config = load_config(config, parse_overrides(set_ or []))
        table = Table("fault", "stage", "outcome", "last", "exemplars", "seconds")
        failed = 0
        for row in _rows(experiment_config, chosen, stage or list(STAGES), Path(folder)):
            table.add_row(*row[1:])
            failed += not row[0]
            console.print("; ".join(row[1:]), markup=False, highlight=False)
        console.print(table)
        if failed:
            raise RunError(f"something was lost after {failed} of the faults")


def _rows(
    config: Any, names: list[str], stages: list[str], folder: Path
) -> Iterator[tuple[bool, str, str, str, str, str, str]]:
    """Whether all is well, and the cells of the table, for each fault in each stage."""
    from dynammo_core.experiment import Experiment
    from server.consortium.launch import follow, launch
    from server.run_directory.directory import EVENTS
    from server.run_directory.event_tail import EventTail
    from simulations.rehearsal.deployment import deployment, hospital_names
    from simulations.rehearsal.faults import exemplars, run_with_fault

    experiment = Experiment(config)
    sites = hospital_names(config.federation.sites)
    with deployment(folder, experiment, sites) as consortium:
        for _ in consortium.prepare_sites():
            pass
        consortium.open()
        settings = consortium.config()
        consortium.approve(settings, runs=1 + len(names) * len(stages))
        started = time.monotonic()
        calm = launch(consortium.server, settings)
        follow(consortium.server, calm, EventTail(calm / EVENTS, from_end=False), lambda event: None)
        expected, kept = _last(calm), exemplars(consortium, calm)
        yield True, "none", "-", "completed", f"{expected:.1f}", str(_count(kept)), f"{time.monotonic() - started:.0f}"
        for name in names:
            for stage in stages:
                started = time.monotonic()
                try:
                    run = run_with_fault(consortium, settings, name, stage, lambda event: None)
                except DynammoError as error:
                    yield False, name, stage, str(error), "-", "-", f"{time.monotonic() - started:.0f}"
                    continue
                last, left = _last(run), exemplars(consortium, run)
                well = abs(last - expected) <= POINTS and left == kept
                words = str(_count(left)) if left == kept else f"{_count(left)}, not the same"
                yield well, name, stage, "completed", f"{last:.1f}", words, f"{time.monotonic() - started:.0f}"


def _last(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text(encoding="utf-8"))["last_accuracy"])


def _count(kept: dict[str, tuple[int, list[str]]]) -> int:
    return sum(len(records) for _, records in kept.values())
