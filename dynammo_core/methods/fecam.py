"""Nearest class mean with covariances, on the frozen network: all of it from sums of everything ever seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import FeatureSettings
from dynammo_core.methods.decisions import CLASSES, DecisionRule, Prediction
from dynammo_core.methods.feature_maps import FeatureMap, MappedBackbone, features_to_map
from dynammo_core.methods.governance import Governance
from dynammo_core.methods.rehearsal import is_any_of, new_images
from dynammo_core.models.heads import Head
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.mahalanobis import OwnCovarianceHead, SharedCovarianceHead
from dynammo_core.models.names import matching
from dynammo_core.plan import Archive, Batch, Stage, Summarise

SUMS = ("heads.*.counts", "heads.*.gram", "heads.*.products")


class FeCAMSettings(FeatureSettings):
    """The features, by default the last ones alone, and how their covariance is estimated."""

    multi_scale: bool = False
    covariance: Literal["shared", "class"] = Field(
        default="shared",
        description="which covariances there are; shared: one within all classes; class: one for each, of which every "
        "evaluation sends a matrix",
    )
    tukey: float = Field(
        default=0.5, gt=0, le=1, description="power of the features (their sign is kept); 1: as they are"
    )
    variance_shrinkage: float = Field(
        default=1.0, gt=0, description="how many times the mean variance is added to each variance"
    )
    covariance_shrinkage: float = Field(
        default=1.0, ge=0, description="how many times the mean covariance is added to each; at most variance_shrinkage"
    )

    @field_validator("covariance_shrinkage")
    @classmethod
    def _at_most(cls, shrinkage: float, info: ValidationInfo) -> float:
        most = info.data.get("variance_shrinkage")
        if most is not None and shrinkage > most:
            raise ValueError(f"{shrinkage:g} must be at most variance_shrinkage, {most:g}, or no inverse need exist")
        return shrinkage


class TukeyPower(FeatureMap):
    """A power of each feature below 1, on Tukey's ladder, which makes skewed features more like normal ones."""

    def __init__(self, feature_dim: int, power: float) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.power = power

    def forward(self, features: Tensor) -> Tensor:
        """Return the powers Tensor[B, D] of features Tensor[B, D], with their signs."""
        return features.sign() * features.abs() ** self.power


class NearestMean(DecisionRule):
    """Answers with the class whose mean is nearest, over all heads together."""

    def heads(self, model: IncrementalModel) -> list[Head]:
        return [model.head(name) for name in model.heads]

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        heads = self.heads(model)
        together = torch.cat([head(features) for head in heads], dim=1).softmax(dim=1)
        return list(torch.split(together, [len(head.rows) for head in heads], dim=1))

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        probability, place = torch.cat(self.probabilities(model, features), dim=1).max(dim=1)
        rows = torch.tensor([row for head in self.heads(model) for row in head.rows], device=place.device)
        return Prediction(rows[place], probability, known=probability)


def not_noised(params: FeCAMSettings, mechanism: str) -> str:
    """Explain why covariances cannot be private here."""
    return "its covariances are not made for noised sums; choose streaming_ridge"


class FeCAM(Method[FeCAMSettings]):
    """Each class is its mean; how far an image is from it counts in units of how features vary and go together.

    Source: FeCAM (Goswami et al., arXiv 2309.14062) on the frozen network: powers of the features, covariances that are
    shrunk and scaled to correlations, Mahalanobis distances between vectors of unit length. Sites send numbers of
    images, sums, and a Gram matrix, for all classes or for each one, so the answer is that of pooled images, whatever
    the split and the order. Deviations: a class's mean is that of the powers, where the authors take the power of the
    mean; the shared covariance is that within classes, over all images, and is scaled and shrunk as those of single
    classes are; the network is not trained on the first task. Probabilities are flat, since unit vectors are near.
    """

    name = "fecam"
    paper_url = "https://arxiv.org/abs/2309.14062"
    freezes_backbone = True
    deployed = ("heads.*.weight", "heads.*.bias")
    decision = NearestMean()
    governance = Governance(obstacle_to_privacy=not_noised, forgets=True)

    def grow(self, model: IncrementalModel, task: int) -> None:
        if task == 0:
            inner = features_to_map(self.params, model)
            model.extractor = MappedBackbone(inner, TukeyPower(inner.feature_dim, self.params.tukey))
        seen = self.stream.seen(task)
        if self.params.covariance == "shared":
            model.heads[CLASSES] = SharedCovarianceHead(model.feature_dim, seen)
        else:
            for label in seen:
                model.heads[f"class{label}"] = OwnCovarianceHead(model.feature_dim, (label,))

    def stages(self, task: int) -> Sequence[Stage]:
        add = Summarise(
            "sum",
            down=(),
            up=SUMS,
            inputs="features",
            learns_from=new_images,
            computes=sums_by_head,
            finish=self.add_to_totals,
            correct=partial(self.add_to_totals, corrects=True),
        )
        return (add,)

    def add_to_totals(self, model: IncrementalModel, archive: Archive, task: int, *, corrects: bool = False) -> None:
        """Add the totals of all images so far to the sums that the sites brought, keep them, and set what answers.

        If it `corrects`, the sums are the negative ones of withdrawn records, which may leave a class without any.
        """
        state = model.state_dict()
        sums = {name: state[name] for name in matching(state, SUMS)}
        for name in sums.keys() & archive.keys():
            sums[name][tuple(slice(size) for size in archive[name].shape)] += archive[name]
        for head in heads_of(model).values():
            if corrects:
                head.clear_absent()
            head.solve_distances(self.params.variance_shrinkage, self.params.covariance_shrinkage)
        archive.update({name: tensor.clone() for name, tensor in sums.items()})


def sums_by_head(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the sums of a site's images for each head, Gram matrices as thin factors where those are shorter."""
    found, state = list(batches), model.state_dict()
    sums = {name: state[name] for name in matching(state, SUMS)}
    for name, head in heads_of(model).items():
        chosen = ((features, labels, is_any_of(head.rows, labels)) for features, labels in found)
        own = [(features[mine], labels[mine]) for features, labels, mine in chosen if mine.any()]
        factor = head.add_thinly(own) if own else torch.empty(0, model.feature_dim, dtype=torch.float64)
        if factor is not None:
            sums[f"heads.{name}.gram"] = factor
    return sums


def heads_of(model: IncrementalModel) -> dict[str, SharedCovarianceHead]:
    """Find the heads by name: one for all classes, or one for each."""
    return {name: head for name, head in model.heads.items() if isinstance(head, SharedCovarianceHead)}
