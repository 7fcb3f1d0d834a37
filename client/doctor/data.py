"""What `dynammo-site doctor` looks at in the site's images: how many of each class, and whether all can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from client.consent.policy import load_policy
from client.consent.settings import SiteSettings
from client.doctor.findings import Finding
from client.state.known_images import TrainedImages, hash_cache
from dynammo_core.configuration.config import Config
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.decoded.all_cores import in_order
from dynammo_core.data.index.contents import hashes_kept_in
from dynammo_core.data.index.opening import open_own
from dynammo_core.data.samples import FEWEST_SAMPLES, Dataset, Split
from dynammo_core.data.sheet.data_sheet import DataSheet, data_sheet
from dynammo_core.data.sheet.tables import burnt_in, form_of, warnings_in
from dynammo_core.privacy.units import require_patients
from dynammo_core.support.errors import DataError
from dynammo_core.wire.announcement import misspelt

NAMED = 10
"""Unreadable images that are named; of more only the number is told."""
Advance = Callable[[int, int], None]


def data(settings: SiteSettings, config: Config[Any] | None, advance: Advance) -> Iterator[Finding]:
    """Open the data set, count, and decode every image.

    Args:
        settings: the site.
        config: the experiment, whose class registry is used; without one the data name their own classes.
        advance: is told how many images of how many are done.

    Raises:
        ConfigError: no such data set, or its classes are not the experiment's.
        DataError: the data set cannot be opened, or the experiment protects patients and it names none.
    """
    dataset = own_dataset(settings, config)
    if config is not None and config.privacy.mechanism == "example":
        require_patients(dataset.train, config.privacy.unit)
    yield _counted(dataset, settings)
    yield from _rare(dataset, settings)
    yield from _other_labels(dataset, config.data.classes or ()) if config else ()
    yield from _form(data_sheet(dataset))
    total = len(dataset.train.labels) + len(dataset.test.labels)
    unreadable = list(_unreadable(dataset, lambda done: advance(done, total)))
    if not unreadable:
        yield Finding("images", "ok", f"all {total} can be read")
        return
    more = len(unreadable) - NAMED
    details = unreadable[:NAMED] + ([f"and {more} more"] if more > 0 else [])
    what = f"{len(unreadable)} of {total} cannot be read"
    remedy = "Replace these files or take them out of the data set: a step that meets one fails"
    yield Finding("images", "wrong", what, remedy, tuple(details))


def own_dataset(settings: SiteSettings, config: Config[Any] | None) -> Dataset:
    """Open all images of a site, each on the side on which earlier runs have had it.

    Args:
        settings: the site.
        config: the experiment, whose class registry is used; without one the data name their own classes.

    Raises:
        ConfigError: no such data set, or its classes are not the experiment's.
        DataError: the data set cannot be opened.
    """
    with hashes_kept_in(hash_cache(settings.memory)):
        dataset = open_own(_own(settings, config), 0)
    return TrainedImages.of_site(settings.memory, settings.site).settled(dataset)


def _own(settings: SiteSettings, config: Config[Any] | None) -> DataSettings:
    dataset, root = settings.data.dataset, settings.data.root
    if config is None:
        return DataSettings(dataset=dataset, root=root)
    every = {"train_per_class": None, "test_per_class": None, "validation_per_class": 0}
    return config.data.model_copy(update={"dataset": dataset, "root": root, **every})


def _counted(dataset: Dataset, settings: SiteSettings) -> Finding:
    """Sum up a data set: `3 classes, 10 training + 4 test images: a 4+1, b 6+3; without images: c`."""
    counts = [
        np.bincount(split.labels, minlength=len(dataset.class_names)).tolist()
        for split in (dataset.train, dataset.test)
    ]
    counts_by_class = {name: (train, test) for name, train, test in zip(dataset.class_names, *counts, strict=True)}
    listed = ", ".join(f"{name} {train}+{test}" for name, (train, test) in counts_by_class.items() if train or test)
    absent = [name for name, (train, test) in counts_by_class.items() if not train and not test]
    present = len(counts_by_class) - len(absent)
    what = f"{present} classes, {sum(counts[0])} training + {sum(counts[1])} test images: {listed}"
    what += f"; without images: {', '.join(absent)}" if absent else ""
    if few := [name for name, (train, _) in counts_by_class.items() if 0 < train < FEWEST_SAMPLES]:
        remedy = f"Get more of them: with fewer than {FEWEST_SAMPLES} images of a task this site cannot train on it"
        return Finding("data", "warning", f"{what}; few of: {', '.join(few)}", remedy)
    if not present:
        return Finding(
            "data", "wrong", f"{settings.data.root} holds no image of the experiment's classes", "Correct data.root"
        )
    return Finding("data", "ok", what)


def _rare(dataset: Dataset, settings: SiteSettings) -> Iterator[Finding]:
    """Name the classes that take no part here because the policy wants more images or patients of them."""
    fewest = load_policy(settings.policy).fewest
    for part, split in (("training", dataset.train), ("tests", dataset.test)):
        held = np.bincount(split.labels, minlength=len(dataset.class_names))
        common = fewest.class_counts(split.labels, split.patient_ids, len(held))
        if rare := [dataset.class_names[label] for label in np.flatnonzero((held > 0) & (common == 0)).tolist()]:
            what = f"the policy wants {fewest.words()}; these take no part in {part}: {', '.join(rare)}"
            yield Finding("rare classes", "note", what)


def _form(sheet: DataSheet) -> Iterator[Finding]:
    """Sum up what the headers say; `dynammo-site inspect` shows all of it."""
    words = "; ".join(f"{name}: {said}" for name, said in form_of(sheet))
    yield Finding("form", "note", f"{words}. `dynammo-site inspect` shows more", details=sheet.notes)
    for said in warnings_in(sheet):
        yield Finding("form", "warning" if said == burnt_in(sheet) else "note", said)


def _other_labels(dataset: Dataset, classes: Sequence[str]) -> Iterator[Finding]:
    """Name the site's labels that are not classes of the experiment; one that nearly is takes no part by mistake."""
    counts = Counter(dataset.class_names[label] for part in (dataset.train, dataset.test) for label in part.labels)
    others = [label for label in counts if label not in classes] if classes else []
    near = misspelt(others, classes)
    for label, name in near.items():
        what = f"the label {label!r} is not a class of the experiment (did you mean {name!r}?): "
        what += f"its {counts[label]} images take no part"
        remedy = f"Correct the label; if it is another disease than {name!r}, ask the operator to add it"
        yield Finding("labels", "warning" if counts[name] else "wrong", what, remedy)
    if rest := [label for label in others if label not in near]:
        yield Finding("labels", "note", f"not in the experiment, so without a part in it: {', '.join(sorted(rest))}")


def _unreadable(dataset: Dataset, advance: Callable[[int], None]) -> Iterator[str]:
    """Yield a line for each image that cannot be decoded: where it is and why."""
    done = 0
    for split in (dataset.train, dataset.test):
        for problem in in_order(partial(_problem, split), range(len(split.labels))):
            done += 1
            advance(done)
            if problem is not None:
                yield problem


def _problem(split: Split, index: int) -> str | None:
    try:
        split.source.read(index)
    except DataError as error:
        return str(error).partition(". Accepted:")[0]
    return None
