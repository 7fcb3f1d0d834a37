"""What the methods without gradients share: a frozen network, sums over samples, one solve at the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from dynammo_core.methods.base import CLASSES, Batch, Method, SumNoise
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, MultiScaleBackbone
from dynammo_core.models.ridge import RidgeHead
from dynammo_core.plan import Stage
from dynammo_core.settings import MethodSettings

HEAD = f"heads.{CLASSES}"
GRAM = f"{HEAD}.gram"
SUMS = (f"{HEAD}.counts", GRAM, f"{HEAD}.products")


class ClosedFormSettings(MethodSettings):
    """The features, and how smooth the solution is."""

    multi_scale: bool = Field(default=True, description="the pooled inputs of every stage beside the last features")
    regulariser: float | None = Field(
        default=None, gt=0, description="of ridge regression; null: by generalised cross-validation of the sums"
    )


class ClosedFormMethod(Method):
    """Ridge regression on the features of the pretrained network, from sums that the sites add up."""

    Params = ClosedFormSettings
    params: ClosedFormSettings
    freezes_backbone = True
    deployed = (f"{HEAD}.weight", f"{HEAD}.bias")

    def grow(self, model: IncrementalModel, task: int) -> None:
        if self.params.multi_scale and task == 0:
            assert isinstance(model.extractor, AdaptedBackbone)
            model.extractor = MultiScaleBackbone(model.extractor.backbone)
        model.heads[CLASSES] = RidgeHead(model.feature_dim, self.stream.seen(task))

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        head = ridge_head(model)
        for features, labels in batches:
            head.add(features, labels)
        return {name: tensor for name, tensor in model.state_dict().items() if name in stage.up}

    @classmethod
    def obstacle_to_privacy(cls, params: MethodSettings, mechanism: str) -> str:
        return "" if mechanism == "example" else "its sums over samples have no mean over sites; take example"

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
                lengths = features.double().norm(dim=1, keepdim=True)
                head.add(features.double() * (bound / lengths).clamp_max(1), labels)
            head.blur(counts, bound, noise)
        return {name: tensor for name, tensor in model.state_dict().items() if name in stage.up}

    def solve(self, model: IncrementalModel) -> None:
        """Solve from the sums, noised or not."""
        head = ridge_head(model)
        solve = head.solve if self.privacy.mechanism == "none" else head.solve_noised
        solve(self.params.regulariser)


def ridge_head(model: IncrementalModel) -> RidgeHead:
    """The classifier and its sums."""
    head = model.head(CLASSES)
    assert isinstance(head, RidgeHead)
    return head
