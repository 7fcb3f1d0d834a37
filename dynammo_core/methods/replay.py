"""Experience replay: fine-tuning on the new classes together with the exemplars of the old ones."""

from __future__ import annotations

from dynammo_core.data.samples import Samples
from dynammo_core.methods.base import Rehearsal
from dynammo_core.methods.single_head import SingleHeadMethod
from dynammo_core.plan import Stage


class Replay(SingleHeadMethod):
    """Adds the site's exemplars to each task's images."""

    name = "replay"
    paper_url = "https://arxiv.org/abs/1902.10486"

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return Samples.concatenate([rehearsal.new, rehearsal.memory])
