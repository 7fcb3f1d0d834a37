"""Joint training on the images of all tasks seen so far: the upper bound, which may keep every image."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.methods.base import Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.heads import grow_classifier, train
from dynammo_core.methods.rehearsal import everything_seen
from dynammo_core.methods.settings.heads import JointSettings
from dynammo_core.models.heads import LinearHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Archive, Stage

PRETRAINED = "pretrained."
"""Where the archive keeps the network that the first task started from."""


class Joint(Method[JointSettings]):
    """Trains on everything that was ever seen, as if no image had ever to be given up.

    For a bound give it augmented images (`data.augmentation`) and one site.
    """

    name = "joint"
    paper_url = "https://arxiv.org/abs/1606.09282"

    def grow(self, model: IncrementalModel, task: int) -> None:
        grow_classifier(model, self.stream, task)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        self.grow(model, task)
        if not self.params.restart:
            return
        names = matching(travelling_names(model), ("extractor.*",))
        if not task:
            state = model.state_dict()
            archive.update({f"{PRETRAINED}{name}": state[name].clone() for name in names})
            return
        model.load_state_dict({name: archive[f"{PRETRAINED}{name}"] for name in names}, strict=False)
        model.heads[CLASSES] = LinearHead(model.feature_dim, self.stream.seen(task))

    def stages(self, task: int) -> Sequence[Stage]:
        return train(self.params, everything_seen)
