"""How many exemplars a class may have, how a memory takes in a task, and the class-balanced set made of both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.memory.selection import SELECTIONS
from dynammo_core.memory.store import ReplayMemory
from dynammo_core.seeding import derive_seed
from dynammo_core.settings import MemorySettings


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
) -> ReplayMemory:
    """The memory after `task`: old classes cut to their new share by rank, new classes selected by features.

    A pure function of its arguments, so that doing it twice gives the same memory.
    """
    held = classes_of(memory.samples) + classes_of(new)
    image_bytes = max((part.images[0].numel() for part in (memory.samples, new) if len(part)), default=0)
    share = exemplars_per_class(settings, sites=sites, classes=len(set(held)), image_bytes=image_bytes)
    parts = [_head(memory.samples.of_class(label), share) for label in classes_of(memory.samples)]
    select = SELECTIONS[settings.selection]
    for label in classes_of(new):
        candidates = new.of_class(label)
        generator = torch.Generator().manual_seed(derive_seed(seed, label))
        parts.append(candidates.subset(select(features(candidates), share, generator)))
    return ReplayMemory(task, Samples.concatenate(parts))


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


def _head(samples: Samples, count: int) -> Samples:
    return samples.subset(range(min(count, len(samples))))
