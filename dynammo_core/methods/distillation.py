"""What the methods share that learn from the model of the previous task: the teacher, and how it teaches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.methods.base import CLASSES, TEACHER_PREFIX, Archive
from dynammo_core.methods.single_head import TRAINED, RehearsalMethod
from dynammo_core.models.incremental_model import IncrementalModel, matching, travelling_names


class DistillingMethod(RehearsalMethod):
    """Rehearsal beside a teacher: the model as the task before left it, which goes to the sites with `train`."""

    taught = tuple(f"{TEACHER_PREFIX}{pattern}" for pattern in TRAINED)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        if task:
            keep_teacher(model, archive)
        self.grow(model, task)


def keep_teacher(model: IncrementalModel, archive: Archive) -> None:
    """Put a copy of the model into the archive as the next task's teacher, in place of the one before."""
    state = model.state_dict()
    names = matching(travelling_names(model), TRAINED)
    archive.update({f"{TEACHER_PREFIX}{name}": state[name].clone() for name in names})


@torch.no_grad()
def taught_logits(teacher: IncrementalModel, images: Tensor) -> Tensor:
    """The teacher's logits for the classes it knows, Tensor[B, C_old]; they are the first rows of its pupil's."""
    logits: Tensor = teacher.head(CLASSES)(teacher.extractor(images))
    return logits


def soft_cross_entropy(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Cross-entropy from the softened answers of a teacher (Hinton et al., arXiv 1503.02531), a mean over the batch.

    Args:
        logits: Tensor[B, C_old] of the pupil.
        taught: Tensor[B, C_old] of the teacher.
        temperature: divides both.
    """
    softened = (taught / temperature).softmax(dim=1)
    return -(softened * F.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


def cosine_distance(features: Tensor, taught: Tensor) -> Tensor:
    """Mean over the batch of 1 - cos of the angle between new and old features, Tensor[B, D] each."""
    return (1 - F.cosine_similarity(features, taught, dim=1)).mean()
