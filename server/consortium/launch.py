"""Submit a run among real sites to the SuperLink, and follow its event log until it ends or dies."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynammo_core.configuration.config import Config
from dynammo_core.support.errors import CheckpointError, ConfigError, DynammoError, RunError, nearest_match
from dynammo_core.support.files import write_atomically
from server.consortium.control import Control
from server.consortium.settings import ServerSettings
from server.run_directory.advice import failure_words
from server.run_directory.directory import Event, Listener, RunDirectory, run_place
from server.run_directory.event_tail import EventTail
from server.run_directory.flower_run import flower_run, noted_run, notes_of
from server.run_directory.lineage import OPERATION, forbidden_changes
from server.run_directory.lock import only_run, only_start
from server.run_directory.progress import saved_state

if TYPE_CHECKING:
    from server.consortium.sites import SiteRegister

FOLLOW_SECONDS, ASK_SECONDS, END_SECONDS = 0.5, 10.0, 30.0
LOOK_SECONDS, BEGIN_SECONDS, PATIENCE_SECONDS = 0.05, 1.0, 60.0
"""Seconds between looks whether a run has begun, between questions to Flower whether it has ended instead, and until
people are told that it has not begun."""
FAILED = "ServerApp failed with exception: "
"""What Flower puts before the text of an error."""

logger = logging.getLogger("dynammo.launch")


def launch(
    settings: ServerSettings,
    config: Config[Any],
    *,
    resume: Path | None = None,
    accept_new_code: bool = False,
    track: Iterable[str] = (),
) -> Path:
    """Submit an experiment, or the rest of one, to the SuperLink, and return the run directory once the run has begun.

    Whether it can work is found out by the server's process, which has PyTorch loaded already, before it makes the
    directory or asks a site.

    Raises:
        ConfigError: the experiment names no sites, or one that is not registered; or a tracker is not there.
        CheckpointError: the run to resume has no checkpoint; its log stays as it is.
        RunError: the run is already going on, cannot work, or is refused by the SuperLink.
    """
    from server.consortium.flower_app import installed_bundle  # and only here: `status` submits nothing
    from server.consortium.sites import SiteRegister

    if trackers := list(dict.fromkeys([*settings.track, *track])):
        from server.trackers.tracking import find_trackers  # it needs PyTorch

        find_trackers(trackers)
    control = Control(settings)
    place = run_place(settings.runs, config, resume)
    _require_registered(config, SiteRegister(settings, control))
    with only_start(place):
        refuse_a_second(control, place)
        if resume:
            require_checkpoint(resume)
        with only_run(place):  # which the SuperLink's process then takes over
            if resume:
                _require_same_experiment(resume, config)
        submitted = settings.flower_home / "submitted" / f"{config.run_name}.yaml"
        write_atomically(submitted, config.to_yaml().encode())
        run_config = {
            "config": str(submitted),
            "runs": str(settings.runs),
            "resume": str(resume) if resume else "",
            "accept-new-code": "yes" if accept_new_code else "",
            "track": " ".join(trackers),
            "consortium": str(settings.folder),
        }
        run = control.submit(installed_bundle(), run_config)
        try:
            _await_beginning(control, run, place, submitted.with_suffix(".log"))
        except BaseException as error:
            submitted.unlink(missing_ok=True)
            if isinstance(error, KeyboardInterrupt):
                control.stop(run)
            raise
    return place


def _await_beginning(control: Control, run: int, place: Path, log: Path) -> None:
    """Wait until the server's process has begun a run in its directory, and repeat what that warned of.

    Raises:
        RunError: it refused the run, in the words of that process; or it died, and Flower's log is written to `log`.
    """
    asked = submitted = time.monotonic()
    patient = False
    while (notes := notes_of(place)).get("run-id") != run:
        if time.monotonic() - asked > BEGIN_SECONDS:
            status, details = status_of(control, run)
            if status.startswith("finished") and notes_of(place).get("run-id") != run:
                said = control.log_of(run)
                if own := own_words(details, said):
                    raise RunError(own)
                remedy = f"No site was asked. {_kept(log, said)}"
                raise RunError(f"the run ended with status {status} before it began: {details}", remedy=remedy)
            asked = time.monotonic()
            if not patient and asked - submitted > PATIENCE_SECONDS:
                logger.warning("the run is submitted, and %s since %d s; Ctrl-C stops it", status, PATIENCE_SECONDS)
                patient = True
        time.sleep(LOOK_SECONDS)
    for warning in notes.get("warnings", ()):
        logger.warning("%s", warning)


def own_words(details: str, said: str) -> str:
    """Return the words of an error of this project that ended a run; empty if something else ended it.

    Args:
        details: what Flower says of the run's end.
        said: what the run printed.
    """
    own = f"{DynammoError.__module__}." in said and details.startswith(FAILED)
    return details.removeprefix(FAILED) if own else ""


def follow(settings: ServerSettings, directory: Path, tail: EventTail, listener: Listener) -> None:
    """Pass the run's events to the listener until the run has ended.

    Raises:
        RunError: it failed, was stopped, or its process died.
    """
    control, run = Control(settings), flower_run(directory)
    started: Event = {}
    ended: list[Event] = []

    def hear(event: Event) -> None:
        nonlocal started
        listener(event)
        if event["event"] == "run_started":
            started = event
        if event["event"] in ("run_finished", "run_failed"):
            ended.append(event)

    asked = time.monotonic()
    while not ended:
        tail.feed(hear)
        if not ended and time.monotonic() - asked > ASK_SECONDS:
            status, details = status_of(control, run)
            if status.startswith("finished"):
                tail.feed(hear)
                if not ended:
                    raise _died(control, run, directory, f"{status} {details}".strip())
            asked = time.monotonic()
        time.sleep(FOLLOW_SECONDS)
    # For Flower a run ends a moment later: whoever starts another one in its place then shall not be refused.
    limit = time.monotonic() + END_SECONDS
    while not status_of(control, run)[0].startswith("finished") and time.monotonic() < limit:
        time.sleep(FOLLOW_SECONDS)
    if ended[-1]["event"] == "run_failed":
        raise RunError(failure_words(started, ended[-1]), remedy=_remedy(directory))


def status_of(control: Control, run: int) -> tuple[str, str]:
    """Return Flower's status of a run, such as `finished:failed`, and its details."""
    return control.runs().get(run, ("finished:unknown", "the run is not in the SuperLink's database"))


