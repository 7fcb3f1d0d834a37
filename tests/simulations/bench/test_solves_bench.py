"""Both ways of a solve that the benchmark times give one answer."""

from __future__ import annotations

import pytest

from simulations.bench.solves import sent_bytes, solve_cost


@pytest.mark.parametrize("images", [60, 20])
def test_both_ways_give_one_answer(images: int) -> None:
    cost = solve_cost(40, images, 1, 1)
    assert cost.images == images and cost.difference < 1e-9
    assert min(cost.eigh, cost.own) > 0


def test_bytes_are_those_of_the_shape_that_travels() -> None:
    assert sent_bytes(4031, 80) == (8 * 4032 * 4033 // 2, 8 * 70 * 4031, 4 * 70 * 4031)
    assert len(set(sent_bytes(100, 1000))) == 1
