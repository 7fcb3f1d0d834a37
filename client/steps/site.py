"""One site: the images it holds, and the replay memory on its disk. Nothing here is ever sent."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.state.answer_ledger import AnswerLedger
from client.state.feature_files import FeatureFiles
from client.state.privacy_budget import PrivacyBudget
from client.state.secure_ledger import OpenedSums
from client.state.statistics_file import StatisticsFile
from client.state.sums_note import SumsNote
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.data.arrivals import Arrivals
from dynammo_core.data.feature_cache import fingerprint
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Samples, Split
from dynammo_core.data.scanners import through_scanner
from dynammo_core.experiment import Experiment, code_hash
from dynammo_core.memory.rehearsal import SIMULATED_DAY, drop_expired, exemplars_per_class
from dynammo_core.memory.store import MemoryStore, ReplayMemory
from dynammo_core.methods.base import Rehearsal
from dynammo_core.support.errors import DataError, MemoryStoreError
from dynammo_core.support.seeding import derive_seed
from dynammo_core.wire.secure_aggregation.offers import Signatory
from dynammo_core.wire.tensor_store import TensorStore

Held = TypeVar("Held", Samples, ReplayMemory)
MEGABYTE = 10**6


@dataclass(frozen=True)
class Site:
    """What a step may use of a site.

    Attributes:
        experiment: with the site's own data, weights and device in it.
        index: its number among the sites of the experiment.
        store: where its exemplars lie.
        received: the tensors that it was sent; in a simulation all sites share them, as they share the data set.
        statistics: of its own, estimated once.
        share: the number of its part of a simulation's data set; None where all images are its own.
        today: the day that exemplars are taken in.
        ledger: the records that it may use no more.
        expiry_days: age in days beyond which exemplars are dropped.
        fewest_images: a class of which it holds fewer training (test) images takes no part.
        sums: its note of what it sent into sums that the server keeps; None where nothing can be withdrawn.
        budget: of privacy, for all runs here together; None where nobody is protected, as in a simulation.
        features: that it computed, on its disk; None where its process lives on from step to step.
        answers: that it has given in this run; None in a simulation, where nobody is to be kept from asking twice.
        opened_sums: what it opened under secure aggregation in all runs of this experiment; None in a simulation.
        signatory: signs its keys for secure aggregation and verifies those of others; None in a simulation.
    """

    experiment: Experiment
    index: int
    store: MemoryStore
    received: TensorStore
    statistics: StatisticsFile
    share: int | None = None
    today: date = SIMULATED_DAY
    ledger: WithdrawalLedger | None = None
    expiry_days: int | None = None
    fewest_images: int = 1
    sums: SumsNote | None = None
    features: FeatureFiles | None = None
    answers: AnswerLedger | None = None
    opened_sums: OpenedSums | None = None
    signatory: Signatory | None = None
    budget: PrivacyBudget | None = None

    def once(self, what: tuple[str, ...], samples: Samples, compute: Callable[[], Tensor]) -> Tensor:
        """What is made of images, kept for the steps to come; equal words `what` mean that equal things are made.

        Images are told apart by their pixels: a record may have several, at several sites, or in training and tests.
        """
        experiment, features = self.experiment, self.features

        def on_disk() -> Tensor:
            assert features is not None
            words = (code_hash(), experiment.backbone_fingerprint, *what)
            return features.get(words, samples, compute).to(experiment.device)

        key = (*what, samples.images.shape, fingerprint({"images": samples.images}))
        return experiment.feature_cache.get(key, compute if features is None else on_disk)

    def memory(self) -> ReplayMemory:
        """The exemplars that may still be used: without those that expired or whose consent was withdrawn.

        Nor those of a class of which that leaves too few.
        """
        memory = self.store.load()
        if self.expiry_days is not None:
            memory = drop_expired(memory, self.today, self.expiry_days)
        memory = self._allowed(memory)
        fewest = 1 if self.experiment.protects_images else self.fewest_exemplars
        kept = _without_rare(memory.samples.labels, fewest)
        return memory if kept is None else memory.subset(kept)

    @property
    def fewest_exemplars(self) -> int:
        """`fewest_images`, or the share that the experiment's memory leaves to a class, where that is smaller.

        A share tells nothing of patients: it follows from the configuration.
        """
        config, pixels = self.experiment.config, self.experiment.config.data.image_size**2
        classes, sites = self.experiment.classes, config.federation.sites
        share = exemplars_per_class(config.memory, sites=sites, classes=classes, image_bytes=3 * pixels)
        return min(self.fewest_images, share)

    def memory_to_extend(self, task: int) -> ReplayMemory:
        """The exemplars that may still be used, into which a task is to be taken if it is not in them yet.

        Raises:
            MemoryStoreError: they come from later tasks than this one.
        """
        memory = self.memory()
        if memory.task > task:
            raise MemoryStoreError(
                f"the replay memory stands after task {memory.task + 1}, but task {task + 1} is to be remembered",
                remedy="Resume the run that this memory belongs to, or give the new run a memory folder of its own",
            )
        return memory

    def rehearsal(self, task: int) -> Rehearsal:
        """All that this site may train on in a task."""
        config = self.experiment.config
        arrivals = self._arrivals(task)
        return Rehearsal(
            task=task,
            new=self.train_images(arrivals.new(self.index, task)),
            seen=self.train_images(arrivals.seen(self.index, task)),
            memory=self.memory().samples,
            settings=config.memory,
            sites=config.federation.sites,
            seed=derive_seed(config.seed, "site", self.index),
        )

    def new_images(self, task: int) -> Samples:
        """The site's training images of the classes that reach it with a task."""
        return self.train_images(self._arrivals(task).new(self.index, task))

    def test_images(self, classes: tuple[int, ...]) -> Samples:
        """The site's test images of these classes."""
        return self._common(self._allowed(_load(self.experiment, "test", classes, self.share)))

    def train_images(self, classes: tuple[int, ...]) -> Samples:
        """The site's training images of these classes."""
        samples = self._allowed(_load(self.experiment, "train", classes, self.share))
        # Under privacy counts are noised, and no image may decide whether others take part.
        return samples if self.experiment.protects_images else self._common(samples)

    def images_of(self, record_ids: Collection[str]) -> Samples:
        """All training images of these records that can be read, withdrawn ones too: to take them out of sums."""
        split, size = self.experiment.dataset.train, self.experiment.config.data.image_size
        parts = []
        for place, record in enumerate(split.record_ids):
            if record in record_ids:
                with suppress(DataError):
                    parts.append(load_samples(split, [place], size))
        return Samples.concatenate(parts)

    def _allowed(self, held: Held) -> Held:
        return held if self.ledger is None else self.ledger.allowed(held)

    def _common(self, samples: Samples) -> Samples:
        """Without the classes of which there are too few."""
        kept = _without_rare(samples.labels, self.fewest_images)
        return samples if kept is None else samples.subset(kept)

    def _arrivals(self, task: int) -> Arrivals:
        """When classes reach this site, as known in a task.

        A simulation knows it beforehand. A hospital lives it: a class whose images it has not taken into its memory yet
        is new to it, be it that the images came late or that the site was away when the others learnt the class. With
        no memory to tell, classes come with their tasks.
        """
        if self.share is not None:
            return self.experiment.arrivals
        stream = self.experiment.stream
        if not self.experiment.method.uses_memory or self.experiment.protects_images:
            # Under privacy whether a class is new must not depend on whether there are images of it.
            return Arrivals(stream, {})
        arrived = self.store.load().arrived
        delays = {(self.index, label): arrived.get(label, task) - stream.task_of(label) for label in stream.seen(task)}
        return Arrivals(stream, delays)


def _without_rare(labels: Tensor, fewest: int) -> list[int] | None:
    """Places, in [N] labels, of the classes that have at least `fewest`; None where that is all."""
    enough = torch.bincount(labels)[labels] >= fewest
    return None if bool(enough.all()) else torch.nonzero(enough).flatten().tolist()


@lru_cache(maxsize=64)
def _load(experiment: Experiment, part: str, classes: tuple[int, ...], share: int | None) -> Samples:
    """Decoded once for all steps of a task that this process answers; of all images, or of a simulated share.

    A simulated site sees its share through its own scanner.
    """
    split: Split = getattr(experiment.dataset, part)
    held: NDArray[np.int64] = np.arange(len(split.labels))
    if share is not None:
        held = getattr(experiment.partition, part)[share]
    config = experiment.config
    samples = load_samples(split, held[np.isin(split.labels[held], classes)], config.data.image_size)
    return samples if share is None else through_scanner(samples, config.scanners, seed=config.seed, site=share)
