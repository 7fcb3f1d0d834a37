"""Training sets under example-level privacy: whether a record is in one depends only on it and on public facts.

Herding, a shuffle or a quota would let one more record replace many others, which noise for one record cannot hide.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import torch
from torch import Tensor

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.memory.rehearsal import share_of
from dynammo_core.memory.store import ReplayMemory, Taken
from dynammo_core.methods.rehearsal import Rehearsal

Chance = Callable[[Samples], Tensor]
"""A number from 0 for each sample, Tensor[N] float64: samples with low ones are kept."""


@dataclass(frozen=True, kw_only=True)
class PrivateRehearsal(Rehearsal):
    """A `Rehearsal` that asks the census, never the images, how many images there are.

    Attributes:
        census: noised number of the site's training images, by class seen so far.
        old: the classes of earlier tasks.
        image_bytes: bytes of one decoded image.
        chance: decides which samples are kept if not all can be.
    """

    census: Mapping[int, int]
    old: tuple[int, ...]
    image_bytes: int
    chance: Chance

    def has_new(self, classes: Sequence[int]) -> bool:
        """Tell whether the census counts new images of any of the classes."""
        return any(self.census.get(label, 0) > 0 for label in classes)

    def balanced(self) -> Samples:
        """Return the exemplars, and for each new class about as many samples as an old class has exemplars."""
        if not self.old:
            return self.new
        share = self._share()
        return Samples.concatenate([self.memory, kept(self.new, share, self.census, self.chance)])

    def shadow(self) -> PrivateRehearsal:
        """Return the public twin of this set: blank images, as many per class as the census says."""
        new = {label: count for label, count in self.census.items() if label not in self.old}
        memory = blank({label: self.census[label] for label in self.old if label in self.census})
        share = self._share()
        rehearsed = kept(memory, share, self.census, evenly)
        return replace(self, new=blank(new), seen=blank(self.census), memory=rehearsed, chance=evenly)

    def _share(self) -> float:
        return public_share(self.settings, self.site, self.sites, len(self.old), self.image_bytes)


def public_share(settings: MemorySettings, site: int, sites: int, classes: int, image_bytes: int) -> float:
    """Return the expected exemplars per class if all `classes` share the memory, held by the site or not."""
    share = share_of(settings, site=site, sites=sites, classes=classes, image_bytes=image_bytes)
    return share.each if share.classes == classes else share.classes / classes


def kept(samples: Samples, share: float, census: Mapping[int, int], chance: Chance) -> Samples:
    """Keep about `share` samples per class: each with probability share / (noised number of its class)."""
    if not len(samples):
        return samples
    limits = [share / max(1, census.get(label, 0)) for label in samples.labels.tolist()]
    return samples.subset(torch.nonzero(chance(samples) < torch.tensor(limits, dtype=torch.float64)).flatten())


def hashed(seed: int) -> Chance:
    """Return chances that hash record and seed, so that a smaller share keeps a subset of what a larger one keeps."""

    def chance(samples: Samples) -> Tensor:
        return torch.tensor([_hash(seed, record) for record in samples.record_ids], dtype=torch.float64)

    return chance


def hashed_by_patient(seed: int) -> Chance:
    """Return chances by which patients keep equally many images of a class, whatever images other patients have.

    A patient's images of a class, ordered by `hashed`, get the hash of the patient plus 0, 1, 2 and so on: at a limit
    of 0.3 three patients in ten keep one image, at 1.3 all keep one and three in ten another.
    """
    by_record = hashed(seed)

    def chance(samples: Samples) -> Tensor:
        chances = torch.zeros(len(samples), dtype=torch.float64)
        kept_before = Counter[tuple[str, int]]()
        labels = samples.labels.tolist()
        for place in by_record(samples).argsort(stable=True).tolist():
            patient = samples.patient_ids[place]
            chances[place] = _hash(seed, patient) + kept_before[patient, labels[place]]
            kept_before[patient, labels[place]] += 1
        return chances

    return chance


def _hash(seed: int, name: str) -> float:
    """Return a number in [0, 1) that depends on the seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big") / 2**48


def evenly(samples: Samples) -> Tensor:
    """Return chances spread evenly in each class, so that exactly the expected number of samples is kept."""
    chances = torch.zeros(len(samples), dtype=torch.float64)
    for label in set(samples.labels.tolist()):
        of_class = samples.labels == label
        chances[of_class] = torch.arange(int(of_class.sum()), dtype=torch.float64) / of_class.sum()
    return chances


def blank(counts: Mapping[int, int]) -> Samples:
    """Return black images of one pixel, with the given number per class."""
    labels = torch.tensor([label for label, count in sorted(counts.items()) for _ in range(count)], dtype=torch.int64)
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return Samples(images, labels, ("",) * len(labels))


def remember_by_record(
    memory: ReplayMemory,
    new: Samples,
    *,
    task: int,
    share: float,
    census: Mapping[int, int],
    chance: Chance,
    today: date,
    class_names: tuple[str, ...],
) -> ReplayMemory:
    """Return the memory after `task`: what `kept` keeps of the images it held and of the new ones."""
    taken_before = dict(zip(memory.record_ids, memory.taken, strict=True))
    samples = kept(Samples.concatenate([memory.samples, new]), share, census, chance)
    taken = tuple(taken_before.get(record, Taken(task, today)) for record in samples.record_ids)
    arrived = {**memory.arrived, **{label: task for label in census if label not in memory.arrived}}
    return ReplayMemory(task, samples, taken, class_names or memory.class_names, arrived)
