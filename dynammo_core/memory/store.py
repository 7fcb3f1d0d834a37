"""The exemplars on a site's disk: one sealed file, replaced as a whole, bound to its run and site."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.memory.sealed_file import SealedFile

MEMORY_FILE = "memory.safetensors"


class Taken(NamedTuple):
    """When an exemplar came into the memory: with which task, and on which day."""

    task: int
    day: date


@dataclass(frozen=True)
class ReplayMemory:
    """Exemplars after some task, each class in order of rank, best first.

    Attributes:
        task: the last task that the memory has taken in; -1 before the first.
        samples: N exemplars.
        taken: N times when they were taken in.
        class_names: of all classes by index, for those who look at the memory; may be empty.
        arrived: the task with which each class came to the site, by class.
    """

    task: int
    samples: Samples
    taken: tuple[Taken, ...] = ()
    class_names: tuple[str, ...] = ()
    arrived: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.taken):
            raise ValueError(f"{len(self.samples)} exemplars were taken in at {len(self.taken)} times")

    @property
    def record_ids(self) -> tuple[str, ...]:
        """N identifiers of the records that the exemplars come from."""
        return self.samples.record_ids

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """N identifiers of the patients that the exemplars show."""
        return self.samples.patient_ids

    def subset(self, indices: Tensor | Sequence[int]) -> ReplayMemory:
        """Return the memory with nothing but the exemplars at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        taken = tuple(self.taken[i] for i in index.tolist())
        return replace(self, samples=self.samples.subset(index), taken=taken)


class MemoryStore:
    """Loads and saves the replay memory of one site in one run."""

    def __init__(self, folder: Path, *, run: str, site: str, key: bytes | None = None) -> None:
        self._file = SealedFile(folder / MEMORY_FILE, {"run": run, "site": site}, key)

    @property
    def path(self) -> Path:
        """Where the file lies, or will lie."""
        return self._file.path

    def load(self) -> ReplayMemory:
        """Return the memory as last saved; an empty one before the first task.

        Raises:
            MemoryStoreError: the file is damaged, does not fit the key, or belongs to another run or site.
        """
        memory = self._file.read_as("memory", _unpacked_memory)
        return ReplayMemory(-1, Samples.empty()) if memory is None else memory

    def save(self, memory: ReplayMemory) -> int:
        """Replace the stored memory, readable by its owner alone; return the bytes written."""
        return self._file.write(_packed_memory(memory))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the memory inside: for those who load it, change it and save it."""
        with locked_folder(self.path.parent):
            yield


def _packed_memory(memory: ReplayMemory) -> bytes:
    notes = {
        "task": memory.task,
        "record_ids": memory.record_ids,
        "taken": [(task, day.isoformat()) for task, day in memory.taken],
        "class_names": memory.class_names,
        "arrived": sorted(memory.arrived.items()),
    }
    if memory.samples.patients:
        notes["patients"] = memory.samples.patients
    tensors = {"images": memory.samples.images[:].contiguous(), "labels": memory.samples.labels}
    content: bytes = save(tensors, metadata={"notes": json.dumps(notes)})  # one entry: safetensors shuffles several
    return content


def _unpacked_memory(content: bytearray) -> ReplayMemory:
    """Read a memory whose tensors share the buffer `content`: safetensors itself would copy it twice."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    notes = json.loads(header["__metadata__"]["notes"])
    images = _tensor(content, start, header["images"], torch.uint8)
    labels = _tensor(content, start, header["labels"], torch.int64)
    if images.ndim != 4 or labels.ndim != 1 or (labels < 0).any():
        raise ValueError("images are Tensor[N, C, S, S], labels Tensor[N] of class indices")
    return ReplayMemory(
        int(notes["task"]),
        Samples(images, labels, *(tuple(map(str, notes.get(name, ()))) for name in ("record_ids", "patients"))),
        tuple(Taken(int(task), date.fromisoformat(day)) for task, day in notes["taken"]),
        tuple(map(str, notes["class_names"])),
        {int(label): int(task) for label, task in notes["arrived"]},
    )


def _tensor(content: bytearray, start: int, entry: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Return one tensor of a safetensors file whose data begin at `start`."""
    if entry["dtype"] != {torch.uint8: "U8", torch.int64: "I64"}[dtype]:
        raise ValueError(f"a tensor of {entry['dtype']} is not {dtype}")
    shape, (first, end) = entry["shape"], entry["data_offsets"]
    if math.prod(shape) * dtype.itemsize != end - first:
        raise ValueError(f"{end - first} bytes are no tensor of shape {shape}")
    if first == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=start + first).reshape(shape)
