from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.data.samples import Samples
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.data.transforms import to_input
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.fine_tune import FineTune
from dynammo_core.methods.settings.heads import SingleHeadSettings
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import Level
from dynammo_core.scoring.evaluation import BATCH, answer_counts, confusion_counts, embed_samples, predictions
from dynammo_core.scoring.reliability import Reliability
from dynammo_core.support.seeding import seeded_generator

CPU = torch.device("cpu")


def network(rows: tuple[int, ...] = (2, 0, 3)) -> IncrementalModel:
    """The head's row i says what feature i says."""
    model = IncrementalModel(build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=0))
    model.extractor.adapters = AdapterSet(model.extractor.backbone.channels, alpha=0.5)
    model.heads[CLASSES] = head = LinearHead(model.feature_dim, rows)
    with torch.no_grad():
        head.weight.copy_(torch.eye(len(rows), model.feature_dim))
        head.bias.zero_()
    return model


def method() -> FineTune:
    return FineTune(SingleHeadSettings(name="fine_tune"), TaskStream(((2, 0), (3,))))


def images_of(count: int) -> Samples:
    shape = (count, 1, 16, 16)
    images = torch.randint(0, 256, shape, generator=seeded_generator("images"), dtype=torch.uint8)
    return Samples(images, torch.zeros(count, dtype=torch.int64), ("",) * count)


@pytest.mark.parametrize("end", ["prefix", "features"])
def test_every_image_is_carried_to_its_level_in_order(end: Level) -> None:
    model, samples = network().train(), images_of(2 * BATCH + 3)
    carried = embed_samples(model, samples, "half", CPU, end)
    assert not model.training
    assert not carried.requires_grad
    for index in (0, BATCH - 1, BATCH, len(samples) - 1):
        alone = to_input(samples.images[index : index + 1], "half", CPU)
        torch.testing.assert_close(carried[index : index + 1], model.extractor.embed(alone, start="images", end=end))
    assert len(carried) == len(samples)


def test_the_normalisation_asked_for_is_used() -> None:
    model = network()
    for name in ("half", "imagenet"):
        features = embed_samples(model, images_of(2), name, CPU)
        torch.testing.assert_close(features, model.extractor(to_input(images_of(2).images, name, CPU)).detach())


def features_that_answer(rows: list[int]) -> Tensor:
    return 5 * torch.eye(64)[rows]


def test_confusion_by_hand() -> None:
    # Rows 0, 1, 2 of the head answer the classes 2, 0, 3. True 0: answered 0, 0, 2. True 2: answered 2. True 3: 0, 3.
    features = features_that_answer([1, 1, 0, 0, 1, 2])
    labels = torch.tensor([0, 0, 0, 2, 3, 3])
    confusion = confusion_counts(predictions(method(), network(), features).labels, labels, classes=4)
    assert confusion.tolist() == [[2, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert confusion.dtype == torch.int64


def test_batches_add_up() -> None:
    # 300 images in turn of the classes 2, 0 and 3, all answered right, but one in each 100 of class 2 as class 0.
    rows = [0, 1, 2] * 100
    labels = torch.tensor([2, 0, 3] * 100)
    rows[0] = 1
    confusion = confusion_counts(predictions(method(), network(), features_that_answer(rows)).labels, labels, classes=4)
    assert confusion.tolist() == [[100, 0, 0, 0], [0] * 4, [1, 0, 99, 0], [0, 0, 0, 100]]


def test_a_site_without_test_images_counts_nothing() -> None:
    nothing, labels = predictions(method(), network(), torch.empty(0)), torch.empty(0, dtype=torch.int64)
    assert confusion_counts(nothing.labels, labels, classes=3).tolist() == [[0] * 3] * 3
    assert not any(map(any, answer_counts(nothing, labels, nothing, classes=3).values()))


def test_batches_bring_the_probability_and_the_score_of_every_image() -> None:
    # Feature 5 against 0 and 0: the answer has the probability e^5 / (e^5 + 2), which is also its open-set score.
    answered = predictions(method(), network(), features_that_answer([0, 1, 2] * BATCH))
    expected = torch.full((3 * BATCH,), math.exp(5) / (math.exp(5) + 2))
    torch.testing.assert_close(answered.probability, expected)
    torch.testing.assert_close(answered.known, expected)


def test_sure_answers_and_images_of_classes_to_come_are_counted_apart() -> None:
    # Three answers of 0.987 are in the last bin of confidence, two of them right; two images are of classes to come.
    learnt = predictions(method(), network(), features_that_answer([0, 1, 2]))
    others = predictions(method(), network(), torch.zeros(2, 64))  # 1/3 for each row
    numbers = answer_counts(learnt, torch.tensor([2, 0, 0]), others, classes=4)
    assert np.flatnonzero(numbers["confusion"]).tolist() == [0, 3, 10]  # of 4 x 4: 0 as 0, 0 as 3, 2 as 2
    tables = Reliability.of(numbers)
    assert tables.calibration[:, -1].tolist() == [3, 2, 3 * 987]
    assert tables.calibration[:, :-1].sum() == 0
    assert tables.open_set.sum(axis=1).tolist() == [3, 2]
    # Bins are steps of 1/4 of the log odds from -16 on: ln(e^5 / 2) = 4.31 and ln(1/2) = -0.69.
    assert [np.flatnonzero(row).tolist() for row in tables.open_set] == [[int((4.31 + 16) * 4)], [int((16 - 0.69) * 4)]]
