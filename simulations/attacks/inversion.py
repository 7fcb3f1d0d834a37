"""What did the images look like? Training images sought in the weights that one site sends back from one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynammo_core.data.transforms import to_input
from dynammo_core.plan import Fit, LossContext
from dynammo_core.training import learning_rate, train_only
from dynammo_core.wire.protocol import names_up
from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import AttackResult, Finding, Picture, Tell
from simulations.attacks.message import SiteMessage, ask_sites, easiest, first_step, some_labels, tiny
from simulations.attacks.reconstruction import best_matches, counted, gallery, reconstruct

MOST_IMAGES = 8
"""Images sought at a time: more explain an update no better, and take longer."""


def attack_messages(run: AuditedRun, *, iterations: int, tell: Tell) -> AttackResult:
    """Invert two messages of the first stage that trains: the one an attacker would wish for, and one of the run.

    The first rests on the fewest images that a site answers for, in one step of plain descent: the update is the
    gradient. The second is that of the site with the fewest images, as the run really asked it. The search starts from
    the mean of each class's test images, so that what is found is as like the truth as that mean where the message
    tells nothing.

    Args:
        run: the run.
        iterations: of the search for images.
        tell: receives the progress.

    Raises:
        DynammoError: a site cannot answer.
    """
    outcome = AttackResult()
    for target, experiment in (("two images, one step", tiny(run.experiment)), ("as in the run", run.experiment)):
        step = first_step(experiment, lambda stage: isinstance(stage, Fit))
        messages = ask_sites(experiment, step) if step else []
        if not messages:
            continue
        message = easiest(messages)
        labels = some_labels(message.images, MOST_IMAGES)
        distance = counted(message_distance(message, labels), f"inverting a message, {target}", iterations, tell)
        found = reconstruct(distance, class_means(run, labels), iterations=iterations)
        compared = compare_with_truth(found, labels, message, run, "update inversion", target)
        outcome.findings.extend(compared.findings)
        outcome.pictures.extend(compared.pictures)
    return outcome if outcome.findings else AttackResult(skipped="no site sends trained weights")


def seen_gradient(message: SiteMessage) -> list[Tensor]:
    """Return what the update tells of the gradient, per trained parameter, up to a common factor.

    After one step of plain descent w' = w - rate (g + decay w) it is g. After several steps, or with another
    optimiser, it is the direction in which the weights moved.
    """
    stage = message.step.stage
    assert isinstance(stage, Fit)
    settings = stage.optimisation
    one_step = settings.optimizer == "sgd" and settings.epochs == 1 and len(message.images) <= settings.batch_size
    decay = settings.weight_decay if one_step else 0.0
    rate = learning_rate(settings, message.step.round * settings.epochs)
    received = message.report.weights
    return [
        (message.sent[name] - received[name]) / rate - decay * message.sent[name] for name in _trained_names(message)
    ]


def message_distance(message: SiteMessage, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a distance: how far the update that images [B, C, S, S] in [0, 1] cause points from the one that was seen.

    The attacker knows the network, what was sent, the loss and the labels: class counts tell them where nothing hides
    those, and elsewhere he is granted them.
    """
    experiment, stage = message.experiment, message.step.stage
    assert isinstance(stage, Fit)
    model = message.model()
    parameters = train_only(model, set(names_up(model, stage)))
    context = LossContext(message.step.task)

    def loss(images: Tensor) -> Tensor:
        inputs = to_input(images * 255, experiment.config.normalisation, experiment.device)
        return stage.loss(model, inputs, labels.to(experiment.device), context)

    return gradient_distance(loss, parameters, seen_gradient(message))


def gradient_distance(
    loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], seen: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return one minus the cosine between a gradient that was seen and that of the loss of images.

    Equation 4 of Geiping et al. (arXiv 2003.14053), without the smoothness.
    """
    target = torch.cat([gradient.flatten().to(parameters[0].device) for gradient in seen])

    def distance(images: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss(images), parameters, create_graph=True)
        return 1 - torch.cosine_similarity(torch.cat([gradient.flatten() for gradient in gradients]), target, dim=0)

    return distance


def class_means(run: AuditedRun, labels: Tensor) -> Tensor:
    """Return the mean test image of each label's class, Tensor[B, C, S, S] in [0, 1]: what anyone may know of it.

    A class without test images has a grey one.
    """
    return torch.stack([_strangers(run, label).mean(dim=0) for label in labels.tolist()])


def compare_with_truth(
    found: Tensor, labels: Tensor, message: SiteMessage, run: AuditedRun, attack: str, target: str
) -> AttackResult:
    """Compare what was found with the images of a message, and with what needs no message at all.

    Both guesses come from test images of the same class: their mean, where the search started, and one of them. All
    three are compared with that image of their class behind the message which they are most like.
    """
    others = [_strangers(run, label) for label in labels.tolist()]
    another = torch.stack([images[len(images) // 2] for images in others])
    by_name = {"found": found, "class mean": class_means(run, labels), "another image": another}
    ratios = {name: best_matches(images, labels, message.images) for name, images in by_name.items()}
    scores = {name: sum(ratio) / len(ratio) for name, (ratio, _) in ratios.items()}
    finding = Finding(
        attack,
        target,
        "likeness",
        "dB",
        value=scores["found"],
        guess=scores["class mean"],
        members=len(message.images),
        note=f"another image of the class: {scores['another image']:.1f} dB",
    )
    caption = (
        f"{attack}, {target}: {len(labels)} of the {len(message.images)} images behind the message were searched for."
    )
    rows = [("nearest true image", ratios["found"][1]), *by_name.items()]
    return AttackResult([finding], [Picture(caption, gallery(rows))])


def _strangers(run: AuditedRun, label: int) -> Tensor:
    images = run.strangers(label).images[:].float() / 255
    return images if len(images) else torch.full((1, *images.shape[1:]), 0.5)


def _trained_names(message: SiteMessage) -> list[str]:
    model = message.model()
    train_only(model, set(names_up(model, message.step.stage)))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
