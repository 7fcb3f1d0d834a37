"""What each site holds of the tensors sent to it, as far as the server can know, and so what has to travel."""

from __future__ import annotations

from collections.abc import Mapping

from dynammo_core.wire.envelope import Parcel


class Deliveries:
    """The hash last sent to each site under each name: what a site holds once it has answered well.

    It starts empty, so a server that starts anew sends everything once. A site that holds less than is believed here,
    because its disk was wiped, says so and is sent everything.
    """

    def __init__(self) -> None:
        self._held: dict[int, Mapping[str, str]] = {}

    def lacking(self, site: int, parcel: Parcel) -> list[str]:
        """Return the names of the tensors that have to travel to a site."""
        held = set(self._held.get(site, {}).values())
        return [name for name in parcel.arrays if parcel.hashes[name] not in held]

    def arrived(self, site: int, parcel: Parcel) -> None:
        """Note that the site has done what it was asked, so that it holds what it was sent."""
        held = self._held.get(site, {})
        if not held.items() >= parcel.hashes.items():
            self._held[site] = {**held, **parcel.hashes}

    def forget(self, site: int) -> None:
        """Note that the site lacks something that was sent before."""
        self._held.pop(site, None)
