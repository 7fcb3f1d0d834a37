from __future__ import annotations

from math import log

import pytest
import torch
from method_bench import STREAM, Bench, bench, learn, rehearsal, toy_images
from plain_networks import says
from torch.nn import functional as F

from dynammo_core.data.samples import Samples
from dynammo_core.methods.decisions import CLASSES, MEANS
from dynammo_core.models.names import matching, travelling_names


def odds(*probabilities: float) -> list[float]:
    """What `says` has to be told, for logits whose sigmoids are these probabilities."""
    return [p / (1 - p) for p in probabilities]


def test_the_first_task_is_binary_cross_entropy_to_the_labels_by_hand() -> None:
    # The sigmoids say 1/4 and 1/2. Label 0 costs ln 4 and ln 2, label 1 costs ln(4/3) and ln 2: a mean of
    # (ln 4 + ln(4/3)) / 2 + ln 2.
    made = bench("icarl")
    made.begin(0)
    says(made.head, odds(1 / 4, 1 / 2))
    loss = made.loss(made.stage("train", 0), 0, toy_images((0, 1), each=1))
    assert loss.item() == pytest.approx((log(4) + log(4 / 3)) / 2 + log(2))


def test_later_old_classes_learn_from_the_old_sigmoids_by_hand() -> None:
    # The teacher's sigmoids say 3/4 and 1/4 of the classes 0 and 1, the pupil's 1/4, 1/2, 1/4, 1/2 of all four.
    # Whatever the label, class 0 costs 3/4 ln 4 + 1/4 ln(4/3) and class 1 ln 2. An image of class 2 costs ln 4 and ln 2
    # for the new classes, an exemplar of class 0 costs ln(4/3) and ln 2.
    made = bench("icarl")
    made.begin(0)
    says(made.head, odds(3 / 4, 1 / 4))
    made.begin(1)
    says(made.head, odds(1 / 4, 1 / 2, 1 / 4, 1 / 2))
    loss = made.loss(made.stage("train", 1), 1, toy_images((0, 2), each=1))
    old = 3 / 4 * log(4) + 1 / 4 * log(4 / 3) + log(2)
    assert loss.item() == pytest.approx(old + (log(4) + log(4 / 3)) / 2 + log(2))


# Nearest mean of exemplars


def exemplars(made: Bench, images: Samples) -> torch.Tensor:
    """The unit features of all images."""
    return F.normalize(made.inputs(made.stage(MEANS, 1), images), dim=1)


def grown(**params: object) -> Bench:
    made = bench("icarl", **params)
    made.begin(0)
    made.begin(1)
    return made


def test_means_come_after_the_memory_and_hold_nothing_else() -> None:
    made = grown()
    stages = [stage.name for stage in made.method.all_stages(1)]
    assert stages == ["train", "remember", MEANS, "evaluate"]
    means, names = made.stage(MEANS, 1), travelling_names(made.model)
    assert matching(names, means.up) == [f"heads.{MEANS}.weight"]
    assert all(name.startswith("extractor.") for name in matching(names, means.down))
    held = rehearsal(1)
    assert means.learns_from(held) is held.memory
    # No gradient reaches the means, and the classifier that distils is not the one that answers.
    assert matching(names, made.stage("train", 1).up) == [name for name in names if MEANS not in name]
    assert made.method.decision.heads(made.model) == [made.model.head(MEANS)]


def test_without_nearest_mean_the_classifier_answers_and_no_means_are_asked_for() -> None:
    made = grown(prediction="classifier")
    assert list(made.model.heads) == [CLASSES]
    assert made.method.decision.heads(made.model) == [made.head]
    assert [stage.name for stage in made.method.all_stages(1)] == ["train", "remember", "evaluate"]


def test_means_of_all_sites_are_those_of_the_pooled_exemplars() -> None:
    # Site 0 has seven exemplars of class 0 and two of class 1, site 1 three of class 1 and five of class 2; class 3 is
    # nowhere. The mean of five exemplars of class 1 is not the mean of the sites' means.
    made = grown()
    sites = [
        Samples.concatenate([toy_images((0,), 7), toy_images((1,), 2)]),
        Samples.concatenate([toy_images((1,), 3, seed=1), toy_images((2,), 5)]),
    ]
    merged = made.summarise(made.stage(MEANS, 1), sites)[f"heads.{MEANS}.weight"]
    pool = Samples.concatenate(sites)
    features = exemplars(made, pool)
    for label in range(3):
        torch.testing.assert_close(merged[label], features[pool.labels == label].mean(dim=0))
    assert not merged[3].any()
    assert torch.equal(made.model.head(MEANS).weight, merged)


def test_the_answer_is_the_nearest_mean_by_hand() -> None:
    # Means along the axes, of any length: (3, 4) is nearest to the second, at a squared distance of 2 - 2 * 4/5 = 2/5.
    made = grown()
    with torch.no_grad():
        made.model.head(MEANS).weight.copy_(torch.diag(torch.tensor([5.0, 0.1, 2.0, 1.0])) @ torch.eye(4, 64))
    features = torch.zeros(2, 64)
    features[0, :2] = torch.tensor([3.0, 4.0])
    features[1, 2] = 0.01
    prediction = made.method.decision.predict(made.model, features)
    assert prediction.labels.tolist() == [1, 2]
    # Squared distances 0 to the own mean, 2 to the three others.
    assert prediction.probability[1].item() == pytest.approx(1 / (1 + 3 * torch.tensor(-2.0).exp().item()))


def test_a_class_without_an_exemplar_anywhere_is_never_the_answer() -> None:
    # A mean of nothing would lie at a squared distance of 1 from every image: nearer than any class at over 60 degrees.
    made = grown()
    with torch.no_grad():
        made.model.head(MEANS).weight[:2] = torch.eye(2, 64)
    features = torch.zeros(1, 64)
    features[0, :3] = torch.tensor([0.1, 0.2, 0.9])
    assert made.method.decision.predict(made.model, features).labels.tolist() == [1]


def test_means_follow_the_network_of_each_task() -> None:
    made = bench("icarl", train={"rounds": 1, "epochs": 2})
    learn(made, 2)
    memory = toy_images(STREAM.seen(1), each=3)
    features = exemplars(made, memory)
    expected = torch.stack([features[memory.labels == label].mean(dim=0) for label in range(4)])
    torch.testing.assert_close(made.model.head(MEANS).weight, expected)
