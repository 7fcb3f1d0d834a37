"""The exemplars on a site's disk: one sealed file, replaced as a whole, bound to its run and site."""

from __future__ import annotations

import fcntl
import json
import math
import os
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
from dynammo_core.memory.sealed_file import seal, unreadable, unseal
from dynammo_core.support.errors import MemoryStoreError
from dynammo_core.support.files import write_atomically

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

    def subset(self, indices: Tensor | Sequence[int]) -> ReplayMemory:
        """The memory with nothing but the exemplars at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        taken = tuple(self.taken[i] for i in index.tolist())
        return replace(self, samples=self.samples.subset(index), taken=taken)


class MemoryStore:
    """Loads and saves the replay memory of one site in one run."""

    def __init__(self, folder: Path, *, run: str, site: str, key: bytes | None = None) -> None:
        self.path = folder / MEMORY_FILE
        self._owner = {"run": run, "site": site}
        self._key = key

    def load(self) -> ReplayMemory:
        """The memory as last saved; an empty one before the first task.

        Raises:
            MemoryStoreError: the file is damaged, does not fit the key, or belongs to another run or site.
        """
        if not self.path.exists():
            return ReplayMemory(-1, Samples.empty())
        content = unseal(self.path, self._owner, self._key)
        try:
            return _unpack(content)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise unreadable(self.path, ValueError("what it holds is no memory")) from error

    def save(self, memory: ReplayMemory) -> int:
        """Replace the stored memory, readable by its owner alone; returns the bytes written."""
        content = seal(_pack(memory), self._owner, self._key)
        make_private(self.path.parent)
        write_atomically(self.path, content, mode=0o600)
        return len(content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process changes the memory inside: for those who load it, change it and save it."""
        with locked_folder(self.path.parent):
            yield


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, which their owner alone can enter.

    Raises:
        MemoryStoreError: it cannot be made, or is another's.
    """
    try:
        for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise MemoryStoreError(
            f"the memory folder {folder} cannot be made private: {error.strerror}",
            remedy="Permit writing there, or name a folder of this user as memory.folder in site.yaml",
        ) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder against all others that ask for it so; waits until it is free."""
    make_private(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise MemoryStoreError(
                f"the memory folder {folder} cannot be locked: {error.strerror}",
                remedy="Name a folder on a local disk as memory.folder in site.yaml",
            ) from error
        yield
    finally:
        os.close(handle)


def _pack(memory: ReplayMemory) -> bytes:
    notes = {
        "task": memory.task,
        "record_ids": memory.record_ids,
        "taken": [(task, day.isoformat()) for task, day in memory.taken],
        "class_names": memory.class_names,
        "arrived": sorted(memory.arrived.items()),
    }
    tensors = {"images": memory.samples.images.contiguous(), "labels": memory.samples.labels}
    content: bytes = save(tensors, metadata={"notes": json.dumps(notes)})  # one entry: safetensors shuffles several
    return content


def _unpack(content: bytearray) -> ReplayMemory:
    """The tensors share the buffer `content`: safetensors itself would copy it twice."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    notes = json.loads(header["__metadata__"]["notes"])
    images = _tensor(content, start, header["images"], torch.uint8)
    labels = _tensor(content, start, header["labels"], torch.int64)
    if images.ndim != 4 or labels.ndim != 1 or (labels < 0).any():
        raise ValueError("images are Tensor[N, C, S, S], labels Tensor[N] of class indices")
    return ReplayMemory(
        int(notes["task"]),
        Samples(images, labels, tuple(map(str, notes["record_ids"]))),
        tuple(Taken(int(task), date.fromisoformat(day)) for task, day in notes["taken"]),
        tuple(map(str, notes["class_names"])),
        {int(label): int(task) for label, task in notes["arrived"]},
    )


def _tensor(content: bytearray, start: int, entry: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """One tensor of a safetensors file whose data begin at `start`."""
    if entry["dtype"] != {torch.uint8: "U8", torch.int64: "I64"}[dtype]:
        raise ValueError(f"a tensor of {entry['dtype']} is not {dtype}")
    shape, (first, end) = entry["shape"], entry["data_offsets"]
    if math.prod(shape) * dtype.itemsize != end - first:
        raise ValueError(f"{end - first} bytes are no tensor of shape {shape}")
    if first == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=start + first).reshape(shape)
