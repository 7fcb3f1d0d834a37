from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import TaskSettings
from dynammo_core.data.sites.arrivals import Arrivals, build_arrivals
from dynammo_core.data.sites.site_partition import SitePartition
from dynammo_core.data.task_stream import TaskStream, build_task_stream
from dynammo_core.support.errors import ConfigError


def partition(owners: list[int], sites: int) -> SitePartition:
    """Each training image at the site that `owners` gives it."""
    parts = tuple(np.flatnonzero(np.array(owners, dtype=np.int64) == site) for site in range(sites))
    return SitePartition(parts, parts)


def arrivals(
    stream: TaskStream,
    labels: list[int],
    owners: list[int],
    *,
    sites: int = 4,
    max_delay: int | None = None,
    seed: int = 1,
) -> Arrivals:
    """Asynchronous where a longest delay is given."""
    late = {} if max_delay is None else {"arrival": "asynchronous", "max_delay": max_delay}
    settings = FederationSettings.model_validate({"sites": sites, **late})
    return build_arrivals(stream, np.array(labels, dtype=np.int64), partition(owners, sites), settings, seed)


EVERYWHERE = [label for label in range(8) for _ in range(4)], [0, 1, 2, 3] * 8
"""Eight classes, an image of each at each of four sites."""


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_synchronous_arrival_is_the_stream_itself(classes: int, size: int, seed: int) -> None:
    stream = build_task_stream(TaskSettings(sizes=min(size, classes), class_order="shuffled"), classes, seed)
    made = arrivals(stream, list(range(classes)) * 4, [site for site in range(4) for _ in range(classes)])
    for site in range(4):
        for task in range(len(stream)):
            assert made.new(site, task) == stream.classes(task)
            assert made.seen(site, task) == stream.seen(task)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(0, 5),
    st.integers(0, 2**40),
)
def test_a_class_is_late_by_no_more_than_allowed_and_on_time_at_one_holder(
    images: list[tuple[int, int]], max_delay: int, seed: int
) -> None:
    stream = TaskStream(((0, 1), (2, 3, 4), (5,), (6, 7)))
    labels, owners = map(list, zip(*images, strict=True))
    made = arrivals(stream, labels, owners, max_delay=max_delay, seed=seed)
    last = len(stream) - 1
    for label in range(8):
        first, holders = stream.task_of(label), {owner for other, owner in images if other == label}
        reached = [made.task_of(site, label) for site in range(4)]
        assert all(first <= task <= min(first + max_delay, last) for task in reached)
        assert first in [reached[site] for site in holders or range(4)]
    for site in range(4):
        tasks = [made.new(site, task) for task in range(last + 1)]
        assert sorted(sum(tasks, ())) == list(range(8)), "each class reaches each site once"
        for task in range(last + 1):
            assert set(made.seen(site, task)) == set(sum(tasks[: task + 1], ()))


def test_delays_are_uniform_and_drawn_for_each_site_and_class() -> None:
    stream = TaskStream(tuple((label,) for label in range(8)))
    drawn = [arrivals(stream, *EVERYWHERE, max_delay=2, seed=seed) for seed in range(100)]
    delays = [made.task_of(site, label) - label for made in drawn for site in range(4) for label in range(6)]
    # one of four sites is on time; the delays of the other three are 0, 1 or 2: of 2,400, each late one 1/4, which has
    # a standard deviation of sqrt(2400 * 3 / 16) = 21
    assert abs(delays.count(1) - 600) < 100
    assert abs(delays.count(2) - 600) < 100
    patterns = {tuple(made.task_of(site, label) - label for site in range(4)) for made in drawn for label in range(6)}
    assert {(0, 1, 2, 0), (2, 1, 0, 0), (1, 1, 0, 2)} <= patterns


def test_who_has_most_of_a_class_is_most_often_on_time() -> None:
    stream = TaskStream(((0,), (1,)))
    on_time = [0, 0]
    for seed in range(300):
        made = arrivals(stream, [0] * 10, [0] * 9 + [1], sites=2, max_delay=1, seed=seed)
        for site in range(2):
            on_time[site] += made.task_of(site, 0) == 0
    # drawn by its images, or undelayed by the lot of 0 or 1: 0.9 + 0.1 / 2 and 0.1 + 0.9 / 2; deviations 3.8 and 8.6
    assert abs(on_time[0] - 285) < 15
    assert abs(on_time[1] - 165) < 35


def test_the_seed_decides_and_other_sites_classes_do_not() -> None:
    stream = TaskStream(tuple((label,) for label in range(8)))
    one, same, other = (arrivals(stream, *EVERYWHERE, max_delay=3, seed=seed) for seed in (1, 1, 2))
    assert one.delays == same.delays != other.delays
    labels, owners = EVERYWHERE
    less = arrivals(stream, labels[:-4], owners[:-4], max_delay=3)
    assert less.delays == {key: delay for key, delay in one.delays.items() if key[1] != 7}


def test_a_class_of_no_task_reaches_no_site() -> None:
    made = arrivals(TaskStream(((0,), (1,))), *EVERYWHERE, max_delay=1)
    with pytest.raises(ConfigError, match="class 2 is in no task"):
        made.task_of(0, 2)
    assert all(label in (0, 1) for _, label in made.delays)
