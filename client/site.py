"""One site: the images it holds, and the replay memory on its disk. Nothing here is ever sent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Samples, Split
from dynammo_core.experiment import Experiment
from dynammo_core.memory.store import MemoryStore
from dynammo_core.methods.base import Rehearsal
from dynammo_core.seeding import derive_seed


class Site:
    """A simulated site: its share of the data set, and a folder of its own."""

    def __init__(self, experiment: Experiment, index: int, workspace: Path) -> None:
        self.experiment = experiment
        self.index = index
        self.memory = MemoryStore(
            workspace / f"site-{index:03d}", experiment=experiment.config.content_hash, site=index
        )

    def rehearsal(self, task: int) -> Rehearsal:
        """All that this site may train on in a task."""
        config = self.experiment.config
        return Rehearsal(
            task=task,
            new=self.new_images(task),
            seen=self.train_images(self.experiment.arrivals.seen(self.index, task)),
            memory=self.memory.load().samples,
            settings=config.memory,
            sites=config.federation.sites,
            seed=derive_seed(config.seed, "site", self.index),
        )

    def new_images(self, task: int) -> Samples:
        """The site's training images of the classes that reach it with a task."""
        return self.train_images(self.experiment.arrivals.new(self.index, task))

    def train_images(self, classes: tuple[int, ...]) -> Samples:
        """The site's training images of these classes."""
        return _load(self.experiment, self.index, "train", classes)

    def test_images(self, classes: tuple[int, ...]) -> Samples:
        """The site's test images of these classes."""
        return _load(self.experiment, self.index, "test", classes)


@lru_cache(maxsize=64)
def _load(experiment: Experiment, site: int, part: str, classes: tuple[int, ...]) -> Samples:
    """Decoded once for all steps of a task that this process answers."""
    split: Split = getattr(experiment.dataset, part)
    held: NDArray[np.int64] = getattr(experiment.partition, part)[site]
    wanted = held[np.isin(split.labels[held], classes)]
    return load_samples(split, wanted, experiment.config.data.image_size)
