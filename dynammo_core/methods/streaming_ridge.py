"""Sums of everything ever seen, exact over sites, tasks and class order: no exemplars, no gradients."""

from __future__ import annotations

from dynammo_core.methods.closed_form import StreamingClosedForm


class StreamingRidge(StreamingClosedForm):
    """The classifier is that of ridge regression on all images so far, although none of them is kept.

    Its statistics speak of all past data: a class of method of its own, and a privacy question of its own, as the Gram
    matrix of a site with few images can betray them. Source: recursive and analytic class-incremental learning (ACIL,
    Zhuang et al., arXiv 2205.14922), whose recursion over tasks is here a sum.
    """

    name = "streaming_ridge"
    paper_url = "https://arxiv.org/abs/2205.14922"
