"""Run Flower's SuperNode as a child process: watch it, restart it after failures, and stop it at the end."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from client.consent.labels import misspelt_in_approved
from client.consent.settings import SiteSettings
from client.doctor.connection import refusal
from client.service.daemon import OWN_LINE, Backoff, Stop, log_file, only_one, stop_signals
from client.service.own_code import start_command
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.processes import process_group
from dynammo_core.support.terminal import printable

ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or a run could install packages at this site
}
STOP_SECONDS = 15.0
POLL_SECONDS = 0.2
REPEATED_SECONDS = 60.0
TAIL_LINES = 60
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
FLOWER_LINE = re.compile(r"(?P<level>[A-Z]+) *:\s+(?P<text>.*)")
STILL_ONLINE = "[code: 2004]"
"""Flower's answer to a SuperNode whose key it does not know, or believes to be in use."""
Say = Callable[[str], None]


def supervise(
    settings: SiteSettings, site_yaml: Path, *, say: Say, once: bool = False, backoff: Backoff | None = None
) -> int:
    """Run this site's SuperNode until SIGTERM or SIGINT; must be called from the main thread.

    Before each start it asks the SuperLink whether it would admit the site; if not, it reports the reason and keeps
    asking. A SuperNode that stops by itself is restarted whatever its exit code, which is 0 when a key is withdrawn.

    Args:
        settings: the site.
        site_yaml: where its settings are written, for the ClientApp.
        say: takes what the engineer should see, a line at a time; everything goes to the site's log.
        once: stop at the first failure instead of trying again.
        backoff: how long to wait between attempts.

    Returns:
        0 when it was stopped by a signal, 1 after a failure with `once`.

    Raises:
        RunError: this site's SuperNode is already running.
        ConfigError: the state folder or the log cannot be written, or a file that the settings name cannot be read.
    """
    command = _command(settings, site_yaml)
    backoff = backoff or Backoff()
    with only_one(settings), log_file(settings) as log, stop_signals() as stop:

        def tell(line: str) -> None:
            log.info("%s%s", OWN_LINE, line)
            say(line)

        for sentence in misspelt_in_approved(settings):
            tell(f"warning: {sentence}")
        said = ""
        while not stop.wait(0):
            began = time.monotonic()
            refused = refusal(settings)
            if refused is None:
                said = ""
                why = _run(command, settings, log, tell, stop)
                if stop.wait(0):
                    break
                tell(why)
            elif refused.sentence != said:  # once, not every minute of a night
                said = refused.sentence
                tell(f"not admitted: {said}")
            if once:
                return 1
            wait = backoff.after(time.monotonic() - began if refused is None else 0.0)
            log.info("%snext attempt in %.0f s", OWN_LINE, wait)
            stop.wait(wait)
        tell("stopped")
        return 0


def _run(command: list[str], settings: SiteSettings, log: logging.Logger, tell: Say, stop: Stop) -> str:
    """Run the SuperNode until it ends or shall stop; return why it ended. No process of it is left."""
    command = [*command, "--port", str(_free_port())]
    with process_group(command, cwd=settings.state / "cwd", environment=_environment(settings)) as child:
        tell(f"SuperNode started (process {child.pid})")
        tail: deque[str] = deque(maxlen=TAIL_LINES)

        def tell_unless_stopping(line: str) -> None:
            if not stop.asked:
                tell(line)

        reader = threading.Thread(target=relay, args=(child, log, tell_unless_stopping, tail), daemon=True)
        reader.start()
        while child.poll() is None and not stop.wait(POLL_SECONDS):
            pass
        if child.poll() is None:
            child.terminate()  # it takes leave of the SuperLink
            with suppress(subprocess.TimeoutExpired):
                child.wait(STOP_SECONDS)
    reader.join(STOP_SECONDS)
    return _reason(settings, child.returncode, "\n".join(tail))


def relay(child: subprocess.Popen[str], log: logging.Logger, tell: Say, tail: deque[str]) -> None:
    """Write every line to the log; show refusals, failures and connections, and repeated warnings only once."""
    last, own, shown = "", "", 0.0
    if isinstance(child.stdout, TextIOWrapper):
        child.stdout.reconfigure(newline="\n")  # a carriage return that a message quotes begins no line
    for line in child.stdout or ():
        text = printable(COLOURS.sub("", line.rstrip("\r\n")))
        tail.append(text)
        if text.startswith(OWN_LINE) and (text != own or time.monotonic() - shown > REPEATED_SECONDS):
            own, shown = text, time.monotonic()
            tell(text.removeprefix(OWN_LINE))
            continue
        log.info(text)
        match = FLOWER_LINE.fullmatch(text)
        if match is None:
            continue
        message = re.sub(r"[\d.]+ seconds", "a while", match["text"])
        if match["text"].startswith("SuperNode ID:"):
            tell(f"connected as node {match['text'].split()[-1]}")
        elif match["text"].startswith("Connection successful") or (
            match["level"] in ("WARNING", "ERROR", "CRITICAL") and message != last
        ):
            tell(f"Flower: {message}")
        last = message


def _reason(settings: SiteSettings, code: int, tail: str) -> str:
    if STILL_ONLINE in tail:
        return (
            f"the SuperLink believes that {settings.site} is already online. After a hard stop this lasts up to a "
            "minute; if it persists, another machine uses the same private key: stop it there"
        )
    return f"the SuperNode stopped by itself (exit code {code}); see the end of the log {settings.log}"


def _command(settings: SiteSettings, site_yaml: Path) -> list[str]:
    place = str(site_yaml.absolute())
    if "'" in place:
        raise ConfigError(f"the path {place} holds a quotation mark, which Flower does not accept", remedy="Rename it")
    return [
        *start_command("client.service.own_node"),
        *("--superlink", settings.superlink),
        *("--root-certificates", str(settings.ca_certificate)),
        *("--auth-supernode-private-key", str(settings.private_key)),
        *("--node-config", f"site-config='{place}'"),
        *("--isolation", "process"),
        *("--host", "127.0.0.1"),
    ]


def _environment(settings: SiteSettings) -> dict[str, str]:
    """Return the account's environment without settings of another Flower."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    environment |= ENVIRONMENT
    environment["FLWR_HOME"] = str(settings.state)
    for name in ("NO_PROXY", "no_proxy"):  # the SuperNode's own processes talk to each other here
        environment[name] = ",".join(filter(None, [environment.get(name), "127.0.0.1,localhost"]))
    return environment


def _free_port() -> int:
    """Another program may take it meanwhile: then the SuperNode ends, and is started again with another one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
