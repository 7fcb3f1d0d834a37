"""Keep what a site has of its own for a run, statistics or a head: sealed like its memory, and never sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dynammo_core.memory.sealed_file import SealedFile, read_header
from dynammo_core.support.errors import MemoryStoreError

STATISTICS_FILE = "statistics.sealed"
TESTED_FILE = "tested/task-{:02d}.sealed"
TESTED = "tested statistics"
HEAD_FILE = "heads/task-{:02d}.sealed"
HEAD = "own head"
HELD = "held"
"""Name, beside a head's tensors, of the classes that it was made of, Tensor[K] int64."""
PLACES = {TESTED: TESTED_FILE, HEAD: HEAD_FILE}


class StatisticsFile:
    """The file of one site in one run, estimated once; beside it what the site tested each task's model with."""

    def __init__(self, folder: Path, *, run: str, site: str, key: bytes | None = None) -> None:
        self._owner = {"run": run, "site": site, "content": "statistics"}
        self._key = key
        self.path = folder / STATISTICS_FILE
        self._file = SealedFile(self.path, self._owner, key)

    def load(self) -> dict[str, Tensor]:
        """Return the tensors by name; an empty mapping before they are kept.

        Raises:
            MemoryStoreError: the file is damaged, sealed with another key, or belongs to another site.
        """
        return self._file.read_tensors()

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these tensors in the place of those that were kept."""
        self._file.write_tensors(tensors)

    def save_tested(self, tensors: Mapping[str, Tensor], *, task: int, model: str, content: str = TESTED) -> None:
        """Keep what a model was tested with after a task, for its use later.

        Args:
            tensors: by name.
            task: counted from 0.
            model: SHA-256 of the model as it was received, in hex.
            content: `TESTED` for statistics, `HEAD` for a head.
        """
        path = self.path.parent / PLACES[content].format(task + 1)
        SealedFile(path, {**self._owner, "content": content, "model": model}, self._key).write_tensors(tensors)

    def has_tested(self, task: int, content: str) -> bool:
        """Tell whether what the model of a task was tested with is still kept."""
        return (self.path.parent / PLACES[content].format(task + 1)).exists()


def own_tensors_for_model(
    folder: Path, *, task: int, model: str, site: str, key: bytes | None, content: str = TESTED
) -> dict[str, Tensor]:
    """Return what this site tested a model with, in whichever of its runs.

    Args:
        folder: of the site's runs, with a folder for each of them.
        task: the model's last one, counted from 0.
        model: SHA-256 of the model as sites received it, in hex.
        site: name of the site.
        key: of its memory.
        content: `TESTED` for statistics, `HEAD` for a head.

    Raises:
        MemoryStoreError: it keeps none for this model, or the file is damaged, sealed with another key, or
            belongs to another site.
    """
    paths = sorted(folder.glob(f"*/{PLACES[content].format(task + 1)}"))
    damaged: MemoryStoreError | None = None
    for path in paths:
        try:
            owner = read_header(path).owner
        except MemoryStoreError as error:  # perhaps of another model, which is no obstacle to this one
            damaged = error
            continue
        if owner.get("model") == model:
            return SealedFile(path, {**owner, "site": site, "content": content}, key).read_tensors()
    if damaged is not None:
        raise damaged
    what = "head" if content == HEAD else "statistics"
    others = f"; it keeps those of {', '.join(path.parent.parent.name for path in paths)}" if paths else ""
    raise MemoryStoreError(
        f"{folder} does not hold the {what} with which {site} tested this model after its task {task + 1}{others}",
        accepted="a model that this site tested, unchanged: the same run, task, weights and backbone",
        remedy="Leave out --site, and what all sites share answers; the site keeps its own when it tests this model"
        " next, as `dynammo-server evaluate` asks it to",
    )


def discard_heads(folder: Path) -> None:
    """Delete the heads of a site's own in all its runs."""
    for path in folder.glob(f"*/{HEAD_FILE.replace('{:02d}', '*')}"):
        path.unlink(missing_ok=True)
