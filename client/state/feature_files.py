"""Features on a site's disk: a real site answers each message in a new process, which would compute them again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.memory.sealed_file import seal, unseal
from dynammo_core.memory.store import make_private
from dynammo_core.support.errors import DynammoError, MemoryStoreError
from dynammo_core.support.files import write_atomically

FOLDER = "features"
UNUSED_SECONDS = 24 * 60 * 60
LAYOUTS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"rows": torch.contiguous_format, "channels_last": torch.channels_last}
)
"""Kept, since the last bits of what a convolution makes of maps may depend on it."""
logger = logging.getLogger("dynammo.feature_files")


class FeatureFiles:
    """A file for each tensor that was computed from images, sealed as the memory is: those used last, within a budget.

    They hold nothing that could not be computed again: a file that is lost or damaged is none, and one that cannot be
    written costs time, not the step.

    Args:
        runs: folder of the site's runs, with a folder for each of them.
        budget: bytes that the files of all runs may take.
        run: whose features they are.
        site: whose images they were made of.
        key: encrypts them.
    """

    def __init__(self, runs: Path, budget: int, *, run: str, site: str, key: bytes | None = None) -> None:
        self._runs = runs
        self._folder = runs / run / FOLDER
        self._budget = budget
        self._owner = {"run": run, "site": site, "content": "features"}
        self._key = key

    def get(self, what: Sequence[str], samples: Samples, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor that was made of these images, pixel by pixel, or of others like them.

        Args:
            what: says how, so that equal words mean equal tensors.
            samples: of which images.
            compute: makes it, when it is not held.

        Returns:
            The tensor, on the CPU when it was held.
        """
        digest = hashlib.sha256(json.dumps([*what, list(samples.images.shape)]).encode())
        digest.update(samples.images.contiguous().numpy().data)
        name = digest.hexdigest()
        held = self._read(name)
        if held is None:
            held = compute()
            self._write(name, held)
        return held

    def _read(self, name: str) -> Tensor | None:
        path = self._path(name)
        if not path.exists():
            return None
        try:
            held: dict[str, Tensor] = load(bytes(unseal(path, {**self._owner, "name": name}, self._key)))
            os.utime(path)
        except (MemoryStoreError, SafetensorError, OSError) as error:
            logger.warning("features are computed again: %s", error)
            return None
        ((layout, tensor),) = held.items()
        return tensor.contiguous(memory_format=LAYOUTS[layout])

    def _write(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu()
        layout = next((name for name, one in LAYOUTS.items() if tensor.is_contiguous(memory_format=one)), "rows")
        content = save({layout: tensor.contiguous()})
        sealed = seal(content, {**self._owner, "name": name}, self._key)
        fits = len(sealed) <= self._budget
        try:
            self._make_room(len(sealed) if fits else 0)
            if fits:
                make_private(self._folder)
                write_atomically(self._path(name), sealed, mode=0o600)
        except (DynammoError, OSError) as error:
            logger.warning("features are not kept: %s", error)

    def _make_room(self, wanted: int) -> None:
        """Delete those unused for longest, and those unused for a day, so that none outlives its images by much.

        Files that a process which was killed left half-written are among them.
        """
        stats = [(path.stat(), path) for path in self._runs.glob(f"*/{FOLDER}/*")]
        files = sorted((stat.st_mtime, stat.st_size, path) for stat, path in stats)
        taken = sum(size for _, size, _ in files)
        for used, size, path in files:
            if taken + wanted > self._budget or time.time() - used > UNUSED_SECONDS:
                path.unlink(missing_ok=True)
                taken -= size

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.sealed"


def discard_features(runs: Path) -> None:
    """Delete the features of all runs in a site's folder of runs: withdrawn records may be among them.

    The folders stay: a step may be keeping others in them.

    Raises:
        MemoryStoreError: some cannot be deleted.
    """
    for path in runs.glob(f"*/{FOLDER}/*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MemoryStoreError(
                f"the features {path} cannot be deleted: {error.strerror}", remedy="Delete the file by hand"
            ) from error
