"""DER (Yan et al., arXiv 2103.16788): a network for each task, their features in a row, and a rebalanced classifier."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.configuration.settings import Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import CLASSES, Archive, LossContext, Rehearsal
from dynammo_core.methods.single_head import RehearsalMethod, RehearsalSettings
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.models.incremental_model import AdaptedBackbone, IncrementalModel, ParallelBackbones
from dynammo_core.plan import Action, Stage

AUXILIARY = "auxiliary"


class DynamicERSettings(RehearsalSettings):
    """Stage 1 trains the newest network and the classifier; stage 2 trains the classifier anew."""

    auxiliary: float = Field(default=1.0, ge=0, description="lambda_a, weight of the auxiliary loss")
    temperature: float = Field(default=5.0, gt=0, description="of the softmax in stage 2")
    balance: Optimisation = Optimisation(epochs=30, learning_rate=0.1)


class DynamicER(RehearsalMethod):
    """Earlier networks are frozen, weights and batch-norm statistics; a new one, which starts as the last, learns.

    Deviation: no channel masks, so nothing is pruned: the cost grows by a whole network a task.
    """

    name = "dynamic_er"
    paper_url = "https://arxiv.org/abs/2103.16788"
    Params = DynamicERSettings
    params: DynamicERSettings
    deployed = ("extractor.*", f"heads.{CLASSES}.*", "heads.means.*")

    def stages(self, task: int) -> Sequence[Stage]:
        head = f"heads.{CLASSES}.*"
        auxiliary = (f"heads.{AUXILIARY}.*",) if task else ()
        newest = (f"extractor.parts.{task}.*", head, *auxiliary)
        train = Stage("train", Action.FIT, ("extractor.*", head, *auxiliary), newest, self.params.train)
        balance = Stage("balance", Action.FIT, ("extractor.*", head), (head,), self.params.balance, inputs="features")
        return (train, balance) if task else (train,)

    def grow(self, model: IncrementalModel, task: int) -> None:
        extractor, new = model.extractor, self.stream.classes(task)
        if isinstance(extractor, ParallelBackbones):
            model.extractor = ParallelBackbones([*extractor.all_parts, copy.deepcopy(extractor.newest)])
            model.heads[CLASSES] = model.head(CLASSES).extended(new, model.feature_dim - extractor.feature_dim)
        else:
            assert isinstance(extractor, AdaptedBackbone)
            model.extractor = ParallelBackbones([extractor])
            model.heads[CLASSES] = LinearHead(model.feature_dim, new)
        self.grow_means(model, task)
        model.heads[AUXILIARY] = LinearHead(_newest(model).feature_dim, (*new, OTHERS))

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return rehearsal.balanced() if stage.name == "balance" else super().training_set(stage, rehearsal)

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Stage 1, equation 8: cross-entropy + lambda_a auxiliary; stage 2: cross-entropy of softened logits.

        The auxiliary classifier sees the newest network alone and tells the new classes and all others apart; in the
        first task, which has no others, it stays out.
        """
        head = model.head(CLASSES)
        features = model.extractor.embed(inputs, start=context.stage.inputs)
        if context.stage.name == "balance":
            return F.cross_entropy(head(features) / self.params.temperature, head.targets(labels))
        classification = F.cross_entropy(head(features), head.targets(labels))
        if not context.task:
            return classification
        auxiliary = model.head(AUXILIARY)
        own = features[:, -_newest(model).feature_dim :]
        return classification + self.params.auxiliary * F.cross_entropy(auxiliary(own), auxiliary.targets(labels))

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        if task and stage.name == "train":
            # Section 3.4: the classifier is drawn anew and learns from the balanced set alone.
            model.heads[CLASSES] = LinearHead(model.feature_dim, self.stream.seen(task))


def _newest(model: IncrementalModel) -> AdaptedBackbone:
    assert isinstance(model.extractor, ParallelBackbones)
    return model.extractor.newest
