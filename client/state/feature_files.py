"""Cache features on a site's disk, since a real site answers each message in a new process."""

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
from safetensors.torch import save
from torch import Tensor

from dynammo_core.data.decoded.stored_images import add_pixels
from dynammo_core.data.samples import Samples
from dynammo_core.memory.private_files import discard, write_private
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import DynammoError, MemoryStoreError

FOLDER = "features"
UNUSED_SECONDS = 24 * 60 * 60
LAYOUTS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"rows": torch.contiguous_format, "channels_last": torch.channels_last}
)
"""Kept, since the last bits of what a convolution makes of maps may depend on it."""
logger = logging.getLogger("dynammo.feature_files")


class FeatureFiles:
    """A file for each tensor that was computed from images, sealed as the memory is: those used last, within a budget.

    They hold nothing that could not be computed again: a lost or damaged file is computed anew, and one that cannot be
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
        """Return the tensor that is computed from these images; from the disk, if equal pixels were seen before.

        Args:
            what: how it is computed: equal words mean equal tensors.
            samples: the images.
            compute: computes it, if it is not on the disk.

        Returns:
            The tensor; on the CPU, if it was on the disk.
        """
        digest = hashlib.sha256(json.dumps([*what, list(samples.images.shape)]).encode())
        add_pixels(digest, samples.images)
        name = digest.hexdigest()
        tensor = self._read(name)
        if tensor is None:
            tensor = compute()
            self._write(name, tensor)
        return tensor

    def _read(self, name: str) -> Tensor | None:
        file = self._file(name)
        try:
            tensors = file.read_tensors()
            if not tensors:
                return None
            os.utime(file.path)
        except (MemoryStoreError, OSError) as error:
            logger.warning("cached features cannot be used and are computed again: %s", error)
            return None
        ((layout, tensor),) = tensors.items()
        return tensor.contiguous(memory_format=LAYOUTS[layout])

    def _write(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu()
        layout = next((name for name, one in LAYOUTS.items() if tensor.is_contiguous(memory_format=one)), "rows")
        file = self._file(name)
        sealed = file.sealed(save({layout: tensor.contiguous()}))
        fits = len(sealed) <= self._budget
        try:
            self._make_room(len(sealed) if fits else 0)
            if fits:
                write_private(file.path, sealed)
        except (DynammoError, OSError) as error:
            logger.warning("features cannot be cached and are computed whenever they are needed: %s", error)

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

    def _file(self, name: str) -> SealedFile:
        return SealedFile(self._folder / f"{name}.sealed", {**self._owner, "name": name}, self._key)


def discard_features(runs: Path) -> None:
    """Delete the features of all runs in a site's folder of runs: withdrawn records may be among them.

    The folders stay: a step may be keeping others in them.

    Raises:
        MemoryStoreError: some cannot be deleted.
    """
    discard(runs.glob(f"*/{FOLDER}/*"), "features")
