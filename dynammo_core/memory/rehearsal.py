"""How many exemplars a class may have, how a memory takes in a task and drops what is old, and the balanced set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import date
from typing import NamedTuple

import torch
from torch import Tensor

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.memory.selection import choose, patients_first
from dynammo_core.memory.store import ReplayMemory, Taken
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import derive_seed

logger = logging.getLogger("dynammo.memory")

FEW = 3
"""With fewer exemplars of a class at a site, a person is told."""
SIMULATED_DAY = date(2000, 1, 1)
"""The day on which all simulations take their exemplars in: what they store depends on no clock."""


class Share(NamedTuple):
    """What a site may keep: a number of exemplars `each`, of at most so many `classes`."""

    each: int
    classes: int


def share_of(settings: MemorySettings, *, site: int, sites: int, classes: int, image_bytes: int) -> Share:
    """Return the exemplars that a site may keep: an equal part of the memory, in equal parts for its classes.

    Where that is less than one per class, the remainders are shared out: the first sites keep one exemplar more, and as
    many classes as that reaches keep one each.

    Args:
        settings: the memory of all sites together, and the disk quota of one site.
        site: index of the site.
        sites: sites that share the memory.
        classes: classes that this site holds.
        image_bytes: bytes of one decoded image.
    """
    if not classes:
        return Share(0, 0)
    room = int(settings.quota_megabytes * 1e6) // max(1, image_bytes)
    part, remainder = divmod(settings.exemplars, sites)
    if equal := min(part, room) // classes:
        return Share(equal, classes)
    left = min(part + (site < remainder), room, classes)
    return Share(min(1, left), left)


def check_room(settings: MemorySettings, *, classes: int, sites: int, image_bytes: int) -> None:
    """Refuse a memory that cannot hold an exemplar of each class at any site, and warn of one that holds few at each.

    A memory of no exemplars at all is a choice, and allowed.

    Args:
        settings: of the memory.
        classes: classes of the whole run.
        sites: sites that share the memory.
        image_bytes: bytes of one decoded image.

    Raises:
        ConfigError: there are fewer exemplars than classes, or the disk quota has no room for one image.
    """
    if not settings.exemplars:
        return
    if settings.exemplars < classes:
        raise ConfigError(
            f"memory.exemplars: {settings.exemplars} exemplars of {classes} classes leave a class without any",
            accepted=f"0, for no memory at all, or at least {classes}",
            remedy=f"Raise it to {classes * sites}, for one exemplar of each class at each of {sites} sites, or more",
        )
    share = share_of(settings, site=sites - 1, sites=sites, classes=classes, image_bytes=image_bytes)
    if not share.each and settings.exemplars >= sites:
        raise ConfigError(
            f"memory.quota_megabytes: {settings.quota_megabytes:g} MB have no room for an image of {image_bytes} bytes",
            remedy=f"Raise it to {classes * image_bytes / 1e6:.3g}, for one exemplar of each class, or more",
        )
    if share.classes < classes:
        logger.warning(
            "memory.exemplars: %d exemplars at %d sites: a site that holds all %d classes keeps one exemplar of %d of "
            "them, and none of the others; with %d it would keep one of each",
            settings.exemplars,
            sites,
            classes,
            share.classes,
            classes * sites,
        )
    elif share.each < FEW:
        logger.warning(
            "memory.exemplars: a site that holds all %d classes keeps %d exemplars of each", classes, share.each
        )


def remembered_classes(held: Collection[int], share: Share, site: int) -> set[int]:
    """Return the classes that keep exemplars at a site; where not all can, other sites keep other classes.

    A class that once gives way does so ever after: more classes only leave fewer of the same order.
    """
    order = sorted(set(held), key=lambda label: derive_seed(site, "remembered", label))
    return set(order[: share.classes])


def classes_of(samples: Samples) -> list[int]:
    """Return the classes that occur in `samples`, ascending."""
    return sorted(set(samples.labels.tolist()))


def remember(
    memory: ReplayMemory,
    new: Samples,
    *,
    task: int,
    settings: MemorySettings,
    site: int,
    sites: int,
    features: Callable[[Samples], Tensor],
    seed: int,
    today: date = SIMULATED_DAY,
    class_names: tuple[str, ...] = (),
    fewest_patients: int = 1,
) -> ReplayMemory:
    """Return the memory after `task`: old classes cut to their new share by rank, new ones selected by features.

    A pure function of its arguments, so that doing it twice gives the same memory. `today` is the day that the new
    exemplars are taken in; `class_names`, of all classes by index, replace those that the memory has, if there are any.
    Each class is spread over `fewest_patients`, as `choose` does it.
    """
    held = {*classes_of(memory.samples), *classes_of(new)}
    image_bytes = max((part.images[0].numel() for part in (memory.samples, new) if len(part)), default=0)
    share = share_of(settings, site=site, sites=sites, classes=len(held), image_bytes=image_bytes)
    remembered = remembered_classes(held, share, site)
    if settings.exemplars and len(remembered) < len(held):
        logger.warning(
            "the memory has room for %d of %d classes: the others keep no exemplar", share.classes, len(held)
        )
    parts = [_best(memory, label, share.each) for label in classes_of(memory.samples) if label in remembered]
    for label in sorted(remembered.intersection(classes_of(new))):
        candidates = new.of_class(label)
        order = choose(
            settings.selection,
            features(candidates),
            candidates.patient_ids,
            share.each,
            fewest_patients=fewest_patients,
            seed=derive_seed(seed, label),
        )
        chosen = candidates.subset(order)
        parts.append(ReplayMemory(task, chosen, (Taken(task, today),) * len(chosen)))
    samples = Samples.concatenate([part.samples for part in parts])
    taken = tuple(time for part in parts for time in part.taken)
    arrived = {**memory.arrived, **dict.fromkeys(classes_of(new), task)}
    return ReplayMemory(task, samples, taken, class_names or memory.class_names, arrived)


def drop_expired(memory: ReplayMemory, today: date, days: int) -> ReplayMemory:
    """Return the memory without the exemplars that were taken in more than `days` days before `today`."""
    return memory.subset([i for i, time in enumerate(memory.taken) if (today - time.day).days <= days])


def balanced_set(
    memory: Samples,
    new: Samples,
    *,
    settings: MemorySettings,
    site: int,
    sites: int,
    seed: int,
    learnt: int,
    remembered: int = 0,
    fewest_patients: int = 1,
) -> Samples:
    """Return exemplars and equally many samples of each new class (DynaMMo, section 3: the balanced set of stage 2).

    New samples are drawn at random, those of each class from `fewest_patients` if there are so many. A site that holds
    no exemplars takes as many as if it had some of every class learnt anywhere, or it would outvote sites that have;
    in the first task, and where nothing is ever remembered, all new samples serve.

    Args:
        memory: exemplars of old classes.
        new: images of the classes that are new to the site.
        settings: of the memory.
        site: index of the site.
        sites: sites that share the memory.
        seed: of what is drawn.
        learnt: number of classes that were learnt at any site in earlier tasks.
        remembered: number of new classes that have a part of the memory by now.
        fewest_patients: number of patients that the samples of a new class show, if so many stand behind it.
    """
    old = len(classes_of(memory)) or (learnt if settings.exemplars else 0)
    if not old or not len(new):
        return Samples.concatenate([memory, new])
    image_bytes = max(part.images[0].numel() for part in (memory, new) if len(part))
    classes = old + remembered
    share = max(1, share_of(settings, site=site, sites=sites, classes=classes, image_bytes=image_bytes).each)
    parts = [memory]
    for label in classes_of(new):
        candidates = new.of_class(label)
        drawn = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(derive_seed(seed, label)))
        drawn = patients_first(drawn, candidates.patient_ids, min(fewest_patients, share))
        parts.append(candidates.subset(drawn[:share].sort().values))
    return Samples.concatenate(parts)


def _best(memory: ReplayMemory, label: int, count: int) -> ReplayMemory:
    return memory.subset(torch.nonzero(memory.samples.labels == label).flatten()[:count])
