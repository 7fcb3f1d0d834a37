"""A balanced classifier in closed form, from the exemplars and the new images of all sites: one solve a task."""

from __future__ import annotations

from dynammo_core.methods.closed_form import BalancedClosedForm


class Ridge(BalancedClosedForm):
    """The balanced closed form on the frozen network."""

    name = "ridge"
    paper_url = "https://arxiv.org/abs/2404.14099"
