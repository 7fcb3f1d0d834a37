"""Let trackers listen to a run; one that fails is left alone, and the run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.markup import escape

from dynammo_core.configuration.approval import without_paths
from dynammo_core.configuration.config import Config
from dynammo_core.deployed.model_files import FACTS, WEIGHTS, ModelFiles
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal, printable
from server.run_directory.directory import Event, Listener
from server.trackers import TRACKERS
from server.trackers.curves import points_of
from server.trackers.tracker import Ending, TrackedRun, Tracker

NOTE = "trackers.json"
FILES = ("config.yaml", "summary.json", "accuracy_matrix.csv", "confusion_matrix.csv", FACTS, "report.html")
"""Files of a run directory that trackers keep; not the weights."""


def find_trackers(names: Iterable[str]) -> dict[str, type[Tracker]]:
    """Import the trackers of some names.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    found = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = TRACKERS.find(name, "--track")
        except ImportError as error:
            raise ConfigError(
                f"--track {name} needs a package that is not installed here ({error.name})",
                remedy=f"Run: pip install 'federated-dynammo[{name}]'",
            ) from error
    return found


@contextmanager
def tracking(
    names: Iterable[str], config: Config[Any], directory: Path, listener: Listener = lambda _: None
) -> Iterator[Listener]:
    """Track a run while the block is open, by the listener that it yields, which passes each event on to `listener`.

    Args:
        names: names of trackers.
        config: the experiment.
        directory: directory of the run, which need not exist before its first event.
        listener: hears each event first.

    Raises:
        ConfigError: as `find_trackers`.
    """
    guarded = [_Guarded(name, tracker, config, directory) for name, tracker in find_trackers(names).items()]

    def listen(event: Event) -> None:
        listener(event)
        for one in guarded:
            one.hear(event)

    ending: Ending = "stopped"
    try:
        yield listen
        ending = "finished"
    except Exception:
        ending = "failed"
        raise
    finally:
        for one in guarded:
            one.end(ending)


class _Guarded:
    """One tracker of one run, from the run's start until the tracker's first error."""

    def __init__(self, name: str, make: type[Tracker], config: Config[Any], directory: Path) -> None:
        self._name, self._make, self._config, self._directory = name, make, config, directory
        self._tracker: Tracker | None = None

    def hear(self, event: Event) -> None:
        """Begin at the start of the run, and add points."""
        if event["event"] == "run_started":
            self._guard(lambda: self._begin(event["resumed_at"]))
        at, values = points_of(event, self._config.federation.site_label)
        if values and (tracker := self._tracker):
            self._guard(lambda: tracker.points(at, values))

    def end(self, ending: Ending) -> None:
        """Hand over the results and end."""
        if tracker := self._tracker:
            self._guard(lambda: _hand_over(tracker, self._directory))
            self._guard(lambda: tracker.end(ending))

    def _begin(self, resumed_at: int) -> None:
        note = self._directory / NOTE
        known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        before = str(known.get(self._name, ""))
        run = TrackedRun(self._directory, self._config.name, before, resumed_at)
        self._tracker = self._make(run)
        if not before:
            write_atomically(note, json.dumps({**known, self._name: self._tracker.id}, indent=2).encode() + b"\n")
            self._tracker.parameters(dict(_leaves(without_paths(self._config).model_dump(mode="json"))))

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of a stranger's package, over any network
            self._tracker = None
            words = escape(printable(f"{self._name} tracks this run no longer: {type(error).__name__}: {error}"))
            Terminal(stderr=True).print(f"[bold yellow]warning[/] {words}", soft_wrap=True, highlight=False)


def _hand_over(tracker: Tracker, directory: Path) -> None:
    for path in (directory / name for name in FILES):
        if path.is_file():
            tracker.file(path)
    with TemporaryDirectory() as folder:
        if (directory / WEIGHTS).is_file():
            card = Path(folder) / "model_card.md"
            card.write_text(_model_card(directory), encoding="utf-8")
            tracker.file(card)


def _model_card(directory: Path) -> str:
    from server.report.model_card import model_card

    digest = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    facts = ModelFiles.read(directory).facts
    return model_card(directory, facts, file=WEIGHTS, format_name="safetensors", sha256=digest)


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    """Yield every setting by its dotted key, what is not a number as text."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            yield f"{prefix}{name}", value if number else str(value)
