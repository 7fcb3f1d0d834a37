"""Control a running SuperLink through Flower's command line: register sites, submit and stop runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from dynammo_core.configuration.config import Scalar
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from server.consortium.flower_app import flower_environment
from server.consortium.settings import ServerSettings
from server.gate.operator_token import FILE_VARIABLE, read_token

CONNECTION = "consortium"
SECONDS = 120.0
FLOWER = (sys.executable, "-P", "-m", "server.consortium.flower_command_line")
"""Flower's command line, which shows the operator's token."""


class Control:
    """Control one SuperLink from the machine that it runs on."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def register(self, name: str, public_key: Path) -> int:
        """Register a site's public key under a name, and return its node id."""
        words = ("supernode", "register", str(public_key.absolute()), CONNECTION, "--name", name)
        return int(self._call(*words)["node-id"])

    def unregister(self, node: int) -> None:
        """Stop a node from connecting."""
        self._call("supernode", "unregister", str(node), CONNECTION)

    def nodes(self) -> dict[int, dict[str, Any]]:
        """Return registered nodes by id: `status` (registered, online, offline) and the times of its changes."""
        nodes = self._call("supernode", "list", CONNECTION)["nodes"]
        return {int(node["node-id"]): node for node in nodes if not node["deleted-at"].strip("N/A")}

    def submit(self, app: Path, run_config: Mapping[str, Scalar]) -> int:
        """Start a run of a Flower app and return its id."""
        file = self._home() / "run_config.toml"
        write_atomically(file, tomli_w.dumps(dict(run_config)).encode())
        return int(self._call("run", str(app), CONNECTION, "--run-config", str(file))["run-id"])

    def runs(self) -> list[dict[str, Any]]:
        """Return runs, latest first: `run-id`, `status` (such as `running`, `finished:completed`), `status-details`."""
        return list(self._call("list", CONNECTION)["runs"])

    def stop(self, run: int) -> None:
        """End a run."""
        self._call("stop", str(run), CONNECTION)

    def log_of(self, run: int) -> str:
        """Return what a run has printed so far."""
        return self._run("log", str(run), CONNECTION, "--show").stdout

    def _call(self, *words: str) -> dict[str, Any]:
        """Run a `flwr` command and return its answer.

        Raises:
            RunError: the SuperLink does not answer, or refuses.
        """
        done = self._run(*words, "--format", "json")
        start = done.stdout.find("{")
        try:
            answer, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            reason = " ".join(str(answer.get("error-message") or done.stderr or done.stdout or "no answer").split())
            if "SuperLink is unavailable" in reason:
                raise RunError(
                    f"the SuperLink at {self._settings.address} does not answer",
                    remedy="Check that it is running, or start it with `dynammo-server start`",
                )
            raise RunError(
                f"`flwr {' '.join(words[:2])}` failed at the SuperLink {self._settings.address}: {reason[-600:]}"
            )
        return dict(answer)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        home = self._home()
        read_token(self._settings.operator_token)  # says what is wrong, where Flower would only say that it was refused
        environment = flower_environment(home) | {FILE_VARIABLE: str(self._settings.operator_token)}
        try:
            return subprocess.run(
                [*FLOWER, *words],
                env=environment,
                cwd=home,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"the SuperLink {self._settings.address} did not answer in {SECONDS:.0f} s") from error

    def _home(self) -> Path:
        home = self._settings.flower_home
        home.mkdir(parents=True, exist_ok=True)
        connection = {"address": self._settings.address, "root-certificates": str(self._settings.ca_certificate)}
        text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
        write_atomically(home / "config.toml", text.encode())  # another command may be reading it
        return home