def stop_run(control: Control, directory: Path) -> None:
    """Stop the run in a directory.

    Raises:
        ConfigError: no run was submitted from there.
        RunError: it has ended already, or the SuperLink does not answer.
    """
    status, _ = status_of(control, run := flower_run(directory))
    if status.startswith("finished"):
        raise RunError(f"the run in {directory} has ended already ({status}): there is nothing to stop")
    control.stop(run)


def refuse_a_second(control: Control, directory: Path) -> None:
    """Refuse a second run in one directory, as the two would overwrite each other's checkpoints.

    Where nobody can read which run it holds, the lock of the run alone keeps others out.

    Raises:
        RunError: the run in this directory goes on.
    """
    if (run := noted_run(directory)) is None:
        return
    status, _ = status_of(control, run)
    if not status.startswith("finished"):
        raise RunError(
            f"the run in {directory} is already {status}",
            remedy=f"Wait for it to end, or stop it with `{operator_command('stop', directory)}`. If its process died "
            "with the server, Flower notices within a minute: then the same command works",
        )


def _died(control: Control, run: int, directory: Path, status: str) -> RunError:
    kept = _kept(directory / "flower.log", control.log_of(run))
    return RunError(f"the run ended with status {status}", remedy=f"{_remedy(directory)}; {kept}")


def _kept(file: Path, log: str) -> str:
    """Keep Flower's log of a run, and say where; that it cannot be kept matters less than why the run ended."""
    try:
        write_atomically(file, log.encode())
    except CheckpointError as error:
        return f"Flower's log is lost: {error}"
    return f"Flower's log is in {file}"


def operator_command(word: str, directory: Path, file: str = "") -> str:
    """Return an operator's command line for a run directory, or a file in it, that works in any working directory."""
    words = ["dynammo-server", word, str(directory.absolute() / file)]
    if consortium := notes_of(directory).get("consortium"):
        words += ["--folder", str(consortium)]
    return shlex.join(words)


def command_to_continue(directory: Path) -> str:
    """Return the command line that continues a stopped run, or starts it again if it has no checkpoint."""
    if RunDirectory(directory).can_resume:
        return operator_command("resume", directory)
    return operator_command("run", directory, "config.yaml")


def _remedy(directory: Path) -> str:
    return f"Continue with `{command_to_continue(directory)}`"


def require_checkpoint(directory: Path) -> None:
    """Refuse a run that has no checkpoint yet.

    Raises:
        CheckpointError: there is none; the message says how to start the run.
    """
    if not RunDirectory(directory).can_resume:
        raise CheckpointError(
            f"the run in {directory} has no checkpoint: the first finished step writes one",
            remedy=f"Start it with `{command_to_continue(directory)}`",
        )


def _require_same_experiment(directory: Path, config: Config[Any]) -> None:
    """Refuse here what the server's process would refuse: that would end a run which is only interrupted as failed."""
    identity, _ = saved_state(RunDirectory(directory).checkpoints)
    if changes := forbidden_changes(identity.config, config.canonical_json()):
        raise CheckpointError(
            f"the run in {directory} was started as another experiment: {'; '.join(changes)}",
            accepted=f"changes of {', '.join(OPERATION)}",
            remedy="Resume it without the others, or start a new run with `dynammo-server run`",
        )


def _require_registered(config: Config[Any], register: SiteRegister) -> None:
    known = register.load()
    names = config.federation.site_names
    if names is None:
        raise ConfigError(
            "the experiment does not name any sites", accepted=f"federation.site_names: some of {list(known)}"
        )
    for name in names:
        if name not in known:
            raise ConfigError(
                f"federation.site_names: the site {name!r} is not registered{nearest_match(name, known)}",
                accepted=", ".join(known) or "no site is registered yet",
                remedy="Register it with `dynammo-server sites add NAME KEY.pub`",
            )
    for name, key in zip(names, config.federation.site_keys or (), strict=False):
        if known[name].fingerprint != key:
            raise ConfigError(
                f"federation.site_keys: the key of the site {name} is {known[name].fingerprint}, not {key}",
                remedy="Copy the lines that `dynammo-server sites keys` prints; every hospital must approve the change",
            )
