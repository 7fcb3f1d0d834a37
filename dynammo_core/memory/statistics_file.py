"""The statistics that a site estimated once and keeps for a run: sealed as its memory is, and never sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynammo_core.files import write_atomically
from dynammo_core.memory.sealed_file import seal, unreadable, unseal
from dynammo_core.memory.store import make_private

STATISTICS_FILE = "statistics.sealed"


class StatisticsFile:
    """The file of one site in one run."""

    def __init__(self, folder: Path, *, run: str, site: str, key: bytes | None = None) -> None:
        self.path = folder / STATISTICS_FILE
        self._owner = {"run": run, "site": site, "content": "statistics"}
        self._key = key

    def load(self) -> dict[str, Tensor]:
        """The tensors by name; none before they are kept.

        Raises:
            MemoryStoreError: the file is damaged, sealed with another key, or another site's.
        """
        if not self.path.exists():
            return {}
        try:
            tensors: dict[str, Tensor] = load(bytes(unseal(self.path, self._owner, self._key)))
        except SafetensorError as error:
            raise unreadable(self.path, error) from error
        return tensors

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep them, in the place of what was kept."""
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        make_private(self.path.parent)
        write_atomically(self.path, seal(content, self._owner, self._key), mode=0o600)
