"""Experience replay: fine-tuning on the new classes together with the exemplars of the old ones."""

from __future__ import annotations

from dynammo_core.methods.single_head import RehearsalMethod


class Replay(RehearsalMethod):
    """Cross-entropy over each task's images and the site's exemplars."""

    name = "replay"
    paper_url = "https://arxiv.org/abs/1902.10486"
