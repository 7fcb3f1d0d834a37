"""What each site holds of the tensors that it was sent, as far as the server can know, and so what has to travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord
from torch import Tensor

from dynammo_core.wire.compression import pack
from dynammo_core.wire.compression.base import Codec
from dynammo_core.wire.protocol import tensor_bytes
from dynammo_core.wire.tensor_store import tensor_hash


@dataclass(frozen=True)
class Parcel:
    """The tensors of an instruction, encoded and serialised once, however many sites receive them.

    Attributes:
        hashes: of each tensor, by name.
        arrays: each tensor in Flower's form.
        sizes: bytes of each.
    """

    hashes: Mapping[str, str]
    arrays: Mapping[str, Array]
    sizes: Mapping[str, int]

    @staticmethod
    def of(weights: Mapping[str, Tensor], codec: Codec) -> Parcel:
        """The parcel of an instruction's tensors."""
        packed = pack(codec.downwards, weights, {})
        return Parcel(
            {name: tensor_hash(tensor) for name, tensor in packed.items()},
            {name: Array(tensor.detach().cpu().contiguous().numpy()) for name, tensor in packed.items()},
            {name: tensor_bytes({name: tensor}) for name, tensor in packed.items()},
        )

    def records(self, names: list[str]) -> dict[str, ArrayRecord | ConfigRecord]:
        """What of it goes into a message: the tensors of these names, and the hashes of all."""
        chosen = ArrayRecord({name: self.arrays[name] for name in names})
        return {"weights": chosen, "tensors": ConfigRecord(dict(self.hashes))}


class Deliveries:
    """The hash last sent to each site under each name: what a site holds that has answered well to it.

    It starts with nothing, so a server that starts anew sends everything once. Where a site holds less than is
    believed here, as one whose disk was wiped, it says so and is sent everything.
    """

    def __init__(self) -> None:
        self._held: dict[int, Mapping[str, str]] = {}

    def lacking(self, site: int, parcel: Parcel) -> list[str]:
        """Names of the tensors that have to travel to a site."""
        held = set(self._held.get(site, {}).values())
        return [name for name in parcel.arrays if parcel.hashes[name] not in held]

    def arrived(self, site: int, parcel: Parcel) -> None:
        """The site has done what it was asked, so it holds what it was sent."""
        held = self._held.get(site, {})
        if not held.items() >= parcel.hashes.items():
            self._held[site] = {**held, **parcel.hashes}

    def forget(self, site: int) -> None:
        """The site lacks something that was sent before."""
        self._held.pop(site, None)
