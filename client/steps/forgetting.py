"""Choose the images to sum or to subtract, so that no two sums known to a server differ by few images.

A server may say of any answer that it was lost, ask before and after a record is withdrawn, and in run after run. So
all that was ever summed counts as known to it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from client.state.sums_note import Contributions, Known, Summed, SumsNote, describe, taken_out
from client.steps.site import Site
from dynammo_core.data.samples import Samples
from dynammo_core.support.errors import ProtocolError

logger = logging.getLogger("dynammo.client")


def kept_apart(site: Site, note: SumsNote, samples: Samples) -> Samples:
    """Return the samples of a new sum that differs from each earlier one by 0 or at least `fewest_images` per class.

    New images that are fewer wait. Where fewer went than that, others go with them. A class for which neither helps
    takes no part.
    """
    earlier = note.known()
    images, kept = describe(samples), list[int]()
    for label in sorted({image.label for image in images}):
        places = {(image.record_id, image.digest): at for at, image in enumerate(images) if image.label == label}
        chosen = _apart(frozenset(places), earlier, site.fewest_images)
        if len(chosen) < len(places):
            name = site.experiment.class_names[label]
            logger.warning(
                "%d images of class %s wait: the sum would differ from an earlier one by too few",
                len(places) - len(chosen),
                name,
            )
        kept += [at for at, image in enumerate(images) if image.label == label and image[::2] in chosen]
    return samples if len(kept) == len(images) else samples.subset(sorted(kept))


def withdrawn_from(site: Site, note: SumsNote, taken: Sequence[int]) -> Samples:
    """Return the images to be taken out of sums now, with the labels that they were summed with.

    What goes and what remains of each class of a contribution is nothing or at least `fewest_images`. So of a class of
    which too few would remain all images go, and of one of which too few would go none: they wait, as do those that are
    no longer on the disk as they were. What an earlier correction took out, and the server says it never got, goes
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
        if summed.total() - wanted.total() < site.fewest_images:
            wanted = summed
        for choice in (wanted, repeated):
            on_disk = _found(site, choice)
            if _may_leave(summed, Counter(_labelled(on_disk)), repeated, earlier, site.fewest_images):
                leaving.append(on_disk)
                break
        else:
            on_disk = Samples.empty()
        if short := wanted.total() - len(on_disk):
            name = site.experiment.class_names[next(iter(summed)).label]
            logger.warning("%d images of class %s stay in the sums; see `dynammo-site memory status`", short, name)
    return Samples.concatenate(leaving)


def _apart(images: Known, earlier: set[Known], fewest: int) -> Known:
    for _ in range(len(earlier) + 1):
        near = next((known for known in earlier if 0 < len(images ^ known) < fewest), None)
        if near is None:
            return images if len(images) >= fewest else frozenset()
        missing = fewest - len(near - images)
        images = near if near <= images else frozenset(sorted(near & images)[missing:])
    return frozenset()


def _held(noted: Contributions, taken: Sequence[int]) -> Iterator[Counter[Summed]]:
    """Yield what the server's sums contain, by its own account, for each class of each contribution."""
    out: Counter[Summed] = Counter()
    for number in taken:
        if number < 0:
            out.update(noted[number])
    for number in sorted(number for number in taken if number >= 0):
        for label in sorted({image.label for image in noted[number]}):
            part = Counter(image for image in noted[number] if image.label == label)
            gone = part & out
            out -= gone
            if summed := part - gone:
                yield summed


def _may_leave(
    summed: Counter[Summed], on_disk: Counter[Summed], repeated: Counter[Summed], earlier: set[Known], fewest: int
) -> bool:
    """Return whether the sum of `on_disk`, and the rest of `summed`, tell nothing about fewer than `fewest` images."""
    if not on_disk or not repeated <= on_disk:
        return False
    remain = summed - on_disk
    left = frozenset((image.record_id, image.digest) for image in remain)
    near = any(0 < len(left ^ known) < fewest for known in earlier) if left else False
    return on_disk.total() >= fewest and not 0 < remain.total() < fewest and not near


def _withdrawn(site: Site, inside: Counter[Summed]) -> set[Summed]:
    if site.ledger is None:
        return set()
    images = list(inside)
    flags = site.ledger.is_withdrawn([image.record_id for image in images])
    return {image for image, flag in zip(images, flags.tolist(), strict=True) if flag}


def _found(site: Site, wanted: Counter[Summed]) -> Samples:
    """Return the images that are still on the disk as they were when they were summed."""
    labels = {(image.record_id, image.digest): image.label for image in wanted}
    left = Counter({(image.record_id, image.digest): count for image, count in wanted.items()})
    samples, kept = site.images_of({image.record_id for image in wanted}), []
    for place, image in enumerate(describe(samples)):
        key = (image.record_id, image.digest)
        if left[key] > 0:
            left[key] -= 1
            kept.append((place, labels[key]))
    on_disk = samples.subset([place for place, _ in kept])
    return Samples(on_disk.images, torch.tensor([label for _, label in kept], dtype=torch.int64), on_disk.record_ids)


def _labelled(samples: Samples) -> list[Summed]:
    return describe(samples) if len(samples) else []
