from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torch.utils._python_dispatch import TorchDispatchMode

from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import travelling_names
from dynammo_core.support.seeding import seeded_generator, seeded_initialisation
from dynammo_core.training import fit, learning_rate, shuffled, train_only


def network() -> IncrementalModel:
    """A trainable small CNN with adapters and a head of three classes: about everything that can be trained."""
    model = IncrementalModel(build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=0))
    with seeded_initialisation(1):
        model.extractor.adapters = AdapterSet(model.extractor.backbone.channels, alpha=0.5)
        model.heads["classes"] = LinearHead(model.feature_dim, (0, 1, 2))
    return model


def loss_of(model: IncrementalModel, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model.head("classes")(model.extractor(images)), labels)


def epoch_of(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Three batches, other ones in each epoch."""
    generator = seeded_generator("epoch", epoch)
    sizes = (4, 4, 3)
    return [
        (torch.randn(n, 3, 16, 16, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    ]


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(epoch_of(epoch))


def train(model: IncrementalModel, names: set[str], how: Optimisation, round_: int = 0) -> float:
    parameters = train_only(model, names)
    return fit(parameters, lambda x, y: loss_of(model, x, y), batches, how, round_=round_)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """What training changed, but for the counters, which never travel."""
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    return {name for name in moved if "num_batches_tracked" not in name}


# Learning rate


def test_step_divides_by_ten_at_milestones_by_hand() -> None:
    # DynaMMo's stage 1: 0.01 up to epoch 70, then 0.001, 0.0001 from 130 and 0.00001 from 170 to the end at 200.
    paper = Optimisation(epochs=200, learning_rate=0.01, schedule="step", milestones=(70, 130, 170))
    rates = [learning_rate(paper, epoch) for epoch in (0, 69, 70, 129, 130, 169, 170, 199)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_cosine_by_hand() -> None:
    # 4 rounds of 2 epochs: (1 + cos(pi * epoch / 8)) / 2 is 1, 0.5 and (1 - sqrt(1/2)) / 2 at epochs 0, 4 and 6.
    how = Optimisation(rounds=4, epochs=2, learning_rate=0.2, schedule="cosine")
    assert learning_rate(how, 0) == 0.2
    assert learning_rate(how, 4) == pytest.approx(0.1)
    assert learning_rate(how, 6) == pytest.approx(0.2 * (1 - math.sqrt(0.5)) / 2)


def test_constant_needs_no_milestones() -> None:
    how = Optimisation(learning_rate=0.3, milestones=(1,))
    assert [learning_rate(how, epoch) for epoch in (0, 1, 100)] == [0.3] * 3


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_schedules_are_pytorchs_own(schedule: str) -> None:
    how = Optimisation(rounds=3, epochs=4, learning_rate=0.5, schedule=schedule, milestones=(2, 7, 8))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs: LRScheduler = MultiStepLR(optimizer, [2, 7, 8]) if schedule == "step" else CosineAnnealingLR(optimizer, 12)
    for epoch in range(12):
        assert learning_rate(how, epoch) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_milestones_count_over_all_rounds() -> None:
    # The loss w has the gradient 1, so each step without momentum takes away the rate. Round 0 has epochs 0 and 1 at
    # 0.8; round 1 epoch 2 at 0.08 and epoch 3 at 0.008, of two batches each.
    steps = Optimisation(rounds=2, epochs=2, learning_rate=0.8, schedule="step", milestones=(2, 3))
    plain = steps.model_copy(update={"momentum": 0.0, "weight_decay": 0.0})
    data = [(torch.zeros(1), torch.zeros(1))] * 2
    ends = []
    for round_ in range(2):
        w = nn.Parameter(torch.zeros(()))
        fit([w], lambda x, y, w=w: w + x.sum(), lambda _: iter(data), plain, round_=round_)  # type: ignore[misc]
        ends.append(w.item())
    assert ends == pytest.approx([-2 * (0.8 + 0.8), -2 * (0.08 + 0.008)])


# The loop


def naive_loop(model: IncrementalModel, how: Optimisation, round_: int) -> None:
    """What a tutorial would write, for the whole model in training mode."""
    model.train()
    decay = how.weight_decay
    optimizer: torch.optim.Optimizer
    if how.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=how.learning_rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=how.learning_rate, momentum=how.momentum, weight_decay=decay)
    scheduler = MultiStepLR(optimizer, [m - round_ * how.epochs for m in how.milestones])
    for epoch in range(how.epochs):
        for images, labels in epoch_of(epoch):
            optimizer.zero_grad()
            loss_of(model, images, labels).backward()
            optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("how", "round_"),
    [
        (Optimisation(epochs=3, learning_rate=0.05), 0),
        (Optimisation(epochs=3, schedule="step", milestones=(2,), momentum=0.5, weight_decay=0.1), 0),
        (Optimisation(epochs=3, optimizer="adam", learning_rate=1e-3, schedule="step", milestones=(4,)), 1),
    ],
    ids=["sgd", "sgd with steps", "adam, second round"],
)
def test_the_loop_is_a_plain_pytorch_loop_bit_for_bit(how: Optimisation, round_: int) -> None:
    ours, theirs = network(), network()
    start = snapshot(ours)
    train(ours, set(travelling_names(ours)), how, round_)
    naive_loop(theirs, how, round_)
    assert changed(ours, theirs.state_dict()) == set()
    assert changed(ours, start) == set(travelling_names(ours))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_proximal_term_is_a_penalty_on_the_distance_from_the_start(optimizer: str) -> None:
    how = Optimisation(epochs=2, optimizer=optimizer, learning_rate=0.05)  # type: ignore[arg-type]
    names = {"heads.classes.weight", "heads.classes.bias"}
    drawn, penalised, free = network(), network(), network()
    start = snapshot(penalised)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        distances = [(p - start[name]).square().sum() for name, p in penalised.named_parameters() if name in names]
        return loss_of(penalised, images, labels) + 0.5 / 2 * torch.stack(distances).sum()

    fit(train_only(penalised, names), loss, batches, how, round_=0)
    parameters = train_only(drawn, names)
    fit(parameters, lambda x, y: loss_of(drawn, x, y), batches, how, round_=0, proximal=0.5)
    train(free, names, how)
    for name in names:
        torch.testing.assert_close(drawn.state_dict()[name], penalised.state_dict()[name], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(drawn.state_dict()[name], free.state_dict()[name], atol=1e-3)


def test_private_gradients_are_drawn_back_too() -> None:
    # The gradient is always 1, without momentum: w = -r after a step, then r mu less far.
    w = nn.Parameter(torch.zeros(()))

    def ones(*_: Tensor) -> None:
        w.grad = torch.ones(())

    how = Optimisation(epochs=2, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    fit([w], lambda x, y: x, lambda _: iter([()]), how, round_=0, proximal=0.5, gradients=ones)
    assert w.item() == pytest.approx(-0.1 - 0.1 * (1 - 0.5 * 0.1))


def test_the_mean_loss_of_a_sample_in_the_last_epoch_is_returned() -> None:
    # Batches of 2 and 1 samples, of losses 2 + epoch and 8 + epoch: epoch 1 has the mean (2 * 3 + 1 * 9) / 3 = 5.
    def two_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.full((), 2.0 + epoch), torch.zeros(2)
        yield torch.full((), 8.0 + epoch), torch.zeros(1)

    w = nn.Parameter(torch.zeros(()))
    result = fit([w], lambda x, y: x + 0 * w, two_batches, Optimisation(epochs=2, weight_decay=0.0), round_=0)
    assert result == pytest.approx(5)


# What may change


def layers(names: list[str]) -> list[set[str]]:
    """The names, with both statistics of a batch norm together: a batch norm moves both or none."""
    pairs = [{n, n.replace("running_mean", "running_var")} for n in names if n.endswith("running_mean")]
    return pairs + [{n} for n in names if "running_" not in n]


@given(data=st.data())
def test_exactly_the_named_tensors_change(data: st.DataObject) -> None:
    model = network()
    options = layers(travelling_names(model))
    named = set(itertools.chain(*data.draw(st.lists(st.sampled_from(options), min_size=1, max_size=12))))
    named |= {"heads.classes.bias"}  # an optimiser wants a parameter
    before = snapshot(model)
    train(model, named, Optimisation(epochs=1, learning_rate=0.05))
    assert changed(model, before) == named


def test_nothing_stays_trainable_from_the_stage_before() -> None:
    model = network()
    train(model, set(travelling_names(model)), Optimisation(epochs=1))
    before = snapshot(model)
    train(model, {"heads.classes.weight"}, Optimisation(epochs=1))
    assert changed(model, before) == {"heads.classes.weight"}
    assert not any(module.training for module in model.modules())


def test_batches_normalise_themselves_only_where_statistics_are_named() -> None:
    model = network()
    first = "extractor.adapters.0.residual.1"
    train_only(model, {f"{first}.running_mean", f"{first}.running_var", "heads.classes.bias"})
    in_training = {name for name, module in model.named_modules() if module.training}
    assert in_training == {first}


def test_named_parameters_come_in_the_models_order() -> None:
    model = network()
    names = {"heads.classes.bias", "extractor.adapters.1.alpha", "extractor.backbone.prefix.block0.0.weight"}
    expected = [parameter for name, parameter in model.named_parameters() if name in names]
    chosen = train_only(model, names)
    assert len(chosen) == 3
    assert all(a is b for a, b in zip(chosen, expected, strict=True))


def test_a_frozen_backbone_survives_training_everything_that_travels() -> None:
    model = network()
    model.extractor.backbone.freeze()
    before = snapshot(model)
    train(model, set(travelling_names(model)), Optimisation(epochs=1, learning_rate=0.05))
    assert changed(model, before) == set(travelling_names(model))
    assert not any("backbone" in name for name in changed(model, before))


class Reads(TorchDispatchMode):
    """Counts the values that are read out of tensors, each of which would wait for a GPU."""

    count = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_loss_is_read_once_an_epoch_and_is_the_mean_over_samples() -> None:
    model, how = network(), Optimisation(epochs=2, learning_rate=1e-12)
    with Reads() as reads:
        loss = train(model, {"heads.classes.bias"}, how)
    assert reads.count == how.epochs
    values = [(float(loss_of(model, *batch).detach()), len(batch[1])) for batch in epoch_of(1)]
    assert loss == pytest.approx(sum(value * count for value, count in values) / sum(count for _, count in values))


# Batches


@given(count=st.integers(1, 200), size=st.integers(1, 50), seed=st.integers(0, 1000))
def test_an_epoch_sees_every_sample_once_and_ends_in_no_single_one(count: int, size: int, seed: int) -> None:
    indices = shuffled(count, size, seeded_generator(seed))
    assert sorted(torch.cat(indices).tolist()) == list(range(count))
    assert all(len(batch) == size for batch in indices[:-1])
    assert len(indices[-1]) <= size + 1
    assert len(indices[-1]) > 1 or count == 1


def test_another_epoch_has_another_order_and_the_same_seed_the_same() -> None:
    first, again, other = (torch.cat(shuffled(50, 8, seeded_generator("epoch", epoch))) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
