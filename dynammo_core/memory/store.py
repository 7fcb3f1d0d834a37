"""The exemplars on a site's disk: one file, replaced as a whole, bound to its experiment and site."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from dynammo_core.data.samples import Samples
from dynammo_core.errors import MemoryStoreError
from dynammo_core.files import write_atomically


@dataclass(frozen=True)
class ReplayMemory:
    """Exemplars after some task, each class in order of rank, best first.

    Attributes:
        task: the last task that the memory has taken in; -1 before the first.
        samples: the exemplars.
    """

    task: int
    samples: Samples


class MemoryStore:
    """Loads and saves the replay memory of one site in one experiment."""

    def __init__(self, folder: Path, *, experiment: str, site: int) -> None:
        self.path = folder / "memory.safetensors"
        self._owner = {"experiment": experiment, "site": str(site)}

    def load(self) -> ReplayMemory:
        """The memory as last saved; an empty one before the first task.

        Raises:
            MemoryStoreError: the file is corrupt, or belongs to another experiment or site.
        """
        if not self.path.exists():
            return ReplayMemory(-1, Samples.empty())
        try:
            content = self.path.read_bytes()
            tensors = load(content)
            header_size = int.from_bytes(content[:8], "little")
            notes = json.loads(content[8 : 8 + header_size])["__metadata__"]
            owner = {key: notes[key] for key in self._owner}
            records = tuple(json.loads(notes["record_ids"]))
            memory = ReplayMemory(int(notes["task"]), Samples(tensors["images"], tensors["labels"], records))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise MemoryStoreError(
                f"the replay memory {self.path} cannot be read ({type(error).__name__}: {error})",
                remedy="Restore it from a backup, or delete it to let this site go on without its old exemplars",
            ) from error
        if owner != self._owner:
            raise MemoryStoreError(
                f"the replay memory {self.path} belongs to {owner}, not to {self._owner}",
                remedy="Give each experiment and each site a memory folder of its own",
            )
        return memory

    def save(self, memory: ReplayMemory) -> int:
        """Replace the stored memory, readable by its owner alone; returns the bytes written."""
        notes = self._owner | {"task": str(memory.task), "record_ids": json.dumps(memory.samples.record_ids)}
        tensors = {"images": memory.samples.images.contiguous(), "labels": memory.samples.labels}
        content = save(tensors, metadata=notes)
        write_atomically(self.path, content, mode=0o600)
        return len(content)
