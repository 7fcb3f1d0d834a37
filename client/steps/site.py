"""One site: the images it holds, and the replay memory on its disk. Nothing here is ever sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.consent.fewest import ANYTHING, Fewest
from client.state.answer_ledger import AnswerLedger
from client.state.feature_files import FeatureFiles
from client.state.known_images import TrainedImages
from client.state.privacy_budget import PrivacyBudget
from client.state.secure_ledger import OpenedSums
from client.state.statistics_file import StatisticsFile
from client.state.sums_note import Contributions, SumsNote
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.code_identity import code_hash
from dynammo_core.data.decoded.image_cache import ImageCache
from dynammo_core.data.feature_cache import RecentlyUsed
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Dataset, Samples, Split
from dynammo_core.data.sites.arrivals import Arrivals
from dynammo_core.data.sites.scanners import through_scanner
from dynammo_core.data.sources import resolve_selection
from dynammo_core.experiment import Experiment
from dynammo_core.memory.rehearsal import SIMULATED_DAY, drop_expired, share_of
from dynammo_core.memory.store import MemoryStore, ReplayMemory
from dynammo_core.methods.rehearsal import Rehearsal
from dynammo_core.privacy.noise import Noise, SeededNoise, SystemNoise
from dynammo_core.support.errors import DataError, MemoryStoreError
from dynammo_core.support.seeding import derive_seed
from dynammo_core.wire.secure_aggregation.offers import Signatory
from dynammo_core.wire.tensor_store import TensorStore

DECODED_BYTES = 10**9
"""Bytes of decoded images that stay in memory from step to step; larger sets stay on disk."""
_recently_decoded = RecentlyUsed[Samples](DECODED_BYTES)


@dataclass(frozen=True)
class Site:
    """What a step may use of a site.

    Attributes:
        experiment: with the site's own data, weights and device in it.
        index: its number among the sites of the experiment.
        store: where its exemplars lie.
        received: the tensors that it was sent; in a simulation all sites share them, as they share the data set.
        statistics: its own batch-norm statistics, estimated once.
        today: the day that exemplars are taken in.
        ledger: the records that it may use no more.
        trained: the images that it has ever trained on, which it never tests on; None in a simulation, whose data set
            does not change.
        expiry_days: age in days beyond which exemplars are dropped.
        fewest: a class of which it holds less for training (for testing) takes no part.
        sums: its note of what it sent into sums that the server keeps; None if nothing can be withdrawn.
        budget: the privacy budget of all runs here together; None in a simulation, where nobody is protected.
        images: its decoded images, on its disk; None keeps none.
        features: what it computed from images, on its disk; None if its process lives on from step to step.
        answers: what it has answered in this run; None in a simulation, where asking twice does no harm.
        opened_sums: what it opened under secure aggregation in all runs of this experiment; None in a simulation.
        signatory: signs its keys for secure aggregation and verifies those of others; None in a simulation.
    """

    experiment: Experiment
    index: int
    store: MemoryStore
    received: TensorStore
    statistics: StatisticsFile
    today: date = SIMULATED_DAY
    ledger: WithdrawalLedger | None = None
    trained: TrainedImages | None = None
    expiry_days: int | None = None
    fewest: Fewest = ANYTHING
    sums: SumsNote | None = None
    images: ImageCache | None = None
    features: FeatureFiles | None = None
    answers: AnswerLedger | None = None
    opened_sums: OpenedSums | None = None
    signatory: Signatory | None = None
    budget: PrivacyBudget | None = None

    def once(self, what: tuple[str, ...], samples: Samples, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed from images, kept for the steps to come; equal `what` means an equal computation.

        First of it comes the name of the network. Images are told apart by their pixels: a record may have several, at
        several sites, or in training and tests.
        """
        experiment, features = self.experiment, self.features

        def on_disk() -> Tensor:
            assert features is not None
            recipe = (code_hash(experiment.config), experiment.networks.fingerprint(what[0]), *what)
            return features.get(recipe, samples, compute).to(experiment.device)

        key = (*what, samples.pixels_digest)
        return experiment.feature_cache.get(key, compute if features is None else on_disk)

    def memory(self) -> ReplayMemory:
        """Return the exemplars that may still be used.

        Those that expired, those whose consent was withdrawn, and classes of which too few are left are not among them.
        """
        memory = self.store.load()
        if self.expiry_days is not None:
            memory = drop_expired(memory, self.today, self.expiry_days)
        memory = memory if self.ledger is None else self.ledger.allowed(memory)
        kept = None if self.experiment.protects_images else _without_rare(memory.samples, self.fewest_exemplars)
        return memory if kept is None else memory.subset(kept)

    @property
    def fewest_exemplars(self) -> Fewest:
        """Return `fewest`, or the share of the memory that a class has in this experiment, if that is smaller.

        A share tells nothing about patients: it follows from the configuration.
        """
        config, pixels = self.experiment.config, self.experiment.config.data.image_size**2
        classes, sites = self.experiment.classes, config.federation.sites
        share = share_of(config.memory, site=self.index, sites=sites, classes=classes, image_bytes=3 * pixels)
        return self.fewest.at_most(share.each)

    def memory_to_extend(self, task: int) -> ReplayMemory:
        """Return the exemplars that may still be used, so that a task can be added if it is not in them yet.

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
        """Return all that this site may train on in a task."""
        config = self.experiment.config
        arrivals = self._arrivals(task)
        new, seen = arrivals.new(self.index, task), arrivals.seen(self.index, task)
        images = self.train_images(new)
        return Rehearsal(
            task=task,
            new=images,
            seen=images if seen == new else self.train_images(seen),
            memory=self.memory().samples,
            settings=config.memory,
            sites=config.federation.sites,
            seed=derive_seed(config.seed, "site", self.index),
            site=self.index,
            learnt=len(self.experiment.stream.seen(task - 1)),
            fewest_patients=self.fewest.patients,
            fewest_images=self.fewest.images,
        )

    def new_images(self, task: int) -> Samples:
        """Return the site's training images of the classes that reach it with a task."""
        return self.train_images(self._arrivals(task).new(self.index, task))

    def test_images(self, classes: tuple[int, ...]) -> Samples:
        """Return the site's test images of these classes."""
        return self._common(self._load("test", classes))

    def train_images(self, classes: tuple[int, ...]) -> Samples:
        """Return the site's training images of these classes, which are never tested on from now on."""
        samples = self._load("train", classes)
        # Under privacy counts are noised, and no image may decide whether others take part.
        samples = samples if self.experiment.protects_images else self._common(samples)
        if self.trained is not None:
            self.trained.enter(self.dataset.train, samples.record_ids)
        return samples

    @property
    def dataset(self) -> Dataset:
        """Return the site's images, none in the test that it has trained on before.

        Raises:
            DataError: the data's own split says to test on such images.
        """
        dataset = self.experiment.dataset
        return dataset if self.trained is None else self.trained.settled(dataset)

    def images_of(self, record_ids: Collection[str]) -> Samples:
        """Return the readable training images of these records, even withdrawn ones: they are to leave the sums."""
        split, data = self.dataset.train, self.experiment.config.data
        parts = []
        for place, record in enumerate(split.record_ids):
            if record in record_ids:
                with suppress(DataError):
                    parts.append(load_samples(split, [place], data.image_size, data.fit))
        return Samples.concatenate(parts)

    def _common(self, samples: Samples) -> Samples:
        """Return the samples without the classes of which there are too few."""
        kept = _without_rare(samples, self.fewest)
        return samples if kept is None else samples.subset(kept)

    def noise(self, *purpose: str | int) -> Noise:
        """Return noise that nobody can foresee or repeat, whatever its purpose."""
        return SystemNoise()

    def charge_name(self, step: str, charges: Collection[str]) -> str:
        """Name a charge for a step: each answer draws new noise, so each is charged anew.

        Args:
            step: names the step.
            charges: names of the charges so far.
        """
        return f"{step}/{len(charges)}"

    def _load(self, part: str, classes: tuple[int, ...]) -> Samples:
        """Return the images of classes that may be used; those of withdrawn records are not even decoded."""
        split: Split = getattr(self.dataset, part)
        if self.ledger is not None:
            split = self.ledger.allowed_split(split)
        places = np.flatnonzero(np.isin(split.labels, classes))
        return self._decoded(split, places, lambda samples: samples)

    def _decoded(self, split: Split, places: NDArray[np.int64], finish: Callable[[Samples], Samples]) -> Samples:
        """Return images as `finish` leaves them, decoded once for all steps that this process answers."""
        source, held = resolve_selection(split.source, places)
        key = (self.experiment, self.index, source, hashlib.sha256(held.tobytes()).digest())
        data = self.experiment.config.data

        def load() -> Samples:
            return finish(load_samples(split, places, data.image_size, data.fit, cache=self.images))

        return _recently_decoded.get(key, load)

    def _arrivals(self, task: int) -> Arrivals:
        """Return when classes reach this site, as known in a task.

        A hospital lives it: a class whose images it has taken neither into its memory nor into sums yet is new to it,
        whether the images came late or the site was away when the others learnt the class. With neither to tell,
        classes come with their tasks.
        """
        experiment, stream = self.experiment, self.experiment.stream
        if experiment.protects_images:
            # Under privacy whether a class is new must not depend on whether there are images of it.
            return Arrivals(stream, {})
        if experiment.method.uses_memory:
            arrived = self.store.load().arrived
        elif self.sums is not None and experiment.keeps_sums:
            arrived = self._summed(self.sums.load())
        else:
            return Arrivals(stream, {})
        delays = {(self.index, label): arrived.get(label, task) - stream.task_of(label) for label in stream.seen(task)}
        return Arrivals(stream, delays)

    def _summed(self, noted: Contributions) -> dict[int, int]:
        """Return the task of the step in which each class went into sums first."""
        dealt = [(self.experiment.steps[number].task, images) for number, images in noted.items() if number >= 0]
        return {each.label: task for task, images in sorted(dealt, key=itemgetter(0), reverse=True) for each in images}


