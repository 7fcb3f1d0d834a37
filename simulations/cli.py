"""`dynammo-sim`: the researcher's command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynammo_core.config import Scalar, load_config
from dynammo_core.errors import ConfigError, DynammoError, unknown_name

app = typer.Typer(
    help="Run, check and measure federated class-incremental experiments.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Console()
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a leaf, such as --set federation.sites=10. Repeatable."),
]


@app.command()
def run(
    config: ConfigFile,
    engine: Annotated[
        str,
        typer.Option(help="[bold]local[/]: all sites in this process. [bold]flower[/]: `flwr run`, the real engine."),
    ] = "local",
    set_: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Go on with this run where it was cut off.", show_default=False),
    ] = None,
) -> None:
    """Run an experiment and leave a run directory with metrics, model and report.html."""
    with readable_errors():
        from server.progress import ProgressView, final_table
        from simulations.engines import ENGINES

        if engine not in ENGINES:
            raise ConfigError(unknown_name("engine", engine, ENGINES), accepted=", ".join(ENGINES))
        experiment = load_config(config, parse_overrides(set_ or []))
        directory = resume
        try:
            with ProgressView() as view:
                directory = ENGINES[engine](experiment, runs, resume, view.update)
        except KeyboardInterrupt:
            where = directory or runs / f"{experiment.name}-{experiment.content_hash[:8]}"
            again = shlex.join(["dynammo-sim", "run", str(config), "--engine", engine, "--resume", str(where)])
            again += "".join(f" --set {shlex.quote(pair)}" for pair in set_ or [])
            console.print(f"\nStopped. Go on with: {again}", markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
        console.print(final_table(json.loads((directory / "summary.json").read_text())))
        console.print(f"Run directory: {directory}\nReport: {directory / 'report.html'}", soft_wrap=True, markup=False)


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(metavar="COMPARISON", help="A file of configs/compare/.", show_default=False)],
    runs: Annotated[Path, typer.Option(help="Folder for run directories.")] = Path("runs/compare"),
    workers: Annotated[int | None, typer.Option(help="Runs at a time.", show_default="cores")] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Only print what is finished so far.")] = False,
) -> None:
    """Run what is missing of a comparison and print mean and standard deviation over seeds; safe to stop and go on."""
    with readable_errors():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from simulations.compare import load_comparison, run_missing, table, write_table

        cells = load_comparison(file)
        if not no_run:
            columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console) as progress:
                bar = progress.add_task("", total=len(cells))
                run_missing(cells, runs, workers, lambda done: progress.update(bar, completed=done))
        output = runs / f"{file.stem}.csv"
        write_table(cells, runs, output)
        console.print(table(cells, runs))
        console.print(f"Every run: {escape(str(output))}", soft_wrap=True)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files to check.", show_default=False)],
    set_: Overrides = None,
) -> None:
    """Check configurations without running them; exit code 1 when any of them is wrong."""
    wrong = False
    for file in files:
        try:
            checked = _checked(file, parse_overrides(set_ or []))
            console.print(f"[green]ok[/]     {escape(str(file))}  {checked}", soft_wrap=True)
        except DynammoError as error:
            wrong = True
            console.print("[red]wrong[/] ", escape(str(error)), soft_wrap=True)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def cost(
    config: Annotated[Path, typer.Option(help="The experiment's YAML file.", show_default=False)],
    tasks: Annotated[str, typer.Option(help="Numbers of tasks T, separated by commas.")] = "1,5,10",
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON instead of a table.")] = False,
    set_: Overrides = None,
) -> None:
    """MACs, parameters and latency by the number of tasks, for one merged pass, T passes, and the bare backbone."""
    with readable_errors():
        from dynammo_core.cost import cost_table
        from dynammo_core.experiment import Experiment

        experiment = Experiment(load_config(config, parse_overrides(set_ or [])))
        experiment.use_torch()
        settings = experiment.config
        rows = cost_table(
            settings.backbone,
            seed=settings.seed,
            image_size=settings.data.image_size,
            classes_per_task=len(experiment.stream.classes(0)),
            tasks=_numbers(tasks),
        )
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            console.print(_table(rows))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run directories.", show_default=False)],
) -> None:
    """Write report.html anew from the files of each run directory."""
    with readable_errors():
        from server.report import write_report

        for directory in runs:
            console.print(str(write_report(directory)), soft_wrap=True, markup=False)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print a deliberate error as one paragraph and exit with 1; anything else is a defect and keeps its traceback."""
    try:
        yield
    except DynammoError as error:
        Console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None


def parse_overrides(pairs: list[str]) -> dict[str, Scalar]:
    """`key.path=value` texts as a mapping.

    Raises:
        ConfigError: a text without "=".
    """
    overrides: dict[str, Scalar] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set {pair!r} has no value", accepted="KEY=VALUE, such as federation.sites=10")
        overrides[key] = value
    return overrides


def _checked(file: Path, overrides: dict[str, Scalar]) -> str:
    """What a valid file is: an experiment's hash, or the number of a comparison's runs."""
    from simulations.compare import is_comparison, load_comparison

    if is_comparison(file):
        return f"{len(load_comparison(file))} runs"
    return load_config(file, overrides).content_hash[:8]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--tasks {text!r} is no list of task numbers", accepted="numbers from 1, such as 1,5,10")
    return numbers


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return table
