from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.data.index.sides import (
    draw_groups_per_class,
    draw_per_class,
    fraction,
    keep_apart,
    split_by_group,
    split_by_number,
)

images = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), min_size=1, max_size=100)


def unzipped(drawn: list[tuple[int, int]]) -> tuple[np.ndarray, list[str]]:
    labels, groups = zip(*drawn, strict=True)
    return np.array(labels), [f"patient {group}" for group in groups]


def in_test(drawn: list[tuple[int, int]]) -> set[str]:
    labels, groups = unzipped(drawn)
    return {group for group, chosen in zip(groups, split_by_group(labels, groups).tolist(), strict=True) if chosen}


# --- by the hash of a group


@given(images)
def test_a_group_is_on_one_side_whatever_its_labels(drawn: list[tuple[int, int]]) -> None:
    labels, groups = unzipped(drawn)
    sides = {*zip(groups, split_by_group(labels, groups).tolist(), strict=True)}
    assert len(sides) == len({*groups})


@given(images, st.randoms())
def test_neither_order_nor_number_decides(drawn: list[tuple[int, int]], random: object) -> None:
    shuffled = [*drawn]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert in_test(drawn) == in_test(shuffled)


@given(st.lists(st.integers(0, 400), min_size=2, max_size=60), st.lists(st.integers(401, 800), max_size=60))
def test_images_that_arrive_move_none_into_the_test(before: list[int], arriving: list[int]) -> None:
    first, second = (in_test([(0, group) for group in groups]) for groups in (before, before + arriving))
    known = {f"patient {group}" for group in before}
    if len(known) > 1 and any(fraction(0, group) >= 0.2 for group in known):
        assert not (known - first) & second


def test_a_fifth_of_many_groups_is_tested() -> None:
    share = len(in_test([(0, group) for group in range(10_000)])) / 10_000
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 10_000) ** 0.5  # four standard deviations of a binomial share


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True))
def test_a_class_of_two_groups_has_one_on_each_side(groups: list[int]) -> None:
    assert 0 < len(in_test([(0, group) for group in groups])) < len(groups)


def test_a_single_group_is_trained_on() -> None:
    assert not any(in_test([(0, group)]) for group in range(50))


# --- what was trained on


@given(images, st.sets(st.integers(0, 60)))
def test_nothing_trained_is_tested_and_a_class_with_a_choice_keeps_a_test(
    drawn: list[tuple[int, int]], known: set[int]
) -> None:
    labels, groups = unzipped(drawn)
    trained = np.array([int(group.split()[1]) in known for group in groups])
    test = keep_apart(labels, groups, split_by_group(labels, groups), trained)
    assert not (test & trained).any()
    for label in set(labels.tolist()):
        of_class = labels == label
        free = {group for group, mine in zip(groups, (of_class & ~trained).tolist(), strict=True) if mine}
        if free and len({group for group, mine in zip(groups, of_class.tolist(), strict=True) if mine}) > 1:
            assert (test & of_class).any()


def test_groups_that_were_trained_on_leave_the_test_and_the_next_free_one_takes_their_place() -> None:
    groups = [f"patient {number}" for number in range(60)]
    labels = np.zeros(60, dtype=np.int64)
    by_hash = sorted(groups, key=lambda group: fraction(0, group))
    test = split_by_group(labels, groups)
    drawn = [group for group in by_hash if test[groups.index(group)]]
    assert 2 < len(drawn) < 40
    for known, expected in (
        (drawn[:1], set(drawn[1:])),  # the others stay
        (by_hash[:40], {by_hash[40]}),  # the test is gone, and the lowest hash never trained on stands in
        (groups, set()),
    ):
        trained = np.array([group in known for group in groups])
        kept = keep_apart(labels, groups, test, trained)
        assert {group for group, tested in zip(groups, kept.tolist(), strict=True) if tested} == expected


# --- by numbers, for fixed sets


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200))
def test_a_fifth_of_each_class_is_tested_on(labels: list[int]) -> None:
    test = split_by_number(np.array(labels), [str(i) for i in range(len(labels))])
    counts = Counter(label for label, chosen in zip(labels, test.tolist(), strict=True) if chosen)
    for label, count in Counter(labels).items():
        # at least one and never all; of a single image none can be taken
        assert counts[label] == min(max(round(0.2 * count), 1), count - 1)


@given(images)
def test_equal_images_stay_on_one_side(drawn: list[tuple[int, int]]) -> None:
    labels, contents = unzipped(drawn)
    sides = {*zip(contents, split_by_number(labels, contents).tolist(), strict=True)}
    assert len(sides) == len(set(contents))


def test_a_split_by_number_depends_on_the_order_and_not_on_the_keys() -> None:
    labels = np.repeat(np.arange(3), 20)
    ascending = split_by_number(labels, [f"{i:03d}" for i in range(60)])
    descending = split_by_number(labels, [f"{99 - i:03d}" for i in range(60)])
    assert (ascending == descending).all()
    assert np.flatnonzero(ascending)[0] < 20 <= np.flatnonzero(ascending)[-1]


# --- some of each class


@given(images, st.integers(1, 8), st.integers(0, 99))
def test_fewer_are_a_subset_of_more_and_arrivals_change_little(
    drawn: list[tuple[int, int]], per_class: int, seed: int
) -> None:
    labels, groups = unzipped(drawn)
    some, more = (set(draw_per_class(labels, groups, count, seed).tolist()) for count in (per_class, per_class + 2))
    assert some <= more
    counts = Counter(labels[sorted(some)].tolist())
    assert counts == {label: min(per_class, count) for label, count in Counter(labels.tolist()).items()}


@given(images, st.integers(1, 8), st.integers(0, 99))
def test_groups_are_drawn_whole(drawn: list[tuple[int, int]], per_class: int, seed: int) -> None:
    labels, groups = unzipped(drawn)
    chosen = set(draw_groups_per_class(labels, groups, per_class, seed).tolist())
    taken = {groups[i] for i in chosen}
    assert chosen == {i for i, group in enumerate(groups) if group in taken}
