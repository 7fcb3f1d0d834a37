"""What LUCIR and PODNet share: a cosine classifier whose new rows are imprinted before they are trained."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.heads import NETWORK, mean_unit_features
from dynammo_core.methods.rehearsal import of_classes
from dynammo_core.models.heads import CosineHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Archive, Batch, Stage, Summarise

WEIGHT = f"heads.{CLASSES}.weight"
SPREAD = 0.5
"""Length of the random vectors that set the proxies of a class apart, where the mean they start from has length 1."""


def imprint(stream: TaskStream, task: int) -> tuple[Stage, ...]:
    """List the stage that starts each new class's vector at the mean of its unit features; the first task has none.

    Source: imprinting (Qi et al., arXiv 1712.07136; Hou et al., CVPR 2019). The mean is over all sites, and gets the
    mean length of the old classes' vectors. A site leaves out classes of earlier tasks that reach it late: other sites
    have trained their vectors.
    """
    if not task:
        return ()
    stage = Summarise(
        "imprint",
        down=NETWORK,
        up=(WEIGHT,),
        inputs="features",
        learns_from=of_classes(stream.classes(task)),
        computes=mean_vectors,
        finish=partial(lengthen_new_vectors, len(stream.seen(task - 1))),
    )
    return (stage,)


def mean_vectors(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute each class's mean unit feature for each of its proxies; the vector received where there are no images."""
    head = cosine_head(model)
    means = mean_unit_features(batches, head).repeat_interleave(head.proxies, dim=0)
    return {WEIGHT: torch.where(means.isnan(), head.weight, means)}


@torch.no_grad()
def lengthen_new_vectors(old: int, model: IncrementalModel, archive: Archive, task: int) -> None:
    """Set the proxies of each class but the first `old` ones apart, and give them the mean length of the old ones'."""
    head = cosine_head(model)
    rows = old * head.proxies
    new = F.normalize(head.weight[rows:], dim=1)
    if head.proxies > 1:
        new += SPREAD * F.normalize(torch.randn_like(new), dim=1)
    head.weight[rows:] = F.normalize(new, dim=1) * head.weight[:rows].norm(dim=1).mean()


def cosine_head(model: IncrementalModel) -> CosineHead:
    """Find the classifier of a method that grew a cosine head."""
    head = model.head(CLASSES)
    assert isinstance(head, CosineHead)
    return head
