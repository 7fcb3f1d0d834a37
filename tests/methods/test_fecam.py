"""Nearest means with covariances against their formulas on pooled images, whatever the sites and the tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_bench import CLASS_COUNT, STREAM, Bench, bench, halves, learn_sums, toy_images, uneven
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.data.samples import Samples
from dynammo_core.methods.settings.closed_form import FeCAMSettings
from dynammo_core.plan import Summarise
from dynammo_core.wire.report_contents import check_tensors
from dynammo_core.wire.sums_form import THIN, whole

COVARIANCES = ("shared", "class")
CLASSES = STREAM.seen(1)


def stage_of(made: Bench) -> Summarise:
    stage = made.stage("sum", 1)
    assert isinstance(stage, Summarise)
    return stage


def embedded(made: Bench, images: Samples) -> Tensor:
    with torch.no_grad():
        return made.inputs(made.stage("sum", 0), images)


def learnt(covariance: str, sites: int, **params: object) -> Bench:
    """After two tasks, of which the second brings late images of a class of the first."""
    made = bench("fecam", covariance=covariance, **params)
    late = toy_images((1,), each=3, seed=1)
    for task, images in enumerate([uneven((0, 1)), Samples.concatenate([uneven((2, 3)), late])]):
        learn_sums(made, task, [images.subset(range(site, len(images), sites)) for site in range(sites)], ("sum",))
    return made


def everything() -> Samples:
    return Samples.concatenate([uneven(CLASSES), toy_images((1,), each=3, seed=1)])


def inverse(covariance: Tensor, params: FeCAMSettings) -> Tensor:
    diagonal = torch.eye(len(covariance), dtype=torch.bool)
    shrunk = covariance.clone()
    shrunk[diagonal] += params.variance_shrinkage * covariance[diagonal].mean()
    shrunk[~diagonal] += params.covariance_shrinkage * covariance[~diagonal].mean()
    deviations = shrunk.diagonal().sqrt()
    return torch.linalg.inv(shrunk / torch.outer(deviations, deviations))


def distances(made: Bench, images: Samples) -> Tensor:
    """Squared Mahalanobis distances of images to each class, as the paper has them: Tensor[N, C]."""
    params, pooled = made.method.params, everything()
    features = embedded(made, pooled).double()
    by_class = [features[pooled.labels == label] for label in CLASSES]
    centred = torch.cat([own - own.mean(dim=0) for own in by_class])
    within = centred.T @ centred / (len(centred) - len(CLASSES))
    found = []
    for own in by_class:
        spread = F.normalize(embedded(made, images).double(), dim=1) - F.normalize(own.mean(dim=0), dim=0)
        precision = inverse(within if params.covariance == "shared" else own.T.cov(), params)
        found.append((spread @ precision * spread).sum(dim=1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_answers_are_the_papers_on_pooled_images_whatever_the_split(covariance: str) -> None:
    images = toy_images(CLASSES, seed=3)
    for sites, shrinkage in ((1, 1.0), (5, 0.0)):
        made = learnt(covariance, sites, covariance_shrinkage=shrinkage)
        halves_of_squares = distances(made, images) / 2
        farther = halves_of_squares - halves_of_squares.amin(dim=1, keepdim=True)
        wanted = (-256 * farther).softmax(dim=1)
        found = torch.cat(made.method.decision.probabilities(made.model, embedded(made, images)), dim=1)
        torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-2)
        prediction = made.method.decision.predict(made.model, embedded(made, images))
        assert torch.equal(prediction.labels, wanted.argmax(dim=1))
        known = 1 - (-farther).exp().mean(dim=1) ** 16
        torch.testing.assert_close(prediction.known.double(), known, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_withdrawn_records_leave_as_if_they_had_never_been_there(covariance: str) -> None:
    kept, taken = halves(everything())
    made, other = (bench("fecam", covariance=covariance) for _ in range(2))
    for one, images in ((made, [kept, taken]), (other, [kept])):
        one.begin(0)
        learn_sums(one, 1, images, ("sum",))
    made.begin(1)
    correction = stage_of(made).correct
    assert correction is not None
    sums = whole(stage_of(made).computes(made.model, [(embedded(made, taken), taken.labels)]), made.model)
    made.model.load_state_dict({name: -tensor for name, tensor in sums.items()}, strict=False)
    correction(made.model, made.archive, 1)
    for name, head in made.model.heads.items():
        for key, tensor in head.state_dict().items():
            torch.testing.assert_close(tensor, other.model.heads[name].state_dict()[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_site_without_images_of_a_class_sends_sums_that_pass(covariance: str) -> None:
    made = bench("fecam", covariance=covariance)
    made.begin(0)
    made.begin(1)
    images, stage = uneven((0, 2)), stage_of(made)
    sums = stage.computes(made.model, [(embedded(made, images), images.labels)])
    counts = images.class_counts(CLASS_COUNT)
    declared = THIN.declared(made.model, stage, counts)
    assert {name: tensor.shape for name, tensor in sums.items()} == {
        name: like.shape for name, like in declared.items()
    }
    for travelled in (sums, whole(sums, made.model)):
        check_tensors(travelled, stage, made.model, counts)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_class_that_nobody_has_had_yet_is_never_the_answer(covariance: str) -> None:
    made = bench("fecam", covariance=covariance)
    learn_sums(made, 0, [uneven((0,))], ("sum",))
    found = torch.cat(made.method.decision.probabilities(made.model, embedded(made, uneven((0, 1)))), dim=1)
    assert found[:, 0].tolist() == [1.0] * len(found)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"variance_shrinkage": 0.5}, "1 must be at most variance_shrinkage, 0.5"), ({"tukey": 0.0}, "greater than 0")],
)
def test_what_leaves_no_inverse_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench("fecam", **params)
