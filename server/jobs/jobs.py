"""Ask the sites questions that need no training: each is a short Flower run that leaves one JSON file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import load_config
from dynammo_core.support.errors import RunError
from server.consortium.control import Control
from server.consortium.flower_app import installed_bundle
from server.consortium.launch import own_words, refuse_a_second, require_checkpoint, status_of
from server.consortium.settings import ServerSettings
from server.jobs.limits import COUNTING_SECONDS, SECONDS, longest


def announcements(settings: ServerSettings) -> dict[str, dict[str, Any]]:
    """Return what every connected site can contribute: {site: {"classes": {name: band}} or {"error": class}}.

    Raises:
        RunError: the SuperLink does not answer, or the job fails.
    """
    return _ask(settings, settings.folder / "announcements.json", {"announce": ""})


def statistics(settings: ServerSettings) -> dict[str, dict[str, Any]]:
    """Return what every connected site counts of its images, kept in `statistics.json` of the consortium's folder.

    Raises:
        RunError: the SuperLink does not answer, or the job fails.
    """
    return _ask(settings, settings.folder / "statistics.json", {"statistics": ""}, SECONDS + COUNTING_SECONDS)


def evaluation(settings: ServerSettings, run: Path) -> dict[str, Any]:
    """Return metrics of a run's latest model at every connected site, and keep them in `<run>/evaluations/`.

    Raises:
        ConfigError: the run's configuration cannot be read.
        CheckpointError: no step of the run is finished.
        RunError: the SuperLink does not answer, or the job fails.
    """
    config = run / "config.yaml"
    limit = longest(load_config(config), "evaluate")
    require_checkpoint(run)
    output = run / "evaluations" / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"
    values = {"evaluate": "", "config": str(config.absolute()), "resume": str(run.absolute())}
    return _ask(settings, output, values, limit)


def correction(settings: ServerSettings, run: Path) -> dict[str, Any]:
    """Remove withdrawn records from a run's sums, and keep the sites' answers in `<run>/corrections/`.

    Raises:
        ConfigError: the run's configuration cannot be read.
        CheckpointError: no step of the run is finished.
        RunError: its method does not keep sums, it is still going on, the SuperLink does not answer, or the job fails.
    """
    from dynammo_core.experiment import Experiment  # and PyTorch: what a correction needs, only the method knows

    config = run / "config.yaml"
    experiment = Experiment(load_config(config))
    experiment.step(0, correction=1)
    stage = experiment.correction_stage(0)
    parts = len(experiment.stream) if stage and stage.carry else 1
    require_checkpoint(run)
    refuse_a_second(Control(settings), run)
    output = run / "corrections" / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"
    values = {"forget": "", "config": str(config.absolute()), "resume": str(run.absolute())}
    return _ask(settings, output, values, longest(experiment.config, *["forget"] * parts, "evaluate"))


def _ask(settings: ServerSettings, output: Path, values: dict[str, str], seconds: float = SECONDS) -> dict[str, Any]:
    """Submit a job whose first value is the file to write, wait for it, and return the file's content."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    first = next(iter(values))
    control = Control(settings)
    absolute = {**values, first: str(output.absolute())}  # the ServerApp has another directory
    run = control.submit(installed_bundle(), absolute)
    limit = time.monotonic() + seconds
    status = ""
    while time.monotonic() < limit and not output.exists():
        status, details = status_of(control, run)
        if status.startswith("finished") and not output.exists():
            said = control.log_of(run)
            if own := own_words(details, said):
                raise RunError(own)
            last = [line for line in said.splitlines() if "Error" in line][-1:]
            raise RunError(f"the job ended with status {status} ({' '.join([details, *last]).strip()})")
        time.sleep(1)
    if not output.exists():
        control.stop(run)
        raise RunError(f"the job did not answer within {seconds:.0f} s (status: {status})")
    return dict(json.loads(output.read_text(encoding="utf-8")))
