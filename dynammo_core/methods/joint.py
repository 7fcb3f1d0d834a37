"""Joint training on the images of all tasks seen so far: the upper bound, which may keep every image."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.heads import SingleHeadSettings, grow_classifier, train
from dynammo_core.methods.rehearsal import everything_seen
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Stage


class Joint(Method[SingleHeadSettings]):
    """Trains on everything that was ever seen, as if no image had ever to be given up."""

    name = "joint"
    paper_url = "https://arxiv.org/abs/1606.09282"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)

    def stages(self, task: int) -> Sequence[Stage]:
        training = train(self.params, everything_seen)
        return (training,)
