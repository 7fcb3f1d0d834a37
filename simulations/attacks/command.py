"""`dynammo-sim audit-privacy`: attacks a finished run and leaves what they found beside its report."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal, readable_errors


class AttackView:
    """Shows a bar for each part of the work; a context manager whose `update` is a `Tell`.

    Args:
        console: where to.
        name: what people call the run.
    """

    def __init__(self, console: Console, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self._name = name
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> AttackView:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show how much of a part is done."""
        if what not in self._bars:
            self._bars[what] = self.progress.add_task(f"{escape(self._name)}: {what}", total=total)
        self.progress.update(self._bars[what], completed=done)


def audit_privacy(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a finished run of simulated sites.")],
    attacks: Annotated[
        str,
        typer.Option(
            help="Choose attacks, separated by commas: [bold]membership[/] (was this image trained on?), "
            "[bold]inversion[/] (what did it look like?), [bold]statistics[/] (what do sums of features reveal?)."
        ),
    ] = "membership,inversion,statistics",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Attack another run as well, and show them side by side. Repeatable.",
            show_default=False,
        ),
    ] = None,
    shadow_pairs: Annotated[
        int,
        typer.Option(
            min=0, help="Number of pairs of shadow models; each repeats the run on half of the images. 0: none."
        ),
    ] = 1,
    iterations: Annotated[
        int, typer.Option(min=8, help="Number of optimisation steps in each search for an image.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the attacks.")] = 1,
) -> None:
    """Attack a finished run and write what leaks to privacy_audit.json and privacy_audit.html in its directory."""
    with readable_errors():
        from simulations.attacks.audit import ATTACKS, audit, printed, rows
        from simulations.attacks.audited_run import AuditedRun
        from simulations.attacks.page import page

        chosen = list(dict.fromkeys(word.strip() for word in attacks.split(",")))
        for name in chosen:
            if name not in ATTACKS:
                raise ConfigError(unknown_name("attack", name, ATTACKS), accepted=", ".join(ATTACKS))
        console = Terminal()
        runs = [AuditedRun.open(path) for path in dict.fromkeys([run, *(compare or [])])]
        attack = partial(audit, attacks=chosen, shadow_pairs=shadow_pairs, iterations=iterations, seed=seed)
        audits = []
        try:
            for one in runs:
                with AttackView(console, one.path.name) as view:
                    audits.append(attack(one, tell=view.update))
        except KeyboardInterrupt:
            console.print("\nStopped. Nothing was written.")
            raise typer.Exit(130) from None
        words = ["dynammo-sim", "audit-privacy", str(run)]
        words += [word for other in compare or [] for word in ("--compare", str(other))]
        words += ["--attacks", ",".join(chosen), "--shadow-pairs", str(shadow_pairs)]
        command = shlex.join([*words, "--iterations", str(iterations), "--seed", str(seed)])
        facts = {"command": command, "seed": seed, "shadow_pairs": shadow_pairs, "iterations": iterations}
        content = {**facts, "runs": [audited.as_json() for audited in audits]}
        lines = rows(audits)
        write_atomically(run / "privacy_audit.json", (json.dumps(content, indent=2) + "\n").encode())
        write_atomically(run / "privacy_audit.html", page(audits, lines, command).encode())
        console.print(printed(audits, lines))
        for line in lines:
            for note in line.notes:
                console.print(f"{line.attack}, {line.target}: {note}", soft_wrap=True, markup=False, highlight=False)
        skipped = [(audited.run.path.name, *each) for audited in audits for each in audited.skipped.items()]
        for where, name, why in skipped:
            console.print(f"{escape(where)}: no {name} attack, {why}", soft_wrap=True, highlight=False)
        console.print(f"Page: {run / 'privacy_audit.html'}", soft_wrap=True, markup=False, highlight=False)
