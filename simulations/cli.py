"""`dynammo-sim`: the researcher's command line."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from client.commands.predict import predict
from dynammo_core.configuration.config import Config, Scalar, load_config
from dynammo_core.configuration.settings import HUB, MethodSettings
from dynammo_core.methods import METHODS
from dynammo_core.methods.settings.adapters import AdapterSettings
from dynammo_core.models import BACKBONES
from dynammo_core.support.errors import ConfigError, DynammoError, unknown_name
from dynammo_core.support.registry import plugins_in
from dynammo_core.support.terminal import Terminal, command_line, parse_overrides, readable_errors
from server.report.export_command import export
from simulations.attacks.command import audit_privacy
from simulations.backbone_command import backbone
from simulations.bench.command import bench
from simulations.inspect_command import inspect
from simulations.measurements.commands import heterogeneity, robustness
from simulations.options import Overrides, Workers
from simulations.rehearsal.deploy_command import deploy
from simulations.rehearsal.faults_command import faults
from simulations.run_command import run
from simulations.statistics_command import statistics
from simulations.tune_command import tune

app = command_line("Run, check and measure federated class-incremental experiments.")
console = Terminal()
app.command()(run)
app.command()(statistics)


@app.command()
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="COMPARISON...",
            help="Comparison files, such as those in configs/compare/. Beside them experiments are left out.",
            show_default=False,
        ),
    ],
    runs: Annotated[Path, typer.Option(help="Folder for run directories and pages.")] = Path("runs/compare"),
    workers: Workers = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Run only part K of N; start every part as a separate process, all with the same --runs.",
            show_default=False,
        ),
    ] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Only show the runs that have finished so far.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Repeat runs that have finished in the folder above.")] = False,
) -> None:
    """Run the missing runs of comparisons and write a page about each; safe to stop and continue."""
    with readable_errors():
        from simulations.comparisons.compare import is_comparison, load_comparison, missing_cells
        from simulations.comparisons.costs import tables
        from simulations.comparisons.page import write_page
        from simulations.comparisons.process_pool import part_of
        from simulations.comparisons.progress import run_under_display
        from simulations.comparisons.reuse import take_over
        from simulations.comparisons.run_groups import measure, summaries_of

        compared = [file for file in files if is_comparison(file)] or files
        for experiment in [file for file in files if file not in compared]:
            load_config(experiment)
            console.say(f"Left out, since it is an experiment and compares nothing: {experiment}")
        comparisons = {file.stem: load_comparison(file) for file in compared}
        if len(comparisons) < len(compared):
            raise ConfigError("two comparisons have the same file name", accepted="files with different names")
        every = [cell for comparison in comparisons.values() for cell in comparison.cells]
        chosen = every if shard is None else part_of(every, shard)
        if not (no_run or anew) and (taken := take_over(chosen, runs)):
            console.say(f"Taken from {runs.parent}, where they have finished (--anew repeats them): {'; '.join(taken)}")
        failed = {} if no_run else run_under_display(chosen, runs, console, workers=workers)
        if shard is not None and (left := missing_cells(every, runs)):
            text = f"{len(left)} runs are still missing; the part that finishes last writes the page"
            console.print(text, soft_wrap=True, markup=False, highlight=False)
            raise typer.Exit(1 if failed else 0)
        for title, comparison in comparisons.items():
            groups = comparison.groups(runs)
            metric = measure(comparison.metric, summaries_of(groups))
            words = ["dynammo-sim", "compare", str(comparison.file)]
            page = write_page(
                runs / title,
                title=title,
                command=shlex.join(words if runs == Path("runs/compare") else [*words, "--runs", str(runs)]),
                groups=groups,
                metric=metric,
                missing=[cell.label for cell in missing_cells(comparison.cells, runs).values()],
                sweep=comparison.sweep,
            )
            for shown in tables(groups, metric, title):
                console.print(shown)
            console.print(f"Page: {page}", soft_wrap=True, markup=False, highlight=False)
        if failed:
            raise typer.Exit(1)


app.command()(tune)
app.command("audit-privacy")(audit_privacy)
app.command()(inspect)
app.command()(export)
app.command()(predict)
app.command()(deploy)
app.command()(faults)
app.command()(heterogeneity)
app.command()(robustness)
app.add_typer(bench, name="bench")
app.add_typer(backbone, name="backbone")


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files to check.", show_default=False)],
    set_: Overrides = None,
) -> None:
    """Check configurations without running them; exit code 1 if any of them is invalid."""
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
def configs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create; it must not exist yet.")] = Path(
        "configs"
    ),
) -> None:
    """Copy the experiments and comparisons that come with this project into a folder."""
    with readable_errors():
        from server.consortium.flower_app import APP_DIRECTORY, description_of

        try:
            shutil.copytree(description_of(APP_DIRECTORY) / "configs", folder)
        except OSError as error:
            raise ConfigError(
                f"the experiments cannot be copied to {folder}: {error.strerror}",
                accepted="a folder that does not exist yet",
            ) from error
        console.print(f"Experiments: {folder}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def cost(
    config: Annotated[Path, typer.Option(help="The experiment's YAML file.", show_default=False)],
    tasks: Annotated[str, typer.Option(help="Numbers of tasks T, separated by commas.")] = "1,5,10",
    methods: Annotated[
        str, typer.Option(help="Names of methods, separated by commas.")
    ] = "dynammo,acl,dynamic_er,fine_tune",
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON instead of a table.")] = False,
    set_: Overrides = None,
) -> None:
    """Count MACs and parameters of one prediction and time it, by method and number of tasks."""
    with readable_errors():
        from dynammo_core.experiment import Experiment
        from dynammo_core.scoring.cost import classes_in_first, cost_table, method_settings

        settings = load_config(config, parse_overrides(set_ or []))
        Experiment(settings).use_torch()
        rows = cost_table(
            settings.backbone,
            method_settings(methods.split(","), settings.method),
            seed=settings.seed,
            image_size=settings.data.image_size,
            classes_per_task=classes_in_first(settings.tasks),
            tasks=_numbers(tasks),
        )
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            console.print(_table(rows))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run directories.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for the page about several runs.", show_default="runs/comparison"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of that page: accuracy or mean_class_recall.", show_default="by how uneven the classes are"
        ),
    ] = None,
) -> None:
    """Rewrite the report.html of a run, or write one page that compares several, from their files alone."""
    with readable_errors():
        if len(runs) == 1 and output is None:
            from server.report.report import write_report

            console.print(str(write_report(runs[0])), soft_wrap=True, markup=False)
            return
        from simulations.comparisons.compare import METRICS
        from simulations.comparisons.costs import tables
        from simulations.comparisons.page import write_page
        from simulations.comparisons.run_groups import groups_of, measure, summaries_of

        if metric is not None and metric not in METRICS:
            raise ConfigError(unknown_name("metric", metric, METRICS), accepted=", ".join(METRICS))
        folder = output or Path("runs/comparison")
        groups, unfinished = groups_of(runs)
        options = ["--output", str(folder), *(["--metric", metric] if metric else [])]
        command = shlex.join(["dynammo-sim", "report", *map(str, runs), *options])
        chosen = measure(metric, summaries_of(groups))
        page = write_page(folder, title=folder.name, command=command, groups=groups, metric=chosen, missing=unfinished)
        for shown in tables(groups, chosen, folder.name):
            console.print(shown)
        console.print(f"Page: {page}", soft_wrap=True, markup=False, highlight=False)


def _checked(file: Path, overrides: dict[str, Scalar]) -> str:
    """Check a file; return the experiment's hash, or the number of the comparison's runs."""
    from simulations.comparisons.compare import is_comparison, load_comparison

    if is_comparison(file):
        cells = load_comparison(file).cells
        for config in {_shapes_of(cell.config): cell.config for cell in cells}.values():
            _check_shapes(config)
        return f"{len(cells)} runs"
    config = load_config(file, overrides)
    _check_shapes(config)
    return config.content_hash[:8]


def _shapes_of(config: Config[Any]) -> str:
    return f"{config.backbone!r} {config.data.image_size} {config.method!r}"


def _check_shapes(config: Config[Any]) -> None:
    """Refuse plug-ins that cannot be imported, and a network that does not go with method or images; no data is read.

    What a repository of the hub holds is not asked for.
    """
    plugins_in(config)
    for network in (config.backbone, *config.backbone.changes):
        if network.name.startswith(HUB) or fits_for_sure(network.name, config.method):
            continue
        import torch  # seconds that this project's own networks need not cost

        from dynammo_core.models.description import untrained
        from dynammo_core.scoring.cost import trained_after

        shapes = untrained(network.name, network.image_size or config.data.image_size)
        with torch.device("meta"):
            trained_after(1, config.method, shapes, 2)


def fits_for_sure(network: str, method: MethodSettings) -> bool:
    """Tell whether network and method are this project's own, and adapters, if any, those that each such CNN has."""
    own = network in BACKBONES.built_in and method.name in METHODS.built_in
    return own and (not isinstance(method, AdapterSettings) or method.adapter == "convolution")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(
            f"--tasks {text!r} is not a list of numbers of tasks", accepted="numbers from 1, such as 1,5,10"
        )
    return numbers


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return table
