"""Support a long-running process: a lock, a rotating log, and a clean stop."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from client.consent.settings import SiteSettings
from dynammo_core.support.errors import ConfigError, RunError
from dynammo_core.support.locks import only_holder

LOG_BYTES, LOG_FILES = 10_000_000, 5
OWN_LINE = "dynammo-site: "
"""Begins each line of this project in the site's log, and in what its processes print, among those of Flower."""
POLL_SECONDS = 0.2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Backoff:
    """Seconds to wait before the next start: doubled with each failure, reset after a steady time."""

    first: float = 1.0
    longest: float = 60.0
    steady: float = 60.0
    _next: float = field(default=0.0, init=False)

    def after(self, lived: float) -> float:
        """Return the wait after an attempt that lasted `lived` seconds."""
        wait = self.first if lived >= self.steady or not self._next else self._next
        self._next = min(2 * wait, self.longest)
        return wait


@contextmanager
def only_one(settings: SiteSettings) -> Iterator[None]:
    """Lock this site's state folder; the lock ends with the process that holds it.

    Raises:
        RunError: another process holds it.
        ConfigError: the folder cannot be written.
    """
    path = settings.state / "start.lock"
    try:
        (settings.state / "cwd").mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the state folder {settings.state}: {error.strerror}",
            remedy="Give the account that runs the site write permission, or correct state",
        ) from error

    def refusal(holder: str) -> RunError:
        what = f"the site {settings.site} already runs ({holder}, according to {path})"
        return RunError(what, remedy="Stop that process first: two would answer for the same images")

    with only_holder(path, refusal):
        yield


class _LogFile(RotatingFileHandler):
    """A log readable only by the site's account; a full disk loses lines, but does not stop the site."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Skip this line."""


@contextmanager
def log_file(settings: SiteSettings) -> Iterator[logging.Logger]:
    """Open the site's log, with timed lines, in files of ten megabytes of which the last six are kept.

    Raises:
        ConfigError: it cannot be written.
    """
    logger = logging.Logger(f"dynammo-site {settings.site}", logging.INFO)
    try:
        settings.log.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(settings.log, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write the log {settings.log}: {error.strerror}",
            remedy="Give the account that runs the site write permission, or correct log",
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


class Stop:
    """Whether this process was asked to stop; no Event, since a signal handler that sets one may wait for itself."""

    asked = False

    def wait(self, seconds: float) -> bool:
        """Wait until asked to stop, at most this long; return whether it was asked."""
        limit = time.monotonic() + seconds
        while not self.asked and (left := limit - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return self.asked


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catch SIGTERM, SIGINT and SIGHUP, unless ignored (`nohup`); main thread only."""
    stop = Stop()
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: setattr(stop, "asked", True)) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
