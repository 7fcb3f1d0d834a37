"""`dynammo-server`: the operator's command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.support.processes import account
from dynammo_core.support.terminal import Terminal, command_line, parse_overrides, printable_lines, readable_errors
from server.consortium.sites_command import HERE, Folder, sites_app
from server.report.export_command import export
from server.watch.status_command import status

app = command_line("Run the server of a consortium of hospitals: certificates, sites, runs and models.")
app.add_typer(sites_app, name="sites")
console = Terminal(emoji=False)  # a fingerprint may hold ":cd:", which is the name of one
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, such as --set seed=2. Repeatable."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run.", show_default=False)]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the run is submitted; `status` shows it.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Show the run in tensorboard, mlflow or wandb, too. Repeatable.", show_default=False
    ),
]
NewCode = Annotated[
    bool,
    typer.Option("--accept-new-code", help="Continue although the code has changed; recorded in the run."),
]


@app.command()
def init(
    host: Annotated[
        list[str], typer.Option("--host", help="Name or address by which sites reach this server. Repeatable.")
    ],
    folder: Folder = HERE,
    port: Annotated[int, typer.Option(help="Port on which Flower serves all interfaces.")] = 9092,
    listen: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 accepts this machine only.")] = "0.0.0.0",
) -> None:
    """Create a consortium: certificate authority, server certificate and a commented server.yaml."""
    with readable_errors():
        from server.consortium.certificates import fingerprint
        from server.consortium.consortium import make_consortium

        settings = make_consortium(folder, host, port=port, listen=listen)
        console.say(f"Created {settings.folder}. Next steps:")
        console.say(f"  1. Start it: dynammo-server start --folder {shlex.quote(str(folder))}")
        console.say(
            f"  2. Send {settings.ca_certificate} to each site and compare its SHA-256 fingerprint by telephone:"
        )
        console.say(f"     {fingerprint(settings.ca_certificate)}")
        console.say("  3. Register each site's key: dynammo-server sites add NAME site.key.pub")
        console.say(f"  4. Store a copy of {settings.ca_key} on another machine.")


@app.command()
def renew(folder: Folder = HERE) -> None:
    """Renew the server certificate under the same authority; restart the server to use it."""
    with readable_errors():
        from server.consortium.certificates import expires
        from server.consortium.consortium import renew as renew_certificate
        from server.consortium.settings import load_server

        settings = load_server(folder)
        renew_certificate(settings)
        console.say(
            f"{settings.certificate} is valid until {expires(settings.certificate):%Y-%m-%d}. Restart the server."
        )


@app.command()
def start(folder: Folder = HERE) -> None:
    """Run the SuperLink in the foreground, with TLS and registered keys only, until Ctrl-C or SIGTERM."""
    with readable_errors():
        from server.consortium.settings import load_server
        from server.consortium.superlink import become_superlink

        become_superlink(load_server(folder))


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.", show_default=False)],
    set_: Overrides = None,
    track: Track = None,
    detach: Detach = False,
    folder: Folder = HERE,
) -> None:
    """Run an experiment at the registered sites that it names, and show its progress."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from server.consortium.settings import load_server
        from server.watch.follow import launch_and_follow

        experiment = load_config(config, parse_overrides(set_ or []))
        settings = load_server(folder)
        launch_and_follow(settings, experiment, resume=None, track=track or (), detach=detach, console=console)


@app.command()
def resume(
    run_dir: RunDir,
    set_: Overrides = None,
    accept_new_code: NewCode = False,
    track: Track = None,
    detach: Detach = False,
    folder: Folder = HERE,
) -> None:
    """Resume an interrupted run; --set may change the quorum, deadlines and which sites only evaluate."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from server.consortium.settings import load_server
        from server.watch.follow import launch_and_follow

        experiment = load_config(run_dir / "config.yaml", parse_overrides(set_ or []))
        launch_and_follow(
            load_server(folder),
            experiment,
            resume=run_dir.absolute(),
            accept_new_code=accept_new_code,
            track=track or (),
            detach=detach,
            console=console,
        )


@app.command()
def classes(
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="The run to compare with.")] = None,
    folder: Folder = HERE,
) -> None:
    """List the classes that connected sites can contribute, and mark those that a run has not learnt."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from server.consortium.settings import load_server
        from server.jobs.jobs import announcements
        from server.watch.tables import classes_table

        registry = load_config(run_dir / "config.yaml").data.classes or () if run_dir else ()
        console.print(classes_table(announcements(load_server(folder)), registry))


@app.command()
def statistics(folder: Folder = HERE) -> None:
    """Count the images and patients of connected sites by class, size and brightness, where their policies permit."""
    with readable_errors():
        from server.consortium.settings import load_server
        from server.jobs.jobs import statistics as ask
        from server.watch.tables import statistics_tables

        settings = load_server(folder)
        for table in statistics_tables(ask(settings)):
            console.print(table)
        console.say(f"Kept in {settings.folder / 'statistics.json'}")


