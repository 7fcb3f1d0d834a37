"""Fisher merging: the information against what it means, and what weighing by it must give."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo_core.merging.averages import merge_mean
from dynammo_core.merging.fisher import FLOOR, comparable, diagonal_fisher, merge_fisher
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.models.adapters import Adapter
from dynammo_core.support.seeding import seeded_generator, seeded_initialisation

NOBODY = torch.zeros(0)
"""Labels, which are not read."""


def network() -> tuple[nn.Module, list[str]]:
    """An adapter whose batch norms have seen something, and a head of three rows; float64, to differentiate twice."""
    with seeded_initialisation("fisher"):
        adapter = Adapter(4, alpha=0.7)
        for _ in range(5):
            adapter(torch.randn(8, 4, 5, 5))
        model = nn.Sequential(adapter, nn.Flatten(), nn.Linear(100, 3)).double().eval()
    return model, [name for name, _ in model.named_parameters() if name.startswith("0.")]


def images(count: int) -> Tensor:
    return torch.randn(count, 4, 5, 5, dtype=torch.float64, generator=seeded_generator("images"))


def fisher(batches: Sequence[Tensor]) -> dict[str, Tensor]:
    model, names = network()
    with torch.no_grad():  # as a site computes whatever it summarises
        return diagonal_fisher(model, names, model, [(batch, NOBODY) for batch in batches])


def test_of_a_linear_head_it_is_known() -> None:
    # d log p_y / d W[r, d] = (1[y = r] - p_r) x_d, so E_y of its square is p_r (1 - p_r) x_d^2.
    head, inputs = nn.Linear(2, 3).double(), torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]]).double()
    p = head(inputs).softmax(dim=1).detach()
    found = diagonal_fisher(head, ["weight", "bias"], head, [(inputs, NOBODY)])
    expected = torch.einsum("br,bd->rd", p * (1 - p), inputs.square()) / 3
    torch.testing.assert_close(found["weight"], expected)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(dim=0))


def test_it_tells_how_much_answers_change() -> None:
    """KL(p_w || p_{w + d}) = F d^2 / 2 + O(d^3) for a step d in one entry, which the Laplace approximation rests on."""
    (model, names), inputs, step = network(), images(6), 1e-4
    found = fisher([inputs])
    answers = model(inputs).log_softmax(dim=1).detach()
    for name in names:
        entries = model.get_parameter(name).data.view(-1)
        for entry in {0, entries.numel() // 2, entries.numel() - 1}:
            divergence = 0.0
            for sign in (1, -1):  # odd orders cancel
                entries[entry] += sign * step
                other = model(inputs).log_softmax(dim=1).detach()
                divergence += float((answers.exp() * (answers - other)).sum(dim=1).mean()) / 2
                entries[entry] -= sign * step
            assert 2 * divergence / step**2 == pytest.approx(found[name].view(-1)[entry].item(), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("sizes", [[3], [2, 4, 1]])
def test_batches_do_not_matter_and_running_statistics_stay(sizes: list[int]) -> None:
    whole, parts = fisher([images(sum(sizes))]), fisher(images(sum(sizes)).split(sizes))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)
    model, names = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    diagonal_fisher(model.train(), names, model, [(images(2), NOBODY)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Weighing by it

STATES = [
    {
        "0.alpha": torch.tensor(1.0 + k),
        "0.residual.0.weight": torch.randn(2, 2, generator=seeded_generator("state", k)),
        "0.residual.1.running_mean": torch.full((2,), 3.0 * k),
        "0.residual.1.running_var": torch.ones(2),
    }
    for k in range(3)
]
FISHERS = [
    {name: torch.rand(STATES[0][name].shape, generator=seeded_generator(k, name)) for name in list(STATES[0])[:2]}
    for k in range(3)
]


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_by_hand() -> None:
    # (1 * 1 + 3 * 5) / 4 = 4; an entry that one task alone needs is that task's, but for the floor; and where nobody
    # needs it, the mean.
    sets = [{"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.tensor([5.0, 6.0, 9.0])}]
    importance = [{"w": torch.tensor([1.0, 1.0, 0.0])}, {"w": torch.tensor([3.0, 0.0, 0.0])}]
    result = merge_fisher(TaskSets(sets, importance=importance))["w"]
    torch.testing.assert_close(result, torch.tensor([4.0, 2.0 + 4 * FLOOR, 6.0]))


@given(factor=st.sampled_from([1e-9, 1e-3, 1.0, 50.0]))
def test_equal_information_gives_the_mean(factor: float) -> None:
    equal = [{name: factor * tensor for name, tensor in FISHERS[0].items()}] * 3
    close(merge_fisher(TaskSets(STATES, importance=equal)), merge_mean(TaskSets(STATES)))


@given(order=st.permutations(range(3)))
def test_the_order_of_tasks_does_not_matter(order: list[int]) -> None:
    result = merge_fisher(TaskSets([STATES[k] for k in order], importance=[FISHERS[k] for k in order]))
    close(result, merge_fisher(TaskSets(STATES, importance=FISHERS)))


def test_statistics_are_pooled_as_ever_and_every_entry_lies_between_those_merged() -> None:
    result, mean = merge_fisher(TaskSets(STATES, importance=FISHERS)), merge_mean(TaskSets(STATES))
    for name, tensor in result.items():
        if "running" in name:
            assert torch.equal(tensor, mean[name])
        else:
            stacked = torch.stack([state[name] for state in STATES])
            assert (stacked.amin(0) <= tensor).all()
            assert (tensor <= stacked.amax(0)).all()
            assert not torch.allclose(tensor, mean[name])


@given(factor=st.floats(1e-6, 1e6))
def test_no_task_outweighs_the_others_by_the_size_of_its_information(factor: float) -> None:
    made = comparable({name: factor * tensor for name, tensor in FISHERS[0].items()})
    close(made, comparable(FISHERS[0]))
    assert torch.cat([tensor.flatten() for tensor in made.values()]).square().mean().item() == pytest.approx(
        1, rel=1e-5
    )


def test_what_is_negative_counts_as_nothing_and_nothing_stays_nothing() -> None:
    # A square root of (0 + 4) / 2: 2 / sqrt(2).
    assert comparable({"w": torch.tensor([-7.0, 2.0])})["w"].tolist() == pytest.approx([0, 2**0.5])
    assert comparable({"w": torch.zeros(3)})["w"].tolist() == [0, 0, 0]
