"""When each class reaches each site: with the task that introduces it, or some tasks later."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.data.samples import Dataset
from dynammo_core.data.sites.site_partition import SitePartition
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.support.errors import RunError
from dynammo_core.support.seeding import derive_seed

logger = logging.getLogger("dynammo.data")


@dataclass(frozen=True)
class Arrivals:
    """The tasks with which classes reach each site.

    Attributes:
        stream: the task in which each class first exists anywhere: from then on models have it and tests ask for it.
        delays: tasks by which a class is late, by (site, class); pairs that are not named are on time.
    """

    stream: TaskStream
    delays: Mapping[tuple[int, int], int]

    def new(self, site: int, task: int) -> tuple[int, ...]:
        """Return the classes whose training images become available at a site with a task."""
        return tuple(label for label in self.stream.seen(task) if self.task_of(site, label) == task)

    def seen(self, site: int, task: int) -> tuple[int, ...]:
        """Return the classes whose training images have become available at a site with tasks 0..task."""
        return tuple(label for label in self.stream.seen(task) if self.task_of(site, label) <= task)

    def task_of(self, site: int, label: int) -> int:
        """Return the task with which a class reaches a site.

        Raises:
            ConfigError: the class arrives with no task.
        """
        return self.stream.task_of(label) + self.delays.get((site, label), 0)


def build_arrivals(
    stream: TaskStream, labels: NDArray[np.int64], partition: SitePartition, settings: FederationSettings, seed: int
) -> Arrivals:
    """Draw how late each class reaches each site that holds training images of it.

    A delay is uniform in 0..`max_delay`, or in 0 to the number of tasks left. One site has the class on time: the one
    that holds a training image drawn at random, as a new disease shows where its patients are.

    Args:
        stream: the tasks.
        labels: [N] classes of the training images.
        partition: the training images of each site.
        settings: whether arrival is asynchronous, and the longest delay.
        seed: random seed of the experiment.
    """
    if settings.arrival == "synchronous":
        return Arrivals(stream, MappingProxyType({}))
    owner = np.empty(len(labels), dtype=np.int64)
    for site, held in enumerate(partition.train):
        owner[held] = site
    delays: dict[tuple[int, int], int] = {}
    for task in range(len(stream)):
        for label in stream.classes(task):
            owners = owner[labels == label]
            if not len(owners):
                continue
            rng = np.random.default_rng(derive_seed(seed, "arrival", label))
            punctual = int(rng.choice(owners))
            longest = min(settings.max_delay, len(stream) - 1 - task)
            holders = np.unique(owners)
            drawn = rng.integers(0, longest, len(holders), endpoint=True)
            late = zip(holders.tolist(), drawn.tolist(), strict=True)
            delays |= {(site, label): delay for site, delay in late if delay and site != punctual}
    return Arrivals(stream, MappingProxyType(delays))


def require_images(
    arrivals: Arrivals, dataset: Dataset, partition: SitePartition, *, alone: int, fewest: Sequence[int]
) -> None:
    """Refuse a task that no site could learn, and warn of classes that nobody can.

    Args:
        arrivals: the tasks, and when their classes reach the sites.
        dataset: all images.
        partition: the images of each site.
        alone: number of first tasks that a site learns without exemplars, from new images alone.
        fewest: images of each task below which a site abstains from it.

    Raises:
        RunError: a task has no training images, or every site would abstain from it, as each has too few.
    """
    names, trained, tested = dataset.class_names, dataset.train.labels, dataset.test.labels
    elsewhere = (
        "Put its classes in a task with others (tasks.sizes, tasks.class_order), or leave them out of data.classes"
    )
    for task in range(len(arrivals.stream)):
        classes = arrivals.stream.classes(task)
        where = f"task {task + 1} (classes {', '.join(names[label] for label in classes)})"
        lacking = [label for label in classes if not (trained == label).any()]
        if len(lacking) == len(classes):
            raise RunError(f"{where} has no training images at any site", remedy=elsewhere)
        for label in lacking:
            logger.warning(
                "no site has a training image of %s: nobody learns it, and %d test images of it count as missed",
                *(names[label], int((tested == label).sum())),
            )
        images = [np.isin(trained[held], arrivals.new(site, task)).sum() for site, held in enumerate(partition.train)]
        if task < alone and max(images) < fewest[task]:
            raise RunError(
                f"{where}: no site has {fewest[task]} training images of it, and a site with fewer abstains",
                remedy=f"{elsewhere}; where images are drawn, lower data.validation_per_class or federation.sites, or "
                "raise data.train_per_class",
            )
