"""Choose the images to sum or to subtract, so that no two sums known to a server differ by few images.

A server may say of any answer that it was lost, ask before and after a record is withdrawn, and in run after run. So
all that was ever summed counts as known to it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from client.consent.fewest import Fewest
from client.state.sums_note import Contributions, Image, Known, Summed, SumsNote, describe, taken_out
from client.steps.site import Site
from dynammo_core.data.samples import Samples
from dynammo_core.support.errors import ProtocolError

logger = logging.getLogger("dynammo.client")


def kept_apart(site: Site, note: SumsNote, samples: Samples) -> Samples:
    """Return the samples of a new sum that differs from each earlier one by nothing or by enough, class by class.

    Enough are images of as many patients as the policy's `fewest_images` and `fewest_patients` say. New images that are
    fewer wait. Where fewer went than that, others go with them. A class for which neither helps takes no part.
    """
    earlier = note.known()
    summed, kept = describe(samples), list[int]()
    for label in sorted({each.label for each in summed}):
        own = frozenset(each.image for each in summed if each.label == label)
        chosen = _apart(own, earlier, site.fewest)
        if len(chosen) < len(own):
            name = site.experiment.class_names[label]
            logger.warning(
                "%d images of class %s wait: the sum would differ from an earlier one by too few",
                len(own) - len(chosen),
                name,
            )
        kept += [at for at, each in enumerate(summed) if each.label == label and each.image in chosen]
    return samples if len(kept) == len(summed) else samples.subset(sorted(kept))


def withdrawn_from(site: Site, note: SumsNote, taken: Sequence[int]) -> Samples:
    """Return the images to be taken out of sums now, with the labels that they were summed with.

    What goes and what remains of each class of a contribution is nothing or enough, as in `kept_apart`. So all images
    of a class go if too few would remain, and none if too few would go: they wait, as do those that are no longer on
    the disk as they were. What an earlier correction took out, and the server says it never got, goes
    again as it was, and what is new beside it is enough by itself, as what remains differs from all earlier sums.

    Args:
        site: whose images they are.
        note: what it has summed.
        taken: the contributions that the server says its sums contain.

    Raises:
        ProtocolError: the server names a contribution twice.
        MemoryStoreError: the note does not know one of them, or cannot be read.
    """
    if len(set(taken)) < len(taken):
        raise ProtocolError(f"the contributions {list(taken)[:8]} are not all different")
    inside, noted = note.inside(taken), note.load()
    withdrawn, earlier = _withdrawn(site, inside), note.known()
    lost = [number for number in noted if number < 0 and number not in taken]
    again, leaving = taken_out(noted, lost), list[Samples]()
    for summed in _held(noted, taken):
        repeated = summed & again
        again -= repeated
        wanted = Counter({image: count for image, count in summed.items() if image in withdrawn})
        if not site.fewest.enough(_patients(summed - wanted)):
            wanted = summed
        for choice in (wanted, repeated):
            on_disk = _found(site, choice)
            if _may_leave(summed, Counter(_labelled(on_disk)), repeated, earlier, site.fewest):
                leaving.append(on_disk)
                break
        else:
            on_disk = Samples.empty()
        if short := wanted.total() - len(on_disk):
            name = site.experiment.class_names[next(iter(summed)).label]
            logger.warning("%d images of class %s stay in the sums; see `dynammo-site memory status`", short, name)
    return Samples.concatenate(leaving)


def _apart(images: Known, earlier: set[Known], fewest: Fewest) -> Known:
    for _ in range(len(earlier) + 1):
        near = next((known for known in earlier if _tells(images ^ known, fewest)), None)
        if near is None:
            return images if fewest.enough(_patients(images)) else frozenset()
        images = near if near <= images else _fewer(near, images, fewest)
    return frozenset()


def _fewer(near: Known, images: Known, fewest: Fewest) -> Known:
    """Return what stays of an earlier sum when so many of its images go that their sum may be known."""
    stay = sorted(near & images)
    while stay and _tells(near - frozenset(stay), fewest):
        stay.pop(0)
    return frozenset(stay)


def _tells(difference: Iterable[Image], fewest: Fewest) -> bool:
    """Tell whether two sums that differ by these images say something of too few."""
    patients = _patients(difference)
    return bool(patients) and not fewest.enough(patients)


def _held(noted: Contributions, taken: Sequence[int]) -> Iterator[Counter[Summed]]:
    """Yield what the server's sums contain, by its own account, for each class of each contribution."""
    out: Counter[Summed] = Counter()
    for number in taken:
        if number < 0:
            out.update(noted[number])
    for number in sorted(number for number in taken if number >= 0):
        for label in sorted({each.label for each in noted[number]}):
            part = Counter(each for each in noted[number] if each.label == label)
            gone = part & out
            out -= gone
            if summed := part - gone:
                yield summed


def _may_leave(
    summed: Counter[Summed], on_disk: Counter[Summed], repeated: Counter[Summed], earlier: set[Known], fewest: Fewest
) -> bool:
    """Return whether the sum of `on_disk`, and the rest of `summed`, tell nothing about too few images."""
    if not on_disk or not repeated <= on_disk:
        return False
    remain = summed - on_disk
    left = frozenset(each.image for each in remain)
    near = any(_tells(left ^ known, fewest) for known in earlier) if left else False
    return fewest.enough(_patients(on_disk)) and (not remain or fewest.enough(_patients(remain))) and not near


def _withdrawn(site: Site, inside: Counter[Summed]) -> set[Summed]:
    if site.ledger is None:
        return set()
    images = [each.image for each in inside]
    flags = site.ledger.is_withdrawn([image.record_id for image in images], [image.patient for image in images])
    return {each for each, flag in zip(inside, flags.tolist(), strict=True) if flag}


def _found(site: Site, wanted: Counter[Summed]) -> Samples:
    """Return the images that are still on the disk as they were when they were summed."""
    labels = {each.image: each.label for each in wanted}
    left = Counter({each.image: count for each, count in wanted.items()})
    samples, kept = site.images_of({image.record_id for image in labels}), []
    for place, (image, _) in enumerate(describe(samples)):
        if left[image] > 0:
            left[image] -= 1
            kept.append((place, labels[image]))
    on_disk = samples.subset([place for place, _ in kept])
    return replace(on_disk, labels=torch.tensor([label for _, label in kept], dtype=torch.int64))


def _labelled(samples: Samples) -> list[Summed]:
    return describe(samples) if len(samples) else []


def _patients(images: Iterable[Image] | Counter[Summed]) -> list[str]:
    """List the patients that images show, one for each image."""
    shown = (each.image for each in images.elements()) if isinstance(images, Counter) else images
    return [image.patient for image in shown]
