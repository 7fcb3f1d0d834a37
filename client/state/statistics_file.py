"""The batch-norm statistics of a site's own that it keeps of a run: sealed as its memory is, and never sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynammo_core.memory.sealed_file import read_header, seal, unreadable, unseal
from dynammo_core.memory.store import make_private
from dynammo_core.support.errors import MemoryStoreError
from dynammo_core.support.files import write_atomically

STATISTICS_FILE = "statistics.sealed"
TESTED_FILE = "tested/task-{:02d}.sealed"
TESTED = "tested statistics"


class StatisticsFile:
    """The file of one site in one run, estimated once; beside it those that each task's model was tested with."""

    def __init__(self, folder: Path, *, run: str, site: str, key: bytes | None = None) -> None:
        self.path = folder / STATISTICS_FILE
        self._owner = {"run": run, "site": site, "content": "statistics"}
        self._key = key

    def load(self) -> dict[str, Tensor]:
        """The tensors by name; none before they are kept.

        Raises:
            MemoryStoreError: the file is damaged, sealed with another key, or another site's.
        """
        return _read(self.path, self._owner, self._key) if self.path.exists() else {}

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep them, in the place of what was kept."""
        _write(self.path, tensors, self._owner, self._key)

    def save_tested(self, tensors: Mapping[str, Tensor], *, task: int, model: str) -> None:
        """Keep those that a model was tested with after a task, for its use later.

        Args:
            tensors: by name.
            task: counted from 0.
            model: SHA-256 of the model as it was received, in hex.
        """
        path = self.path.parent / TESTED_FILE.format(task + 1)
        _write(path, tensors, {**self._owner, "content": TESTED, "model": model}, self._key)


def statistics_for_model(folder: Path, *, task: int, model: str, site: str, key: bytes | None) -> dict[str, Tensor]:
    """The statistics that this site tested a model with, in whichever of its runs.

    Args:
        folder: of the site's runs, with a folder for each of them.
        task: the model's last one, counted from 0.
        model: SHA-256 of the model as sites received it, in hex.
        site: name of the site.
        key: of its memory.

    Raises:
        MemoryStoreError: it keeps none of this model, or the file is damaged, sealed with another key, or another
            site's.
    """
    paths = sorted(folder.glob(f"*/{TESTED_FILE.format(task + 1)}"))
    damaged: MemoryStoreError | None = None
    for path in paths:
        try:
            owner = read_header(path).owner
        except MemoryStoreError as error:  # perhaps of another model, which is no obstacle to this one
            damaged = error
            continue
        if owner.get("model") == model:
            return _read(path, {**owner, "site": site, "content": TESTED}, key)
    if damaged is not None:
        raise damaged
    others = f"; it keeps those of {', '.join(path.parent.parent.name for path in paths)}" if paths else ""
    raise MemoryStoreError(
        f"{folder} holds no statistics with which {site} tested this very model, after its task {task + 1}{others}",
        accepted="a model that this site tested, as its run left it: the same run, task, weights and backbone",
    )


def _read(path: Path, owner: Mapping[str, str], key: bytes | None) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load(bytes(unseal(path, owner, key)))
    except SafetensorError as error:
        raise unreadable(path, error) from error
    return tensors


def _write(path: Path, tensors: Mapping[str, Tensor], owner: Mapping[str, str], key: bytes | None) -> None:
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    make_private(path.parent)
    write_atomically(path, seal(content, owner, key), mode=0o600)
