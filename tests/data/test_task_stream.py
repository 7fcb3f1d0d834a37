from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynammo_core.configuration.settings import TaskSettings
from dynammo_core.data.task_stream import build_task_stream
from dynammo_core.support.errors import ConfigError


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["fixed", "shuffled"]), st.integers(0, 2**40))
def test_one_size_covers_every_class_once(size: int, extra: int, order: str, seed: int) -> None:
    count = size + extra - 1
    stream = build_task_stream(TaskSettings(sizes=size, class_order=order), count, seed)
    assert len(stream) == -(-count // size)
    assert sorted(stream.seen(len(stream) - 1)) == list(range(count))
    assert all(len(stream.classes(t)) == size for t in range(len(stream) - 1))
    for task in range(len(stream)):
        assert stream.seen(task)[-len(stream.classes(task)) :] == stream.classes(task)
        assert all(stream.task_of(label) == task for label in stream.classes(task))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 9))
def test_sizes_for_each_task_are_kept(sizes: list[int], left_over: int) -> None:
    stream = build_task_stream(TaskSettings(sizes=tuple(sizes)), sum(sizes) + left_over, 0)
    assert [len(stream.classes(t)) for t in range(len(stream))] == sizes
    assert stream.seen(len(stream) - 1) == tuple(range(sum(sizes)))


def test_a_rest_becomes_a_smaller_last_task() -> None:
    assert build_task_stream(TaskSettings(sizes=3), 7, 0).tasks == ((0, 1, 2), (3, 4, 5), (6,))


def test_all_classes_may_come_in_one_task_whatever_their_number() -> None:
    for settings, expected in (
        (TaskSettings(sizes="all"), (0, 1, 2)),
        (TaskSettings(sizes="all", class_order=(2, 0)), (2, 0)),
    ):
        assert build_task_stream(settings, 3, 0).tasks == (expected,)


def test_a_shuffled_order_is_the_one_of_the_literature() -> None:
    # the class order of CIFAR100 for seed 1993, as printed in the logs of iCaRL's successors
    stream = build_task_stream(TaskSettings(sizes=10, class_order="shuffled"), 100, 1993)
    assert stream.classes(0) == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)


def test_an_explicit_order_is_the_order_of_arrival() -> None:
    settings = TaskSettings(sizes=(1, 3), class_order=(3, 1, 0, 2))
    assert build_task_stream(settings, 4, 7).tasks == ((3,), (1, 0, 2))


def test_an_explicit_order_may_name_its_classes() -> None:
    names = ("normal", "pneumonia", "2", "effusion")
    settings = TaskSettings(sizes=(1, 2), class_order=["2", 3, "pneumonia"])
    assert build_task_stream(settings, names, 7).tasks == ((2,), (3, 1))
    for order, said in (
        (("pneumona",), r"unknown class 'pneumona' \(did you mean 'pneumonia'\?\)\. Accepted: normal, pneumonia, 2"),
        (("normal", 0), r"has a class twice, once by name and once by index"),
    ):
        with pytest.raises(ConfigError, match=said):
            build_task_stream(TaskSettings(sizes=1, class_order=order), names, 7)
    with pytest.raises(ValidationError, match="each class must be named once, and 'normal' is there 2 times"):
        TaskSettings(class_order=["effusion", "normal", "normal"])
    for order in ((), (-1,)):
        with pytest.raises(ValidationError, match="at least one class, by its name or its index from 0"):
            TaskSettings(class_order=order)


def test_classes_that_an_explicit_order_leaves_out_take_no_part() -> None:
    assert build_task_stream(TaskSettings(sizes=2, class_order=(8, 5, 2)), 9, 0).tasks == ((8, 5), (2,))


def test_an_explicit_order_has_classes_for_every_task_and_only_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"names class 4, and the data set has 4 classes\. Accepted: .* from 0 to 3"):
        build_task_stream(TaskSettings(sizes=2, class_order=(0, 4)), 4, 0)
    with pytest.raises(ConfigError, match=r"2 \+ 2 = 4 classes, and tasks\.class_order names 3.*at most 3"):
        build_task_stream(TaskSettings(sizes=(2, 2), class_order=(0, 1, 2)), 9, 0)


@pytest.mark.parametrize(
    ("sizes", "message"), [((2, 3), r"2 \+ 3 = 5 classes.*has 4"), (5, "one task of 5 classes.*has 4")]
)
def test_more_classes_than_there_are_is_refused(sizes: int | tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_task_stream(TaskSettings(sizes=sizes), 4, 0)


def test_a_class_of_no_task_is_named() -> None:
    stream = build_task_stream(TaskSettings(sizes=(1, 2)), 5, 0)
    with pytest.raises(ConfigError, match=r"class 3 is in no task\. Accepted: 0, 1, 2"):
        stream.task_of(3)
