"""Fine-tuning on the new classes alone: the lower bound, which forgets."""

from __future__ import annotations

from dynammo_core.methods.single_head import SingleHeadMethod


class FineTune(SingleHeadMethod):
    """Learns each task from its own images and keeps nothing of the ones before."""

    name = "fine_tune"
    paper_url = "https://arxiv.org/abs/1606.09282"
    uses_memory = False
