"""How many exemplars a class may have, how a memory takes in a task and drops what is old, and the balanced set."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.memory.selection import SELECTIONS
from dynammo_core.memory.store import ReplayMemory, Taken
from dynammo_core.support.seeding import derive_seed

SIMULATED_DAY = date(2000, 1, 1)
"""The day on which all simulations take their exemplars in: what they store depends on no clock."""


def exemplars_per_class(settings: MemorySettings, *, sites: int, classes: int, image_bytes: int) -> int:
    """Exemplars each class may have at one site: the equal share of a memory divided equally among its classes.

    Args:
        settings: the memory of all sites together, and the disk quota of one site.
        sites: sites that share it.
        classes: classes that this site holds.
        image_bytes: bytes of one decoded image.
    """
    if classes == 0:
        return 0
    by_number = settings.exemplars // sites // classes
    by_disk = int(settings.quota_megabytes * 1e6) // max(1, image_bytes) // classes
    return min(by_number, by_disk)


def classes_of(samples: Samples) -> list[int]:
    """The classes that occur in `samples`, ascending."""
    return sorted(set(samples.labels.tolist()))


def remember(
    memory: ReplayMemory,
    new: Samples,
    *,
    task: int,
    settings: MemorySettings,
    sites: int,
    features: Callable[[Samples], Tensor],
    seed: int,
    today: date = SIMULATED_DAY,
    class_names: tuple[str, ...] = (),
) -> ReplayMemory:
    """The memory after `task`: old classes cut to their new share by rank, new classes selected by features.

    A pure function of its arguments, so that doing it twice gives the same memory. `today` is the day that the new
    exemplars are taken in; `class_names`, of all classes by index, replace those that the memory has, if there are any.
    """
    held = classes_of(memory.samples) + classes_of(new)
    image_bytes = max((part.images[0].numel() for part in (memory.samples, new) if len(part)), default=0)
    share = exemplars_per_class(settings, sites=sites, classes=len(set(held)), image_bytes=image_bytes)
    parts = [_best(memory, label, share) for label in classes_of(memory.samples)]
    select = SELECTIONS[settings.selection]
    for label in classes_of(new):
        candidates = new.of_class(label)
        generator = torch.Generator().manual_seed(derive_seed(seed, label))
        chosen = candidates.subset(select(features(candidates), share, generator))
        parts.append(ReplayMemory(task, chosen, (Taken(task, today),) * len(chosen)))
    samples = Samples.concatenate([part.samples for part in parts])
    taken = tuple(time for part in parts for time in part.taken)
    arrived = {**memory.arrived, **dict.fromkeys(classes_of(new), task)}
    return ReplayMemory(task, samples, taken, class_names or memory.class_names, arrived)


def drop_expired(memory: ReplayMemory, today: date, days: int) -> ReplayMemory:
    """The memory without the exemplars that were taken in more than `days` days before `today`."""
    return memory.subset([i for i, time in enumerate(memory.taken) if (today - time.day).days <= days])


def balanced_set(memory: Samples, new: Samples, *, settings: MemorySettings, sites: int, seed: int) -> Samples:
    """Exemplars and equally many samples of each new class (DynaMMo, section 3: the balanced set of stage 2).

    New samples are drawn at random; before the first exemplars exist, all new samples serve.
    """
    old = classes_of(memory)
    if not old:
        return new
    share = exemplars_per_class(settings, sites=sites, classes=len(old), image_bytes=memory.images[0].numel())
    parts = [memory]
    for label in classes_of(new):
        candidates = new.of_class(label)
        generator = torch.Generator().manual_seed(derive_seed(seed, label))
        parts.append(candidates.subset(torch.randperm(len(candidates), generator=generator)[:share].sort().values))
    return Samples.concatenate(parts)


def _best(memory: ReplayMemory, label: int, count: int) -> ReplayMemory:
    return memory.subset(torch.nonzero(memory.samples.labels == label).flatten()[:count])
