"""Experience replay: fine-tuning on the new classes together with the exemplars of the old ones."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.heads import grow_class_means, grow_classifier, remember, train
from dynammo_core.methods.rehearsal import new_and_exemplars
from dynammo_core.methods.settings.heads import RehearsalSettings
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage


class Replay(Method[RehearsalSettings]):
    """Minimises the cross-entropy over each task's images and the site's exemplars."""

    name = "replay"
    paper_url = "https://arxiv.org/abs/1902.10486"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)
        grow_class_means(model, self.stream, task, self.params)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, new_and_exemplars)
        return (*training, *remember(self.params, self.deployed))
