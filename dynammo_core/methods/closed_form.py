"""What the methods share whose classifier is solved in closed form: sums over samples, one solve at the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import CLASSES, Archive, Batch, Method, Prediction, Rehearsal, SumNoise
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, MultiScaleBackbone, Pooling
from dynammo_core.models.ridge import MOST_WEIGHT, RidgeHead
from dynammo_core.models.ridge_checks import MOST_NOISED_WEIGHT
from dynammo_core.plan import Action, Stage

HEAD = f"heads.{CLASSES}"
GRAM = f"{HEAD}.gram"
ANSWERS = (f"{HEAD}.weight", f"{HEAD}.bias")
SUMS = (f"{HEAD}.counts", GRAM, f"{HEAD}.products")

SHARPNESS = 8
"""Inverse temperature. Of 4, 8 and 16 the best calibrated over digits and Fashion-MNIST, on validation images, whatever
the number of classes; a power of two leaves every answer as it is, bit for bit."""

STRETCH = 4
"""Power of the odds of the open-set score: it keeps their order, and spreads them over the bins that sites count in."""


class ClosedFormSettings(MethodSettings):
    """The features, and how smooth the solution is."""

    multi_scale: bool = Field(default=True, description="the pooled inputs of every stage beside the last features")
    pooling: Pooling = Field(
        default="mean",
        description="of the stages' inputs; spread: each channel's standard deviation beside its mean; grid: that and "
        "the mean of each quarter",
    )
    regulariser: float | None = Field(
        default=None, gt=0, description="of ridge regression; null: by generalised cross-validation of the sums"
    )


class ClosedFormMethod(Method):
    """Ridge regression on the features of the pretrained network, from sums that the sites add up.

    Attributes:
        features_need: patterns of the tensors that a site must be sent before it can compute features.
    """

    Params = ClosedFormSettings
    params: ClosedFormSettings
    freezes_backbone = True
    deployed: ClassVar[tuple[str, ...]] = ANSWERS
    open_set_words = "s^4 / (s^4 + (1 - s)^4), s the largest regressed label over 1 plus what lies below 0"
    features_need: ClassVar[tuple[str, ...]] = ()

    def grow(self, model: IncrementalModel, task: int) -> None:
        if self.params.multi_scale and task == 0:
            assert isinstance(model.extractor, AdaptedBackbone)
            model.extractor = self.scales(model.extractor.backbone)
        self.grow_classes(model, task)

    def scales(self, backbone: Backbone) -> AdaptedBackbone:
        """The extractor that the settings name, on a backbone, without adapters."""
        return (
            MultiScaleBackbone(backbone, self.params.pooling) if self.params.multi_scale else AdaptedBackbone(backbone)
        )

    def grow_classes(self, model: IncrementalModel, task: int) -> None:
        """The classifier of all classes seen so far; its sums start from nothing."""
        model.heads[CLASSES] = RidgeHead(model.feature_dim, self.stream.seen(task))

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        """The softmax of the regressed labels, sharpened: they differ by 1 at most, and would be nearly even."""
        return [(SHARPNESS * ridge_head(model)(features)).softmax(dim=1)]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        """The most probable class, which is that of the largest regressed label.

        How known the image is follows from s, that label over 1 plus what lies below 0: s^4 / (s^4 + (1 - s)^4).
        Regressed labels sum to 1, and an image like nothing learnt gets some below 0, so that others have to be larger:
        s is then the largest label's share of the positive ones. After noise they sum to anything, and s still serves.
        """
        labels = ridge_head(model)(features)
        below = labels.clamp_max(0).sum(dim=1)
        share = (labels.max(dim=1).values / (1 - below)).clamp(0, 1)
        known = share**STRETCH / (share**STRETCH + (1 - share) ** STRETCH)
        return replace(super().predict(model, features), known=known)

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        head = ridge_head(model)
        for features, labels in batches:
            head.add(features, labels)
        return {name: tensor for name, tensor in model.state_dict().items() if name in stage.up}

    @classmethod
    def obstacle_to_privacy(cls, params: MethodSettings, mechanism: str) -> str:
        return "" if mechanism == "example" else "its sums over samples have no mean over sites; take example"

    def check_received(self, model: IncrementalModel) -> None:
        """Refuse weights of samples out of their range, which noise is made for."""
        ridge_head(model).check_weights(MOST_WEIGHT if self.privacy.mechanism == "none" else MOST_NOISED_WEIGHT)

    def needs_noise(self, stage: Stage) -> bool:
        return GRAM in stage.up

    def summarise_privately(
        self,
        model: IncrementalModel,
        batches: Iterable[Batch],
        stage: Stage,
        counts: Mapping[int, int],
        noise: SumNoise,
    ) -> dict[str, Tensor]:
        head, bound = ridge_head(model), self.privacy.feature_norm
        if not self.needs_noise(stage):
            head.counts.copy_(torch.tensor([counts.get(row, 0) for row in head.rows]))
        else:
            for features, labels in batches:
                # One image whose features overflow would tell of itself by making the whole sum NaN.
                finite = features.double().masked_fill(~features.isfinite().all(dim=1, keepdim=True), 0.0)
                lengths = finite.norm(dim=1, keepdim=True)
                head.add(finite * (bound / lengths).clamp_max(1), labels)
            head.blur(counts, bound, noise)
        return {name: tensor for name, tensor in model.state_dict().items() if name in stage.up}

    def solve(self, model: IncrementalModel) -> None:
        """Solve from the sums, noised or not."""
        head = ridge_head(model)
        solve = head.solve if self.privacy.mechanism == "none" else head.solve_noised
        solve(self.params.regulariser)


class BalancedClosedForm(ClosedFormMethod):
    """Sums over exemplars and new images, in which each class weighs the same, however many there are of it.

    Sites first count, then sum with weights n / (C n_c) that the server makes of the counts. The result is that of
    pooling all sites' exemplars and new images, whatever the split. Under privacy the weights are divided by the
    largest, which changes no answer: noise is made for weights of at most 1.
    """

    def stages(self, task: int) -> Sequence[Stage]:
        return (
            Stage("count", Action.SUMMARISE, self.features_need, (f"{HEAD}.counts",), inputs="features"),
            Stage("sum", Action.SUMMARISE, (*self.features_need, f"{HEAD}.sample_weight"), SUMS, inputs="features"),
        )

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return Samples.concatenate([rehearsal.new, rehearsal.memory])

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if stage.name == "count":
            head = ridge_head(model)
            present = head.counts > 0
            balanced = head.counts.sum() / (present.sum() * head.counts.clamp_min(1))
            if self.privacy.mechanism != "none" and present.any():
                balanced = balanced / balanced[present].max()
            head.sample_weight.copy_(torch.where(present, balanced, 1.0))
        elif stage.name == "sum":
            self.solve(model)


class StreamingClosedForm(ClosedFormMethod):
    """Sums of every image, made once, by its site, in the task that it arrives with; the server keeps the totals."""

    uses_memory = False

    def stages(self, task: int) -> Sequence[Stage]:
        return (Stage("sum", Action.SUMMARISE, self.features_need, SUMS, inputs="features"),)

    def forget(self, task: int) -> Stage:
        return Stage("forget", Action.FORGET, self.features_need, SUMS, inputs="features")

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if GRAM not in stage.up:
            return
        state = model.state_dict()
        for name in SUMS:
            new = state[name]
            if name in archive:
                earlier = archive[name]
                new[tuple(slice(size) for size in earlier.shape)] += earlier
        if stage.action is Action.FORGET:
            ridge_head(model).clear_absent()
        archive.update({name: state[name].clone() for name in SUMS})
        self.solve(model)


def ridge_head(model: IncrementalModel) -> RidgeHead:
    """The classifier and its sums."""
    head = model.head(CLASSES)
    assert isinstance(head, RidgeHead)
    return head
