"""Sums of everything ever seen on random features: a frozen layer that nobody trains widens what the network gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import ANSWERS, LargestLabel, grow_ridge
from dynammo_core.methods.closed_form_personal import evaluation
from dynammo_core.methods.closed_form_sums import streamed_sums
from dynammo_core.methods.feature_maps import FeatureMap, MappedBackbone, features_to_map
from dynammo_core.methods.rehearsal import everything_seen
from dynammo_core.methods.settings.closed_form import RanPACSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Evaluate, Stage
from dynammo_core.support.seeding import seeded_generator


class RandomProjection(FeatureMap):
    """The positive part of features times a random matrix, which is drawn where it is needed and never travels.

    Of normal numbers with the variance 2 / M, so that features keep their length on average.
    """

    def __init__(self, features: int, size: int, seed: int) -> None:
        super().__init__()
        self.feature_dim = size
        # All models of a process share it, as they share a frozen backbone; one of shapes alone has a shape of it.
        drawn = _drawn(features, size, seed).to(torch.get_default_device())
        self.register_buffer("weight", drawn, persistent=False)
        self.weight: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return random features Tensor[B, M], none below 0, of features Tensor[B, D]."""
        return torch.relu(features @ self.weight)


@lru_cache(maxsize=2)
def _drawn(features: int, size: int, seed: int) -> Tensor:
    matrix: Tensor = torch.randn(features, size, device="cpu", generator=seeded_generator("projection", seed))
    return matrix.mul_((2 / size) ** 0.5)


class RanPAC(Method[RanPACSettings]):
    """Ridge regression on the positive part of random combinations of the features, from exact sums.

    Source: RanPAC (McDonnell et al., arXiv 2307.02251), without its first-session tuning, for which `first_session` is
    the method here. Deviations: as in `streaming_ridge` classes weigh the same, features are standardised and a bias is
    not penalised, and the regulariser follows from the sums, where the authors try several on a part of the last task's
    images. Their 10,000 features take 400 MB for a Gram matrix; by default there are 2,000, and 16 MB.
    """

    name = "ranpac"
    paper_url = "https://arxiv.org/abs/2307.02251"
    freezes_backbone = True
    deployed = ANSWERS
    decision = LargestLabel()

    def grow(self, model: IncrementalModel, task: int) -> None:
        if task == 0:
            params, inner = self.params, features_to_map(self.params, model)
            projection = RandomProjection(inner.feature_dim, params.projection_size, params.projection_seed)
            model.extractor = MappedBackbone(inner, projection)
        grow_ridge(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        return streamed_sums(self)

    def evaluation(self) -> Evaluate:
        return evaluation(self, everything_seen)
