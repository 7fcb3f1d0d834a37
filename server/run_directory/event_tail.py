"""Follow a run's event log while another process writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from server.run_directory.directory import Listener


class EventTail:
    """Read the events that another process appends to a run's log."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self._path = path
        self._position = path.stat().st_size if from_end and path.exists() else 0

    def feed(self, listener: Listener) -> None:
        """Tell the listener every event since the last call."""
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                file.seek(self._position)
                for event in _whole_lines(file):
                    listener(event)
                self._position = file.tell()


def _whole_lines(file: TextIO) -> Iterator[dict[str, Any]]:
    """Return the events of complete lines; an incomplete last line is left for the next call."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        try:
            event = json.loads(line)
        except ValueError:
            continue
        yield event
