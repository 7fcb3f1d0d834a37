"""What methods share that learn from the model of the previous task: the teacher, and how it teaches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import TEACHER_PREFIX
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.heads import NETWORK
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Archive


def keep_teacher(model: IncrementalModel, archive: Archive, task: int) -> None:
    """Copy the model that the task before left into the archive, as the teacher of `task`; the first task has none."""
    if task:
        state = model.state_dict()
        names = matching(travelling_names(model), NETWORK)
        archive.update({f"{TEACHER_PREFIX}{name}": state[name].clone() for name in names})


def teacher(task: int) -> tuple[str, ...]:
    """List the patterns of the tensors that bring the teacher of `task` to a site."""
    return tuple(f"{TEACHER_PREFIX}{pattern}" for pattern in NETWORK) if task else ()


@torch.no_grad()
def taught_logits(teacher: IncrementalModel, images: Tensor) -> Tensor:
    """Compute the teacher's logits of the classes it knows, Tensor[B, C_old]: the first rows of its pupil's."""
    logits: Tensor = teacher.head(CLASSES)(teacher.extractor(images))
    return logits


def soft_cross_entropy(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy from a teacher's softened answers (Hinton et al., arXiv 1503.02531), batch mean.

    Args:
        logits: Tensor[B, C_old] of the pupil.
        taught: Tensor[B, C_old] of the teacher.
        temperature: divides both.
    """
    softened = (taught / temperature).softmax(dim=1)
    return -(softened * F.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


def cosine_distance(features: Tensor, taught: Tensor) -> Tensor:
    """Compute the batch mean of 1 - cos of the angle between new and old features, Tensor[B, D] each."""
    return (1 - F.cosine_similarity(features, taught, dim=1)).mean()
