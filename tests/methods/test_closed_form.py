from __future__ import annotations

import torch

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.feature_maps import grow_frozen
from dynammo_core.methods.settings.closed_form import ClosedFormSettings, FrozenFeatureSettings
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.support.seeding import seeded_generator


def reads_labels() -> tuple[Method, IncrementalModel]:
    """A model whose features are the labels that it regresses."""
    method = METHODS["streaming_ridge"](ClosedFormSettings(name="streaming_ridge"), TaskStream(((4, 1), (7,))))
    model = IncrementalModel(build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=0))
    model.heads[CLASSES] = head = RidgeHead(3, (4, 1, 7))
    head.weight.copy_(torch.eye(3))
    return method, model


@torch.no_grad()
def test_features_are_powers_averaged_with_those_of_the_mirror_image() -> None:
    backbone = build_backbone(BackboneSettings(name="small_cnn", weights="random"), seed=0).freeze()
    plain, made = IncrementalModel(backbone), IncrementalModel(backbone)
    settings = FrozenFeatureSettings(name="streaming_ridge", tukey=0.5, mirrored=True)
    grow_frozen(FrozenFeatureSettings(name="streaming_ridge"), plain, 0)
    grow_frozen(settings, made, 0)
    images = torch.randn(2, 3, 16, 16, generator=seeded_generator("images"))
    signed = [plain.extractor(seen) for seen in (images, images.flip(3))]
    assert min(features.min() for features in signed) >= 0  # behind a ReLU
    torch.testing.assert_close(made.extractor(images), (signed[0].sqrt() + signed[1].sqrt()) / 2)
    torch.testing.assert_close(made.extractor(images.flip(3)), made.extractor(images))
    grow_frozen(settings.model_copy(update={"multi_scale": "blocks"}), made := IncrementalModel(backbone), 0)
    assert made.extractor.feature_dim == plain.extractor.feature_dim + backbone.feature_dim  # the last of its blocks


def test_probabilities_are_sharpened_and_answers_are_those_of_the_regressed_labels() -> None:
    method, model = reads_labels()
    features = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.35, 0.55]])
    found = method.decision.predict(model, features)
    assert found.labels.tolist() == [4, 7]
    # e^6.4 / (e^6.4 + e^1.6 + 1) and e^4.4 / (e^0.8 + e^2.8 + e^4.4): two labels that differ by 0.2 by e^1.6.
    torch.testing.assert_close(found.probability, torch.tensor([0.990206, 0.813524]), atol=1e-6, rtol=0)
    many = torch.rand(500, 3, generator=seeded_generator("labels"))
    assert torch.equal(method.decision.predict(model, many).labels, torch.tensor([4, 1, 7])[many.argmax(dim=1)])


def test_an_image_is_known_as_far_as_its_labels_are_not_negative() -> None:
    method, model = reads_labels()
    labels = torch.tensor([[0.8, 0.2, 0.0], [0.8, 0.5, -0.3], [1.1, -0.1, 0.0], [0.6, 0.3, -0.4], [-0.1, -0.2, -0.3]])
    # Where they sum to 1, the odds of the share among positive ones to the fourth: 4^4, 1.6^4, and no other positive
    # one. Where they do not, as after noise: odds of 0.6 / 1.4 to 0.8 / 1.4, so 0.75^4; and no positive one.
    wanted = torch.tensor([256 / 257, 6.5536 / 7.5536, 1.0, 0.31640625 / 1.31640625, 0.0])
    torch.testing.assert_close(method.decision.predict(model, labels).known, wanted, atol=1e-6, rtol=0)
