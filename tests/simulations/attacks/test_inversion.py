"""Updates are inverted where they can be, and what is compared is what it is called."""

from __future__ import annotations

import pytest
import torch
from small_runs import Finished, small_config
from torch import Tensor, nn

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Fit, LossContext
from dynammo_core.training import train_only
from dynammo_core.wire.protocol import names_up
from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import ignore_progress
from simulations.attacks.inversion import (
    attack_messages,
    class_means,
    gradient_distance,
    message_distance,
    seen_gradient,
)
from simulations.attacks.message import SiteMessage, ask_sites, easiest, first_step, some_labels, tiny
from simulations.attacks.reconstruction import MOST_DECIBELS, best_matches, decibels, reconstruct


@pytest.fixture(scope="module")
def run(finished: Finished) -> AuditedRun:
    return AuditedRun.open(finished("dynammo").path)


def message_of(run: AuditedRun) -> SiteMessage:
    experiment = tiny(run.experiment)
    step = first_step(experiment, lambda stage: isinstance(stage, Fit))
    assert step is not None
    (message,) = ask_sites(experiment, step)
    return message


def test_one_image_is_read_off_the_gradient_of_a_linear_layer(run: AuditedRun) -> None:
    """A row of the gradient is the image times a number, the bias's that number: nothing hides the image."""
    truth = run.records.samples.images[:1].float() / 255
    torch.manual_seed(1)
    layer = nn.Linear(truth.numel(), 4)
    parameters = list(layer.parameters())

    def loss(images: Tensor) -> Tensor:
        return nn.functional.cross_entropy(layer(images.flatten(1)), torch.tensor([2]))

    seen = [gradient.detach() for gradient in torch.autograd.grad(loss(truth), parameters)]
    start = torch.full_like(truth, 0.5)
    found = reconstruct(gradient_distance(loss, parameters, seen), start, iterations=300, smoothness=0.01)
    assert decibels(start, truth) < 12
    assert decibels(found, truth) > 25


def test_the_message_of_a_site_is_explained_by_its_images_and_no_others(run: AuditedRun) -> None:
    """The distance is that of the real update of the real site."""
    message = message_of(run)
    labels = some_labels(message.images, 8)
    assert sorted(message.images.labels.tolist()) == labels.tolist() == [0, 1]
    truth = torch.cat([message.images.of_class(label).images for label in labels.tolist()]).float() / 255
    distance = message_distance(message, labels)
    assert float(distance(truth).detach()) == pytest.approx(0, abs=1e-4)
    assert float(distance(class_means(run, labels)).detach()) > 0.1
    assert float(distance(truth.flip(0)).detach()) > 0.1


def test_what_one_step_shows_is_the_gradient() -> None:
    """Rate and weight decay are accounted for; the decay is so large that it would show."""
    experiment = tiny(Experiment(small_config("dynammo", {"method.adapt.weight_decay": 0.5})))
    step = first_step(experiment, lambda stage: isinstance(stage, Fit))
    assert step is not None
    (message,) = ask_sites(experiment, step)
    model, data = message.model(), experiment.config.data
    parameters = train_only(model, set(names_up(model, step.stage)))
    inputs = to_input(message.images.images, data.normalisation, experiment.device)
    assert isinstance(step.stage, Fit)
    loss = step.stage.loss(model, inputs, message.images.labels, LossContext(0))
    for seen, true in zip(seen_gradient(message), torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(seen, true, rtol=1e-3, atol=1e-4)


def test_the_run_itself_is_asked_for_the_message_with_the_fewest_images(run: AuditedRun) -> None:
    step = first_step(run.experiment, lambda stage: isinstance(stage, Fit))
    assert step is not None
    messages = ask_sites(run.experiment, step)
    sizes = [len(message.images) for message in messages]
    assert len(easiest(messages).images) == min(sizes) < max(sizes)
    assert [sum(message.report.class_counts) for message in messages] == sizes


def test_findings_and_pictures_of_both_settings(run: AuditedRun) -> None:
    outcome = attack_messages(run, iterations=8, tell=ignore_progress)
    assert [one.target for one in outcome.findings] == ["two images, one step", "as in the run"]
    labels = torch.tensor([0, 1])
    means = class_means(run, labels)
    guess = sum(best_matches(means, labels, message_of(run).images)[0]) / 2
    assert outcome.findings[0].guess == pytest.approx(guess)
    assert all(picture.png.startswith(b"\x89PNG") for picture in outcome.pictures)


def test_sums_are_no_update(finished: Finished) -> None:
    run = AuditedRun.open(finished("streaming_ridge").path)
    assert attack_messages(run, iterations=8, tell=ignore_progress).skipped == "no site sends trained weights"


def test_matches_are_the_nearest_of_the_same_class() -> None:
    """Off by 0.1 everywhere: 10 log10(1 / 0.01) = 20 dB. The equal image of the other class does not count."""
    images = torch.stack([torch.full((1, 8, 8), value) for value in (0, 51, 255)]).to(torch.uint8)
    truths = Samples(images, torch.tensor([0, 0, 1]), ("a", "b", "c"))
    ratios, nearest = best_matches(torch.full((1, 1, 8, 8), 0.1), torch.tensor([0]), truths)
    assert ratios == pytest.approx([20], abs=1e-3)
    ratios, nearest = best_matches(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]), truths)
    assert ratios == pytest.approx([10 * torch.log10(torch.tensor(1 / 0.64)).item(), MOST_DECIBELS], abs=1e-3)
    assert nearest.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.2, 1])


def test_few_labels_stand_for_many() -> None:
    """Of 6, 2 and 1 images, three: the first, the one in the middle and the last."""
    labels = torch.tensor([2, 1, 1, 0, 0, 0, 0, 0, 0])
    images = Samples(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), labels, tuple("abcdefghi"))
    assert some_labels(images, 3).tolist() == [0, 0, 2]
    assert some_labels(images, 20).tolist() == sorted(labels.tolist())


def test_noise_hides_the_gradient() -> None:
    """With differential privacy the very images behind a message do not explain it."""
    plain = {
        "method.adapters": False,
        "method.norm": "group",
        "method.balance.optimizer": "sgd",
        "method.balance.momentum": 0.0,
        "method.balance.weight_decay": 0.0,
    }
    for private in (False, True):
        mechanism = "example" if private else "none"
        experiment = tiny(Experiment(small_config("dynammo", {**plain, "privacy.mechanism": mechanism})))
        step = first_step(experiment, lambda stage: isinstance(stage, Fit))
        assert step is not None
        (message,) = ask_sites(experiment, step)
        distance = message_distance(message, message.images.labels)
        found = float(distance(message.images.images.float() / 255).detach())
        assert found > 0.3 if private else found < 1e-4
