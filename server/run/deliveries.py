"""Track which tensors each site already has, and so which ones have to be sent."""

from __future__ import annotations

from collections.abc import Mapping

from dynammo_core.wire.envelope import Parcel


class Deliveries:
    """The hash last sent to each site under each name, recorded once the site has answered.

    It starts empty, so a restarted server sends everything once. A site that lacks a tensor, because its disk was
    wiped, says so and is sent everything.
    """

    def __init__(self) -> None:
        self._held: dict[int, Mapping[str, str]] = {}

    def lacking(self, site: int, parcel: Parcel) -> list[str]:
        """Return the names of the tensors that have to be sent to a site."""
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
