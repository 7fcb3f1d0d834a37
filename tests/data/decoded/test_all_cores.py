"""Several threads give what one gives, in order, with few images at a time, and say how far they are."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
from torch import Tensor

from dynammo_core.data.decoded import all_cores, progress
from dynammo_core.data.decoded.all_cores import AHEAD, in_order
from dynammo_core.data.decoded.progress import Decoding, listening
from dynammo_core.support.errors import DataError
from dynammo_core.support.processes import usable_cores


def late_if_early(index: int) -> Tensor:
    """The first take longest, so that threads finish in another order."""
    time.sleep(0.02 / (1 + index))
    return torch.tensor(index)


def test_results_come_in_the_order_of_the_indices() -> None:
    order = [5, 0, 3, 3, 1]
    assert [int(one) for one in in_order(late_if_early, order, workers=4)] == order
    assert list(in_order(late_if_early, [])) == []


def test_a_slow_consumer_does_not_let_images_pile_up() -> None:
    done: list[int] = []

    def read(index: int) -> Tensor:
        done.append(index)
        return torch.tensor(index)

    images = in_order(read, range(1000), workers=2)
    next(images)
    time.sleep(0.1)
    assert len(done) <= 2 * AHEAD + 1
    images.close()


def test_the_first_error_in_order_is_raised_and_no_more_is_begun() -> None:
    begun: list[int] = []

    def read(index: int) -> Tensor:
        begun.append(index)
        if index >= 3:
            raise DataError(f"image {index} is broken")
        return late_if_early(index)

    images = in_order(read, range(1000), workers=2)
    with pytest.raises(DataError, match="image 3 is broken"):
        list(images)
    assert len(begun) < 100


def test_threads_are_as_many_as_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 7})
    assert usable_cores() == 3
    threads = set()
    barrier = threading.Barrier(3, timeout=10)

    def read(index: int) -> Tensor:
        threads.add(threading.get_ident())
        barrier.wait()  # nobody goes on before all three are at work
        return torch.tensor(index)

    assert len(list(in_order(read, range(3)))) == 3
    assert len(threads) == 3
    monkeypatch.setattr(all_cores, "MOST_WORKERS", 1)
    threads.clear()
    barrier = threading.Barrier(1)
    assert len(list(in_order(read, range(3)))) == 3
    assert len(threads) == 1


def test_listeners_hear_how_far_it_is_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    heard: list[Decoding] = []
    with listening(heard.append):
        list(in_order(lambda index: torch.tensor(index), range(4), workers=1))
    list(in_order(lambda index: torch.tensor(index), range(4), workers=1))  # nobody listens any more
    assert [(one.done, one.total) for one in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert heard[1].rate == pytest.approx(2 / 20)
    assert heard[1].seconds_left == pytest.approx(20)
    assert heard[-1].seconds_left == 0


def test_what_is_done_at_once_is_not_worth_a_word() -> None:
    heard: list[Decoding] = []
    with listening(heard.append):
        list(in_order(lambda index: torch.tensor(index), range(4)))
    assert heard == []
