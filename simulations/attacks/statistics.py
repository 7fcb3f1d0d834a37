"""What sums of features tell of single images: the statistics that methods in closed form send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.scoring.evaluation import embed_samples
from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import AttackResult, Finding, Tell
from simulations.attacks.inversion import class_means, compare_with_truth
from simulations.attacks.message import SiteMessage, ask_sites, first_step, tiny
from simulations.attacks.reconstruction import counted, reconstruct

PRODUCTS = f"heads.{CLASSES}.products"
ATTACK = "feature sums"


@dataclass(frozen=True)
class RowMean:
    """What one row of a site's sums comes to.

    Attributes:
        message: where it was read.
        label: class of the row.
        read: the row over its last number, Tensor[D]: all that the server needs to do.
        features: the true features of the class's images behind it, Tensor[k, D].
    """

    message: SiteMessage
    label: int
    read: Tensor
    features: Tensor

    def cosine(self) -> float:
        """Return the distance between what was read and the true mean feature, which for a single image is its own."""
        return _cosine(self.read, self.features.mean(dim=0))


def attack_statistics(run: AuditedRun, *, iterations: int, tell: Tell) -> AttackResult:
    """Read features off the sums, and seek the image behind one.

    A row of `products` is the sum over a class's images of (x, 1), all with the same weight: over its last number it is
    their mean feature, and of a single image the feature itself, exactly.

    Args:
        run: the run.
        iterations: of the search for the image.
        tell: receives the progress.

    Raises:
        DynammoError: a site cannot answer.
    """
    own = read_rows(run.experiment)
    if not own:
        return AttackResult(skipped="no site sends sums of features")
    alone = read_rows(tiny(run.experiment))[0]
    single, fewest = sum(len(row.features) == 1 for row in own), min(own, key=lambda row: len(row.features))
    findings = [
        _likeness(alone, run, "one image of a class"),
        _likeness(
            fewest, run, "as in the run", f"{single} of {len(own)} rows that sites sent come from a single image"
        ),
    ]
    labels = torch.tensor([alone.label])
    distance = counted(feature_distance(alone), "from a feature to its image", iterations, tell)
    found = reconstruct(distance, class_means(run, labels), iterations=iterations)
    message = replace(alone.message, images=alone.message.images.of_class(alone.label))
    compared = compare_with_truth(found, labels, message, run, ATTACK, "one image of a class")
    return AttackResult([*findings, *compared.findings], compared.pictures)


def read_rows(experiment: Experiment) -> list[RowMean]:
    """Return the rows of the sums that sites send in the first task, of classes that they hold."""
    step = first_step(experiment, lambda stage: PRODUCTS in stage.up)
    if step is None:
        return []
    rows = []
    for message in ask_sites(experiment, step):
        model, products = message.model(), message.report.weights[PRODUCTS]
        features = _features(message, message.images)
        for row, label in enumerate(model.head(CLASSES).rows):
            if bool((message.images.labels == label).any()):
                read = products[row, :-1] / products[row, -1]
                rows.append(RowMean(message, label, read, features[message.images.labels == label]))
    return rows


def feature_distance(row: RowMean) -> Callable[[Tensor], Tensor]:
    """Return one minus the cosine between what was read and the features of images [B, C, S, S] in [0, 1]."""
    experiment, model = row.message.experiment, row.message.model().eval().requires_grad_(False)
    seen = row.read.float().to(experiment.device)

    def distance(images: Tensor) -> Tensor:
        inputs = to_input(images * 255, experiment.config.normalisation, experiment.device)
        return (1 - torch.cosine_similarity(model.extractor(inputs), seen, dim=1)).mean()

    return distance


def _likeness(row: RowMean, run: AuditedRun, target: str, note: str = "") -> Finding:
    """Return how near the row is to the truth, beside how near the features of other images of the class are."""
    others = _features(row.message, run.strangers(row.label))
    truth = row.features.mean(dim=0)
    return Finding(
        ATTACK,
        target,
        "cosine to its feature" if len(row.features) == 1 else "cosine to their mean",
        "",
        value=row.cosine(),
        guess=sum(_cosine(other, truth) for other in others) / len(others),
        members=len(row.features),
        note=note,
    )


def _features(message: SiteMessage, samples: Samples) -> Tensor:
    experiment = message.experiment
    model, normalisation = message.model(), experiment.config.normalisation
    return embed_samples(model, samples, normalisation, experiment.device).cpu().double()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))
