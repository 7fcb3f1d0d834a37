from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.methods.base import plan_steps
from dynammo_core.plan import Evaluate, Fit, Remember, Stage, nothing


class Planner:
    """Task t has one training stage for each number of rounds in rounds[t], then an evaluation."""

    def __init__(self, rounds: Sequence[Sequence[int]]) -> None:
        self.rounds = rounds

    def all_stages(self, task: int) -> Sequence[Stage]:
        fits = (
            Fit(f"fit{i}", down=("*",), optimisation=Optimisation(rounds=count), learns_from=nothing, loss=nothing)
            for i, count in enumerate(self.rounds[task])
        )
        return (*fits, Evaluate(down=("*",)))


def test_steps_by_hand() -> None:
    steps = plan_steps(Planner([[2], [1, 2]]), tasks=2)
    assert [(step.index, step.task, step.stage.name, step.round, step.is_last_round) for step in steps] == [
        (0, 0, "fit0", 0, False),
        (1, 0, "fit0", 1, True),
        (2, 0, "evaluate", 0, True),
        (3, 1, "fit0", 0, True),
        (4, 1, "fit1", 0, False),
        (5, 1, "fit1", 1, True),
        (6, 1, "evaluate", 0, True),
    ]


@given(rounds=st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=5))
def test_every_stage_ends_once_in_each_task(rounds: list[list[int]]) -> None:
    steps = plan_steps(Planner(rounds), len(rounds))
    assert [step.index for step in steps] == list(range(sum(map(sum, rounds)) + len(rounds)))
    assert [(s.task, s.stage.name) for s in steps if s.is_last_round] == [
        (task, stage.name) for task in range(len(rounds)) for stage in Planner(rounds).all_stages(task)
    ]


def test_a_stage_without_training_goes_to_the_sites_once() -> None:
    assert Remember(down=()).rounds == 1
    assert plan_steps(Planner([[7]]), 1)[0].stage.rounds == 7


def test_functions_are_compared_by_nothing_and_shown_nowhere() -> None:
    one, other = (
        Fit("fit", down=("*",), optimisation=Optimisation(), learns_from=choose, loss=nothing)
        for choose in (nothing, print)
    )
    assert one == other
    assert hash(one) == hash(other)
    assert "function" not in repr(one)
    assert one != replace(one, down=("extractor.*",))


def test_fields_for_logs() -> None:
    step = plan_steps(Planner([[3]]), 1)[1]
    assert step.as_fields() == {"task": 0, "stage": "fit0", "round": 1, "rounds": 3}
