"""DER (Yan et al., arXiv 2103.16788): a network for each task, their features in a row, and a rebalanced classifier."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.heads import HEAD, NETWORK, grow_class_means, remember, train
from dynammo_core.methods.rehearsal import balanced, new_and_exemplars
from dynammo_core.methods.settings.heads import DynamicERSettings
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.plan import Archive, Fit, LossContext, Stage


class DynamicER(Method[DynamicERSettings]):
    """Earlier networks are frozen, weights and batch-norm statistics; a new one, which starts as the last, learns.

    Deviation: no channel masks, so nothing is pruned: the cost grows by a whole network a task.
    """

    name = "dynamic_er"
    paper_url = "https://arxiv.org/abs/2103.16788"
    deployed = ("extractor.*", *HEAD, "heads.means.*")

    def grow(self, model: IncrementalModel, task: int) -> None:
        extractor, new = model.extractor, self.stream.classes(task)
        if isinstance(extractor, ParallelBackbones):
            model.extractor = ParallelBackbones([*extractor.all_parts, copy.deepcopy(extractor.newest)])
            model.heads[CLASSES] = model.head(CLASSES).extended(new, model.feature_dim - extractor.feature_dim)
        else:
            assert isinstance(extractor, AdaptedBackbone)
            model.extractor = ParallelBackbones([extractor])
            model.heads[CLASSES] = LinearHead(model.feature_dim, new)
        grow_class_means(model, self.stream, task, self.params)
        model.heads[AUXILIARY] = LinearHead(_newest(model).feature_dim, (*new, OTHERS))

    def stages(self, task: int) -> Sequence[Stage]:
        auxiliary = (f"heads.{AUXILIARY}.*",) if task else ()
        training = train(
            self.params,
            new_and_exemplars,
            self.loss,
            network=f"extractor.parts.{task}.*",
            heads=(*HEAD, *auxiliary),
            finish=self.draw_classifier_anew,
        )
        balance = Fit(
            "balance",
            down=NETWORK,
            up=HEAD,
            inputs="features",
            optimisation=self.params.balance,
            learns_from=balanced,
            loss=self.balanced_loss,
        )
        fits = (*training, balance) if task else training
        return (*fits, *remember(self.params, self.deployed))

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Equation 8: cross-entropy + lambda_a auxiliary.

        The auxiliary classifier sees the newest network alone and tells the new classes and all others apart; in the
        first task, which has no others, it stays out.
        """
        head = model.head(CLASSES)
        features = model.extractor.embed(inputs, start=context.inputs)
        classification = F.cross_entropy(head(features), head.targets(labels))
        if not context.task:
            return classification
        auxiliary = model.head(AUXILIARY)
        newest = features[:, -_newest(model).feature_dim :]
        return classification + self.params.auxiliary * F.cross_entropy(auxiliary(newest), auxiliary.targets(labels))

    def draw_classifier_anew(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """Section 3.4: the classifier forgets what it learnt, and learns from the balanced set alone."""
        if task:
            model.heads[CLASSES] = LinearHead(model.feature_dim, self.stream.seen(task))

    def balanced_loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Stage 2: cross-entropy of softened logits."""
        head = model.head(CLASSES)
        features = model.extractor.embed(inputs, start=context.inputs)
        return F.cross_entropy(head(features) / self.params.temperature, head.targets(labels))


def _newest(model: IncrementalModel) -> AdaptedBackbone:
    assert isinstance(model.extractor, ParallelBackbones)
    return model.extractor.newest
