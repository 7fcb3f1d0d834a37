"""Serve the status of runs as a small, read-only web page that only this machine can open."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import jinja2

from dynammo_core.support.errors import ConfigError
from server.report.page import page_environment
from server.watch.lookout import Lookout
from server.watch.metrics import metrics
from server.watch.status import age
from server.watch.status_template import SCRIPT, TEMPLATES

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
CLIENT_SECONDS = 10.0
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    f"form-action 'none'; frame-ancestors 'none'; script-src 'sha256-{_SCRIPT_HASH}'",
}


class StatusServer(ThreadingHTTPServer):
    """Serve `/`, `/run/NAME`, `/status.json` and `/metrics` on 127.0.0.1 until it is shut down.

    Raises:
        ConfigError: the port is taken, or not permitted.
    """

    def __init__(self, lookout: Lookout, port: int) -> None:
        self.lookout = lookout
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {ADDRESS}:{port} ({error.strerror})",
                remedy="Choose another port, or 0 for any free one",
            ) from error

    @property
    def url(self) -> str:
        """Return the address at which the page can be seen."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that disconnects, which is not an error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def serve_status(lookout: Lookout, port: int, *, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `on_ready` is told the address.

    Raises:
        ConfigError: the port is taken, or not permitted.
    """
    with StatusServer(lookout, port) as server:
        on_ready(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    """Answer GET only; every other method is unknown here."""

    server: StatusServer
    server_version, sys_version = "dynammo-status", ""
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        """Answer with one of the pages; a run is looked up among those listed, never on the disk."""
        if not _is_own_name(self.headers.get("Host", "")):
            # A malicious page could let its own host name resolve to this address, to read the status.
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        overview, now = self.server.lookout.look(), time.time()
        path = unquote(urlsplit(self.path).path)
        by_name = {f"/run/{run.directory.name}": run for run in overview.runs}
        page = {"now": now, "warnings": overview.warnings}
        if path == "/":
            self._send(_render("runs", **page, title="Runs", runs=overview.runs))
        elif path == "/status.json":
            self._send(json.dumps(overview.as_fields(now)), kind="application/json")
        elif path == "/metrics":
            self._send(metrics(overview, now), kind="text/plain; version=0.0.4")
        elif run := by_name.get(path):
            self._send(_render("run", **page, title=run.directory.name, run=run, left=run.seconds_left(now)))
        else:
            self._send(_render("nothing", **page, title="Not found"), HTTPStatus.NOT_FOUND)

    def _send(self, text: str, status: HTTPStatus = HTTPStatus.OK, kind: str = "text/html") -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Log nothing: the terminal is for the address, and who looked is private."""


def _is_own_name(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in HOSTS
    except ValueError:
        return False


@cache
def _environment() -> jinja2.Environment:
    environment = page_environment(TEMPLATES)
    environment.filters.update(ago=_ago, clock=_clock, lasting=age)
    return environment


def _render(name: str, **contents: object) -> str:
    return _environment().get_template(name).render(contents)


def _ago(moment: float | None, now: float) -> str:
    return "–" if moment is None else f"{age(moment, now)} ago"


def _clock(moment: float | None, pattern: str = "%Y-%m-%d %H:%M") -> str:
    """Return the local time as text."""
    return "–" if moment is None else datetime.fromtimestamp(moment).strftime(pattern)
