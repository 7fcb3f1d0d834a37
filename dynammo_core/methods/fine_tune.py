"""Fine-tuning on the new classes alone: the lower bound, which forgets."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.heads import grow_classifier, train
from dynammo_core.methods.rehearsal import new_images
from dynammo_core.methods.settings.heads import SingleHeadSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage


class FineTune(Method[SingleHeadSettings]):
    """Learns each task from its own images and keeps nothing of the ones before."""

    name = "fine_tune"
    paper_url = "https://arxiv.org/abs/1606.09282"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        return train(self.params, new_images)