class SimulatedSite(Site):
    """A site that holds a share of a simulation's data set, sees it through its own scanner and repeats its noise."""

    def noise(self, *purpose: str | int) -> Noise:
        """Return the noise of a purpose, the same whenever it is asked for."""
        return SeededNoise(*purpose)

    def charge_name(self, step: str, charges: Collection[str]) -> str:
        """Name a charge for a step: asked again, it draws the same noise and tells nothing new, so it is paid once."""
        return step

    def _load(self, part: str, classes: tuple[int, ...]) -> Samples:
        split: Split = getattr(self.experiment.dataset, part)
        places: NDArray[np.int64] = getattr(self.experiment.partition, part)[self.index]
        config = self.experiment.config

        def scanned(samples: Samples) -> Samples:
            return through_scanner(samples, config.scanners, seed=config.seed, site=self.index)

        return self._decoded(split, places[np.isin(split.labels[places], classes)], scanned)

    def _arrivals(self, task: int) -> Arrivals:
        """Return when classes reach this site; a simulation knows it beforehand."""
        return self.experiment.arrivals


def _without_rare(samples: Samples, fewest: Fewest) -> list[int] | None:
    """Return the positions of the samples of classes that have enough of them; None if that is every position."""
    if fewest == ANYTHING:
        return None
    labels = samples.labels.numpy()
    enough = fewest.class_counts(labels, samples.patient_ids, 0)[labels] > 0
    return None if enough.all() else np.flatnonzero(enough).tolist()