@app.command()
def extend(
    run_dir: RunDir,
    new: Annotated[list[str], typer.Option("--class", help="A new class, by the name the sites use. Repeatable.")],
    distinct: Annotated[
        bool, typer.Option("--distinct", help="Confirm that names that look alike mean different diseases.")
    ] = False,
    site: Annotated[list[str] | None, typer.Option(help="A site that joins. Repeatable.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A pretrained network that takes over (moving_ridge).")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels at which the network sees images.")] = None,
    weights: Annotated[str | None, typer.Option(help="Its weights, by name.", show_default="pretrained")] = None,
    sha256: Annotated[str | None, typer.Option(help="SHA-256 of its weights, which every site must hold.")] = None,
    accept_new_code: NewCode = False,
    track: Track = None,
    detach: Detach = False,
    folder: Folder = HERE,
) -> None:
    """Extend a finished run by one task with new classes; what it has learnt stays, even on another network."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from dynammo_core.wire.announcement import with_new_task
        from server.consortium.control import Control
        from server.consortium.settings import load_server
        from server.consortium.sites import SiteRegister
        from server.run_directory.extension import without_unbegun
        from server.run_directory.lineage import with_network, with_sites
        from server.watch.follow import launch_and_follow

        planned = load_config(run_dir / "config.yaml")
        experiment = without_unbegun(planned, run_dir)
        begun = experiment.data.classes or ()
        experiment = with_new_task(experiment, new, distinct=distinct)
        if any(option is not None for option in (backbone, image_size, weights, sha256)):
            experiment = with_network(experiment, backbone, weights=weights, sha256=sha256, image_size=image_size)
        settings = load_server(folder)
        known = SiteRegister(settings, Control(settings)).load()
        experiment = with_sites(experiment, site or [], {name: one.fingerprint for name, one in known.items()})
        if taken_back := [name for name in planned.data.classes or () if name not in begun]:
            console.say(f"Taken back, since no site had begun with it: {', '.join(taken_back)}")
        launch_and_follow(
            settings,
            experiment,
            resume=run_dir.absolute(),
            accept_new_code=accept_new_code,
            track=track or (),
            detach=detach,
            console=console,
        )


@app.command()
def evaluate(run_dir: RunDir, folder: Folder = HERE) -> None:
    """Test a run's latest model at every connected site, and save the result in RUN_DIR/evaluations."""
    with readable_errors():
        from server.consortium.settings import load_server
        from server.jobs.jobs import evaluation
        from server.watch.tables import evaluation_tables

        for table in evaluation_tables(evaluation(load_server(folder), run_dir)):
            console.print(table)


@app.command()
def forget(run_dir: RunDir, folder: Folder = HERE) -> None:
    """Remove records that sites have withdrawn from a run's sums, then solve and test its model again."""
    with readable_errors():
        from server.consortium.settings import load_server
        from server.jobs.jobs import correction
        from server.watch.tables import correction_lines

        for line in correction_lines(correction(load_server(folder), run_dir)):
            console.say(line)


app.command()(status)
app.command()(export)


@app.command("data-flow")
def show_data_flow(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG|RUN_DIR", help="An experiment or a run.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option(help="The file to write.", show_default="the terminal")] = None,
) -> None:
    """Write as Markdown what leaves a site, when, why and to whom, derived from plan and protocol."""
    with readable_errors():
        from dynammo_core.support.files import write_atomically
        from server.report.data_flow import data_flow

        text = data_flow(source)
        if output is None:
            typer.echo(printable_lines(text))
        else:
            write_atomically(output, text.encode())
            console.say(f"Data flow: {output}")


@app.command()
def rollback(
    run_dir: RunDir,
    task: Annotated[int, typer.Option(min=1, help="Task whose model to restore, counted from 1.", show_default=False)],
) -> None:
    """Deploy the model after an earlier task, for `export` and `predict`."""
    with readable_errors():
        from server.run_directory.deployed import deploy
        from server.run_directory.directory import RunDirectory

        deploy(RunDirectory(run_dir), task - 1, "rolled_back", account())
        console.say(f"{run_dir}/model.safetensors is the model after task {task}.")


@app.command()
def release(run_dir: RunDir) -> None:
    """Deploy a run's newest model although a bound of its gate is broken; the model card names who did."""
    with readable_errors():
        from server.run_directory.deployed import deploy, newest_task
        from server.run_directory.directory import RunDirectory

        directory = RunDirectory(run_dir)
        task = newest_task(directory)
        deploy(directory, task, "released", account())
        console.say(f"{run_dir}/model.safetensors is the model after task {task + 1}.")


@app.command()
def stop(run_dir: RunDir, folder: Folder = HERE) -> None:
    """Stop a run; `resume` continues it."""
    with readable_errors():
        from server.consortium.control import Control
        from server.consortium.launch import command_to_continue, stop_run
        from server.consortium.settings import load_server

        stop_run(Control(load_server(folder)), run_dir)
        console.say(f"Stopped. Continue with: {command_to_continue(run_dir)}")
