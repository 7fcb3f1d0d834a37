"""Joint training on the images of all tasks seen so far: the upper bound, which may keep every image."""

from __future__ import annotations

from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import Rehearsal
from dynammo_core.methods.single_head import SingleHeadMethod
from dynammo_core.plan import Stage


class Joint(SingleHeadMethod):
    """Trains on everything that was ever seen, as if no image had ever to be given up."""

    name = "joint"
    paper_url = "https://arxiv.org/abs/1606.09282"
    uses_memory = False

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return rehearsal.seen
