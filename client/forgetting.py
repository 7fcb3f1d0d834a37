"""Which images of withdrawn records a site takes out of sums now, and which have to wait."""

from __future__ import annotations

import logging
from collections import Counter

import torch

from client.site import Site
from dynammo_core.data.samples import Samples
from dynammo_core.memory.sums_note import Summed, describe

logger = logging.getLogger("dynammo.client")


def withdrawn_from(site: Site, inside: Counter[Summed]) -> Samples:
    """The images to be taken out of sums that hold `inside`, with the labels that they were summed with.

    The server can tell apart what it is sent and what remains, class by class. Each is nothing or at least as many as
    the site's policy wants to let out. So of a class of which too few would remain all images go, and of one of which
    too few would go none: they wait, as do those that are no longer on the disk as they were.
    """
    withdrawn = _withdrawn(site, inside)
    leaving = []
    for label in sorted({image.label for image in withdrawn}):
        held = Counter({image: count for image, count in inside.items() if image.label == label})
        wanted = Counter({image: count for image, count in held.items() if image in withdrawn})
        if held.total() - wanted.total() < site.fewest_images:
            wanted = held
        found = _found(site, wanted)
        remain = held.total() - len(found)
        if len(found) >= site.fewest_images and not 0 < remain < site.fewest_images:
            leaving.append(found)
        else:
            found = Samples.empty()
        if short := wanted.total() - len(found):
            name = site.experiment.class_names[label]
            logger.warning("%d images of class %s stay in the sums: `dynammo-site memory status`", short, name)
    return Samples.concatenate(leaving)


def _withdrawn(site: Site, inside: Counter[Summed]) -> set[Summed]:
    if site.ledger is None:
        return set()
    images = list(inside)
    flags = site.ledger.is_withdrawn([image.record_id for image in images])
    return {image for image, flag in zip(images, flags.tolist(), strict=True) if flag}


def _found(site: Site, wanted: Counter[Summed]) -> Samples:
    """Those that are on the disk as they were when they were summed."""
    labels = {(image.record_id, image.digest): image.label for image in wanted}
    left = Counter({(image.record_id, image.digest): count for image, count in wanted.items()})
    samples, kept = site.images_of({image.record_id for image in wanted}), []
    for place, image in enumerate(describe(samples)):
        key = (image.record_id, image.digest)
        if left[key] > 0:
            left[key] -= 1
            kept.append((place, labels[key]))
    found = samples.subset([place for place, _ in kept])
    return Samples(found.images, torch.tensor([label for _, label in kept], dtype=torch.int64), found.record_ids)
