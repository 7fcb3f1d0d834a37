"""Stacked sites learn exactly what each would learn alone: answers, gradients, batch-norm statistics and weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from dynammo_core.configuration.settings import BackboneSettings, Optimisation
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.heads import OTHERS, CosineHead, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, travelling_names
from dynammo_core.models.stacked_adapters import in_turns, stack, unstack
from dynammo_core.support.seeding import seeded_generator, seeded_initialisation
from dynammo_core.training import fit, train_only

SITES, BATCH, HEAD = 3, 6, "auxiliary"
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=0).double().freeze()


def site(backbone: Backbone, number: int, *, norm: str = "batch", padding: int = 1) -> IncrementalModel:
    """In float64, so that another order of sums is told from another result; each site has weights of its own."""
    model = IncrementalModel(backbone)
    assert isinstance(model.extractor, AdaptedBackbone)
    with seeded_initialisation("site", number):
        model.extractor.adapters = AdapterSet(backbone.channels, 0.3 + number, padding, norm).double()
        model.heads[HEAD] = LinearHead(backbone.feature_dim, (0, 1, 2, OTHERS)).double()
    return model


def batches(number: int, count: int = 4, size: int = 48) -> list[Batch]:
    generator = seeded_generator("images", number)
    shape = (BATCH, 3, size, size)
    images = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(own, torch.randint(0, 5, (BATCH,), generator=generator)) for own in images]


def taking_turns(given: Sequence[Sequence[Batch]]) -> list[Batch]:
    return [(in_turns([x for x, _ in now]), in_turns([y for _, y in now])) for now in zip(*given, strict=True)]


def loss(model: IncrementalModel, inputs: Tensor, labels: Tensor) -> Tensor:
    head = model.head(HEAD)
    return nn.functional.cross_entropy(head(model.extractor(inputs)), head.targets(labels))


def learn(model: IncrementalModel, given: Sequence[Batch], how: Optimisation, sites: int = 1) -> None:
    def epoch(_: int) -> Iterator[Batch]:
        return iter(given)

    parameters = train_only(model, set(travelling_names(model)))
    fit(parameters, lambda inputs, labels: sites * loss(model, inputs, labels), epoch, how, round_=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("norm", "padding"), [("batch", 1), ("batch", 0), ("group", 1)])
def test_epochs_together_are_epochs_alone(backbone: Backbone, optimizer: str, norm: str, padding: int) -> None:
    how = Optimisation.model_validate(
        {"epochs": 2, "learning_rate": 0.02, "weight_decay": 0.1, "momentum": 0.9, "optimizer": optimizer}
    )
    alone = [site(backbone, number, norm=norm, padding=padding) for number in range(SITES)]
    together = copy.deepcopy(alone, {id(backbone): backbone})
    given = [batches(number) for number in range(SITES)]
    stacked = stack(together, HEAD)
    learn(stacked, taking_turns(given), how, SITES)
    unstack(stacked, together)
    for model, twin, own in zip(alone, together, given, strict=True):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        learn(model, own, how)
        for name in travelling_names(model):
            torch.testing.assert_close(twin.state_dict()[name], model.state_dict()[name], rtol=1e-9, atol=1e-11)
            assert not torch.equal(before[name], model.state_dict()[name]), name


def test_answers_and_gradients_are_those_of_each_site(backbone: Backbone) -> None:
    models = [site(backbone, number) for number in range(SITES)]
    given = [batches(number, count=1)[0] for number in range(SITES)]
    stacked = stack(models, HEAD)
    for model in (*models, stacked):
        train_only(model, set(travelling_names(model)))
    images = in_turns([images for images, _ in given])
    logits = stacked.head(HEAD)(stacked.extractor(images))
    (SITES * loss(stacked, images, in_turns([labels for _, labels in given]))).backward()  # type: ignore[no-untyped-call]
    gradients = dict(stacked.named_parameters())
    for number, (model, (own, labels)) in enumerate(zip(models, given, strict=True)):
        torch.testing.assert_close(logits[number::SITES], model.head(HEAD)(model.extractor(own)))
        loss(model, own, labels).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = gradients[name].grad
                assert gradient is not None and parameter.grad is not None
                torch.testing.assert_close(gradient.chunk(SITES)[number].view_as(parameter), parameter.grad)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
def test_maps_lie_in_memory_as_they_came(backbone: Backbone, layout: torch.memory_format) -> None:
    """A backbone gets what it is laid out for: another layout would be brought into order at each convolution."""
    extractor = stack([site(backbone, 0), site(backbone, 1)], HEAD).extractor
    assert isinstance(extractor, AdaptedBackbone) and extractor.adapters is not None
    maps = torch.randn(4, backbone.channels[0], 6, 6, dtype=torch.float64).contiguous(memory_format=layout)
    assert extractor.adapters[0](maps).is_contiguous(memory_format=layout)


def test_what_one_site_sees_reaches_no_other(backbone: Backbone) -> None:
    how = Optimisation(epochs=1, learning_rate=0.1)
    ends = []
    for other in (1, 2):
        models = [site(backbone, 0), site(backbone, 1)]
        stacked = stack(models, HEAD)
        learn(stacked, taking_turns([batches(0), batches(other)]), how, sites=2)
        unstack(stacked, models)
        ends.append([model.state_dict() for model in models])
    (first, second), (first_again, other_second) = ends
    for name in travelling_names(models[0]):
        assert torch.equal(first[name], first_again[name]), name
        assert not torch.equal(second[name], other_second[name]), name


def test_sites_are_as_before_until_unstacked(backbone: Backbone) -> None:
    models = [site(backbone, number) for number in range(2)]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    stacked = stack(models, HEAD)
    learn(stacked, taking_turns([batches(0), batches(1)]), Optimisation(epochs=1), sites=2)
    for model, then in zip(models, before, strict=True):
        assert all(torch.equal(tensor, then[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_stacked_is_refused(backbone: Backbone) -> None:
    bare = IncrementalModel(backbone)
    bare.heads[HEAD] = LinearHead(backbone.feature_dim, (0, 1))
    cosine = site(backbone, 0)
    cosine.heads[HEAD] = CosineHead(backbone.feature_dim, (0, 1))
    for model in (bare, cosine):
        with pytest.raises(ValueError, match="adapters and a linear head"):
            stack([model, model], HEAD)
    stranger = site(copy.deepcopy(backbone), 1)
    with pytest.raises(ValueError, match="share one frozen backbone"):
        stack([site(backbone, 0), stranger], HEAD)
    with pytest.raises(RuntimeError, match="equal size"):
        in_turns([torch.zeros(3, 2), torch.zeros(4, 2)])
