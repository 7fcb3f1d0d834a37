"""Which images are for training and which for the test, by a hash of the patient or the content.

So a side does not depend on what else there is: images that arrive or leave, new names or another order move nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dynammo_core.support.seeding import derive_seed

TEST_SHARE = 0.2
SPLIT_SEED = 0
"""Random seed of every 80/20 split: a constant, so that all runs and seeds of a study are tested on the same images."""


def fraction(*parts: str | int) -> float:
    """Return a number in 0..1, drawn uniformly by a hash of `parts`."""
    return derive_seed(*parts) / 2**63


def split_by_group(labels: NDArray[np.int64], groups: Sequence[str]) -> NDArray[np.bool_]:
    """Choose the test images: the groups, about a fifth, whose hash with `SPLIT_SEED` is below `TEST_SHARE`.

    A class of at least two groups that has none of them in the test gives the one with the lowest hash, and a class
    that has all of them there takes back the one with the highest. Apart from such small classes, images that are
    added move none from training to the test.

    Args:
        labels: [N] class indices.
        groups: N keys; images with the same key stay on one side, whatever their labels.

    Returns:
        Booleans [N], true for a test image.
    """
    places = {group: fraction(SPLIT_SEED, group) for group in set(groups)}
    tested = {group for group, place in places.items() if place < TEST_SHARE}
    for members in _by_class(labels, groups):
        ordered = sorted(members, key=places.__getitem__)
        if not tested & members and len(members) > 1:
            tested.add(ordered[0])
        elif members <= tested:
            tested.discard(ordered[-1])
    return np.array([group in tested for group in groups], dtype=np.bool_)


def split_by_number(labels: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.bool_]:
    """Choose the test images of a fixed set by their numbers: a fifth of each class, drawn with `SPLIT_SEED`.

    It takes at least one image of a class and never all. Images with the same key have the same content and stay on one
    side, whatever their labels.

    Args:
        labels: [N] class indices.
        keys: N content keys.

    Returns:
        Booleans [N], true for a test image.
    """
    _, first, group = np.unique(np.array(keys, dtype=np.str_), return_index=True, return_inverse=True)
    # numpy numbers the groups by their keys; numbering them by first appearance makes the split one of the order alone
    appearance = np.argsort(first, kind="stable")
    rank = np.empty_like(appearance)
    rank[appearance] = np.arange(len(appearance))
    group, group_labels = rank[group], labels[first[appearance]]
    in_test = np.zeros(len(group_labels), dtype=np.bool_)
    for label in np.unique(group_labels).tolist():
        members = np.flatnonzero(group_labels == label)
        count = min(max(round(TEST_SHARE * len(members)), 1), len(members) - 1)
        order = np.random.default_rng(derive_seed(SPLIT_SEED, "split", label)).permutation(len(members))
        in_test[members[order[:count]]] = True
    return in_test[group]


def keep_apart(
    labels: NDArray[np.int64], groups: Sequence[str], test: NDArray[np.bool_], trained: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return the test images of a drawn split, changed so that none belongs to a group that was trained on before.

    A class that so loses its last test image gives the group with the lowest hash among those never trained on, unless
    that is its only group.

    Args:
        labels: [N] class indices.
        groups: N keys; images with the same key stay on one side.
        test: [N] the split as drawn.
        trained: [N] whether an image, or another of its patient, was trained on.
    """
    never_tested = {group for group, known in zip(groups, trained.tolist(), strict=True) if known}
    tested = {group for group, chosen in zip(groups, test.tolist(), strict=True) if chosen} - never_tested
    for members in _by_class(labels, groups):
        free = members - never_tested
        if not tested & members and free and len(members) > 1:
            tested.add(min(free, key=lambda group: fraction(SPLIT_SEED, group)))
    return np.array([group in tested for group in groups], dtype=np.bool_)


def draw_per_class(
    labels: NDArray[np.int64], groups: Sequence[str], per_class: int, *purpose: str | int
) -> NDArray[np.int64]:
    """Draw the indices, ascending, of `per_class` images of each class, or of all if it has fewer.

    Args:
        labels: [N] class indices.
        groups: N keys, by whose hashes with `purpose` images are drawn, group by group; fewer are a subset of more.
            Empty if each image stands alone: then images are drawn by their numbers.
        per_class: how many.
        purpose: seed and purpose of the draw.
    """
    places = np.array([fraction(*purpose, group) for group in groups])
    drawn = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if groups:
            order = np.argsort(places[members], kind="stable")
        else:
            order = np.random.default_rng(derive_seed(*purpose, label)).permutation(len(members))
        drawn.append(members[order[:per_class]])
    return np.sort(np.concatenate(drawn))


def draw_groups_per_class(
    labels: NDArray[np.int64], groups: Sequence[str], per_class: int, *purpose: str | int
) -> NDArray[np.int64]:
    """Draw whole groups, by their hashes with `purpose`, until they hold up to `per_class` images of each class.

    A group with more images of a class than are still wanted is passed over, so that a class can get fewer.

    Returns:
        Indices [M], ascending.
    """
    sizes: dict[int, dict[str, int]] = {}
    for label, group in zip(labels.tolist(), groups, strict=True):
        of_class = sizes.setdefault(label, {})
        of_class[group] = of_class.get(group, 0) + 1
    places = {group: fraction(*purpose, group) for group in set(groups)}
    chosen: set[str] = set()
    for label in sorted(sizes):
        _fill(chosen, sizes[label], per_class, places)
    return np.flatnonzero([group in chosen for group in groups])


def _fill(chosen: set[str], sizes: Mapping[str, int], wanted: int, places: Mapping[str, float]) -> None:
    left = wanted - sum(size for group, size in sizes.items() if group in chosen)
    for group in sorted(sizes, key=places.__getitem__):
        if group not in chosen and sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]


def _by_class(labels: NDArray[np.int64], groups: Sequence[str]) -> list[set[str]]:
    """Return the groups of each class that has images, in the order of the classes."""
    members: dict[int, set[str]] = {}
    for label, group in zip(labels.tolist(), groups, strict=True):
        members.setdefault(label, set()).add(group)
    return [members[label] for label in sorted(members)]
