"""Nearest class mean with covariances, on the frozen network: all of it from sums of everything ever seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.feature_maps import MappedBackbone, TukeyPower, features_to_map
from dynammo_core.methods.nearest_mean import SUMS, NearestMean, add_to_totals, heads_of, sums_by_head
from dynammo_core.methods.rehearsal import new_images
from dynammo_core.methods.settings.closed_form import FeCAMSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.mahalanobis import OwnCovarianceHead, SharedCovarianceHead
from dynammo_core.plan import Archive, Stage, Summarise


class FeCAM(Method[FeCAMSettings]):
    """Each class is its mean; how far an image is from it counts in units of how features vary and go together.

    Source: FeCAM (Goswami et al., arXiv 2309.14062) on the frozen network: powers of the features, covariances that are
    shrunk and scaled to correlations, Mahalanobis distances between vectors of unit length. Sites send numbers of
    images, sums, and a Gram matrix, for all classes or for each one, so the answer is that of pooled images, whatever
    the split and the order. Deviations: a class's mean is that of the powers, where the authors take the power of the
    mean; the shared covariance is that within classes, over all images, and is scaled and shrunk as those of single
    classes are; the network is not trained on the first task.
    """

    name = "fecam"
    paper_url = "https://arxiv.org/abs/2309.14062"
    freezes_backbone = True
    deployed = ("heads.*.weight", "heads.*.bias")
    decision = NearestMean()

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
            fewest_samples=1,
            computes=sums_by_head,
            finish=self.solve,
            keeps_sums=True,
            correct=partial(self.solve, corrects=True),
        )
        return (add,)

    def solve(self, model: IncrementalModel, archive: Archive, task: int, *, corrects: bool = False) -> None:
        """Set what answers from the sums of all images so far; withdrawn records leave them if it `corrects`."""
        add_to_totals(model, archive, corrects=corrects)
        for head in heads_of(model).values():
            head.solve_distances(self.params.variance_shrinkage, self.params.covariance_shrinkage)
