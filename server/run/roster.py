"""Which connected node is which site: by the name under which its key is registered or, simulated, any node."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flwr.serverapp import Grid

from dynammo_core.configuration.federation import FederationSettings

POLL_SECONDS = 0.1


class Roster:
    """Find the node of each site, and wait once, for as long as is set, for those that are not connected."""

    def __init__(self, grid: Grid, federation: FederationSettings) -> None:
        self._grid = grid
        self._names = federation.site_names
        self._patience = federation.patience_seconds
        self._given_up: set[int] = set()

    def nodes(
        self, sites: Sequence[int], *, needed: int, deadline: float, on_waiting: Callable[[list[int]], None]
    ) -> dict[int, int]:
        """Return the node of each of `sites` that is connected.

        Every site is waited for while patience lasts; one that stayed away is not waited for again until it is back.
        As long as fewer than `needed` are connected, all the others wait, up to `deadline` seconds. `on_waiting`
        is told which sites are waited for, whenever that changes.
        """
        started = time.monotonic()
        told: set[int] = set()
        while True:
            found = self._connected(sites)
            self._given_up -= set(found)
            missing = set(sites) - set(found) - self._given_up
            waited = time.monotonic() - started
            wanted = missing and waited < self._patience
            if not wanted and (len(found) >= needed or waited >= deadline):
                break
            if (away := set(sites) - set(found)) != told:
                on_waiting(sorted(away))
                told = away
            time.sleep(POLL_SECONDS)
        self._given_up |= missing
        return found

    def activations(self, sites: Sequence[int]) -> dict[int, str]:
        """Return when each connected site last started; one that started anew has lost what it was asked before."""
        if self._names is None:
            return {}
        starts = {node.name: str(node.last_activated_at) for node in self._grid.get_nodes()}
        return {site: starts[self._names[site]] for site in sites if self._names[site] in starts}

    def _connected(self, sites: Sequence[int]) -> dict[int, int]:
        if self._names is None:
            # In a simulation any node can play any site, so nodes may be fewer than sites.
            nodes = sorted(self._grid.get_node_ids())
            return {site: nodes[site % len(nodes)] for site in sites} if nodes else {}
        by_name: dict[str, list[int]] = {}
        for node in self._grid.get_nodes():
            by_name.setdefault(node.name, []).append(node.node_id)
        # Two nodes of one name count as no node: nobody could say which of them holds the site's memory.
        return {site: by_name[self._names[site]][0] for site in sites if len(by_name.get(self._names[site], ())) == 1}
