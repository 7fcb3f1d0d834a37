"""Match connected nodes to sites: by the name of the registered key or, in a simulation, any node."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flwr.serverapp import Grid

from dynammo_core.configuration.federation import FederationSettings

POLL_SECONDS = 0.1


class Roster:
    """Find the node of each site, and wait once, for a configured time, for those not connected."""

    def __init__(self, grid: Grid, federation: FederationSettings) -> None:
        self._grid = grid
        self._names = federation.site_names
        self._patience = federation.patience_seconds
        self._given_up: set[int] = set()

    def nodes(
        self, sites: Sequence[int], *, needed: int, deadline: float, on_waiting: Callable[[list[int]], None]
    ) -> dict[int, int]:
        """Return the node of each of `sites` that is connected.

        It waits for every site for the configured time, but not again for a site that stayed away until that is back.
        While fewer than `needed` are connected, it waits up to `deadline` seconds. `on_waiting` is called with the
        sites that are waited for, whenever they change.
        """
        started = time.monotonic()
        announced: set[int] = set()
        while True:
            found = self._connected(sites)
            self._given_up -= set(found)
            missing = set(sites) - set(found) - self._given_up
            waited = time.monotonic() - started
            wanted = missing and waited < self._patience
            if not wanted and (len(found) >= needed or waited >= deadline):
                break
            if (away := set(sites) - set(found)) != announced:
                on_waiting(sorted(away))
                announced = away
            time.sleep(POLL_SECONDS)
        self._given_up |= missing
        return found

    def activations(self, sites: Sequence[int]) -> dict[int, str]:
        """Return when each connected site last started; a restarted site has lost what it was asked before."""
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
        # Two nodes with one name count as none: either could hold the site's memory.
        return {site: by_name[self._names[site]][0] for site in sites if len(by_name.get(self._names[site], ())) == 1}
