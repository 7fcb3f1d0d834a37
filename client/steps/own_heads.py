"""Solve a site's own heads from features of its images, as its method asks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from client.steps.assignment import Assignment
from dynammo_core.plan import LearnsFrom, OwnHeads, Sums


def solved_heads(assignment: Assignment, solve: OwnHeads, learns_from: LearnsFrom) -> Mapping[str, Sums]:
    """Solve heads from features of the site's images, task by task, as they were embedded when they were summed."""
    images, tasks = learns_from(assignment.site.rehearsal(assignment.step.task)), assignment.experiment.stream.tasks
    places = [torch.isin(images.labels, torch.tensor(task)).nonzero().flatten() for task in tasks]
    learnt = [assignment.embed_once(images.subset(part), "features").float() for part in places if len(part)]
    order = torch.cat(places)
    return solve(
        assignment.model,
        torch.cat(learnt) if learnt else torch.empty(0),
        images.labels[order],
        [images.patient_ids[place] for place in order.tolist()],
    )
