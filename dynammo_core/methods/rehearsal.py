"""What a site may train on in a task, and the choices that methods make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.memory.rehearsal import balanced_set, classes_of
from dynammo_core.models.heads import on_device
from dynammo_core.support.seeding import derive_seed


@dataclass(frozen=True)
class Rehearsal:
    """All images that a method may choose a site's training set from.

    Attributes:
        task: counts from 0.
        new: images of the classes that reach the site with this task.
        seen: images of all classes that have reached it so far, as only a method without limits may use them.
        memory: its exemplars.
        settings: of the memory.
        sites: number of sites that share the memory.
        seed: of what is drawn at random.
        site: index of the site.
        learnt: number of classes that were learnt at any site in earlier tasks.
        fewest_patients: number of patients that what is drawn of a class shows, if so many stand behind it.
        fewest_images: number of images of a class below which none of it is drawn.
    """

    task: int
    new: Samples
    seen: Samples
    memory: Samples
    settings: MemorySettings
    sites: int
    seed: int
    site: int = 0
    learnt: int = 0
    fewest_patients: int = 1
    fewest_images: int = 1

    def has_new(self, classes: Sequence[int]) -> bool:
        """Tell whether there are new images of any of these classes."""
        return bool(torch.isin(self.new.labels, torch.tensor(classes)).any())

    def balanced(self) -> Samples:
        """Draw exemplars of old classes and equally many samples of each new class.

        Both are fewer once the new classes are remembered, too, and share the memory.
        """
        seed, new = derive_seed(self.seed, "balanced", self.task), {*self.new.record_ids}
        known = torch.tensor([record in new for record in self.memory.record_ids], dtype=torch.bool)
        return balanced_set(
            self.memory.subset((~known).nonzero().flatten()),
            self.new,
            remembered=len(classes_of(self.memory.subset(known.nonzero().flatten()))),
            settings=self.settings,
            site=self.site,
            sites=self.sites,
            seed=seed,
            learnt=self.learnt,
            fewest_patients=self.fewest_patients,
        )


def new_images(rehearsal: Rehearsal) -> Samples:
    """Take the task's own images."""
    return rehearsal.new


def exemplars(rehearsal: Rehearsal) -> Samples:
    """Take the memory alone."""
    return rehearsal.memory


def new_and_exemplars(rehearsal: Rehearsal) -> Samples:
    """Take the task's own images and the whole memory: experience replay."""
    return Samples.concatenate([rehearsal.new, rehearsal.memory])


def balanced(rehearsal: Rehearsal) -> Samples:
    """Take exemplars and equally many images of each new class."""
    return rehearsal.balanced()


def everything_seen(rehearsal: Rehearsal) -> Samples:
    """Take all images of all tasks so far, as if none ever had to be given up."""
    return rehearsal.seen


def if_it_holds(classes: Sequence[int]) -> Callable[[Rehearsal], Samples]:
    """Make a choice of new images and exemplars for sites that hold new images of `classes`; all others abstain."""
    return lambda rehearsal: new_and_exemplars(rehearsal) if rehearsal.has_new(classes) else Samples.empty()


def of_classes(classes: Sequence[int]) -> Callable[[Rehearsal], Samples]:
    """Make a choice of the new images of `classes` alone: others may reach a site late."""
    return lambda rehearsal: rehearsal.new.subset(is_any_of(classes, rehearsal.new.labels).nonzero().squeeze(1))


def is_any_of(classes: Sequence[int], labels: Tensor) -> Tensor:
    """Tell which labels Tensor[B] are among `classes`: Tensor[B] bool."""
    return torch.isin(labels, on_device(tuple(classes), labels.device))
