"""Control a running SuperLink: register sites, submit and stop runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dynammo_core.support.errors import RunError
from server.consortium.settings import ServerSettings

MOST_RUNS = 10_000
"""So many runs are listed, the latest first; Flower itself would list 20, and each question to the sites is a run."""


class Control:
    """Control one SuperLink from the machine that it runs on.

    Whatever is asked raises a RunError if the SuperLink does not answer, or refuses.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def register(self, name: str, public_key: bytes) -> int:
        """Register a site's public key, as PEM, under a name, and return its node id."""
        return int(self._ask("register-node", public_key=public_key, name=name).node_id)

    def unregister(self, node: int) -> None:
        """Stop a node from connecting."""
        self._ask("unregister-node", node_id=node)

    def nodes(self) -> dict[int, tuple[str, str]]:
        """Return registered nodes by id: status (registered, online, offline), and since when they are on or off."""
        nodes = [node for node in self._ask("list-nodes").nodes_info if not node.unregistered_at]
        times = {"online": "last_activated_at", "offline": "last_deactivated_at"}
        return {node.node_id: (node.status, _second(getattr(node, times.get(node.status, ""), ""))) for node in nodes}

    def submit(self, bundle: bytes, run_config: Mapping[str, str]) -> int:
        """Start a run of a Flower app, given as a bundle, and return its id."""
        fab = {"hash_str": hashlib.sha256(bundle).hexdigest(), "content": bundle}
        values = {key: {"string": value} for key, value in run_config.items()}
        answer = self._ask("start-run", fab=fab, override_config=values)
        if not answer.HasField("run_id"):
            raise RunError(f"the SuperLink at {self._settings.address} did not start the run; its log says why")
        return int(answer.run_id)

    def runs(self) -> dict[int, tuple[str, str]]:
        """Return the status of each run by its id, such as `running` or `finished:completed`, and its details."""
        known = {run: about.status for run, about in self._ask("list-runs", limit=MOST_RUNS).run_dict.items()}
        return {run: (":".join(filter(None, [is_.status, is_.sub_status])), is_.details) for run, is_ in known.items()}

    def stop(self, run: int) -> None:
        """End a run."""
        if not self._ask("stop-run", run_id=run).success:
            raise RunError(f"the SuperLink at {self._settings.address} could not stop the run {run}")

    def log_of(self, run: int) -> str:
        """Return what a run has printed so far."""
        from server.consortium.control_api import ask_stream

        first = ask_stream(self._settings, "stream-logs", run_id=run)
        return "" if first is None else str(first.log_output)

    def _ask(self, call: str, **fields: Any) -> Any:
        from server.consortium.control_api import ask  # and only here: most commands ask nothing, and need no Flower

        return ask(self._settings, call, **fields)


def _second(time: str) -> str:
    """Return a time that Flower tells as people read it; empty if there is none."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M:%SZ}" if time else ""
