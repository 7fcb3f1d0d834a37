"""Fisher merging (Matena and Raffel, arXiv 2111.09832): an entry's weight is how much a task's answers need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic
from dynammo_core.merging.averages import merge_mean
from dynammo_core.merging.task_sets import State, TaskSets
from dynammo_core.training import train_only

FLOOR = 1e-6
"""Least weight of an entry, relative to a root mean square of 1: entries that no task needs get the plain mean."""


@torch.enable_grad()
def diagonal_fisher(
    model: nn.Module,
    names: Sequence[str],
    logits: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Compute for each entry w the mean over samples x of E_y[(d log p(y | x) / dw)^2] (equation 3, diagonal), by name.

    The expectation is over the model's own answers y, as in the paper, and exact: a head has few rows. So it reads no
    label, and is the Fisher information; squared gradients of the labels' losses are not (arXiv 1905.12558).

    It takes a backward pass for each sample and row. `torch.func` would batch them: on a CPU that takes longer, and on
    any device the memory of as many gradients.

    Args:
        model: left in eval mode, or samples would mix, with gradients only for the named parameters.
        names: names of the parameters to differentiate by.
        logits: returns the model's logits Tensor[B, R] of inputs Tensor[B, ...].
        batches: inputs and labels, at least one sample in all.
    """
    train_only(model, set(names))
    parameters = [model.get_parameter(name) for name in names]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    samples = 0
    for one in (one for inputs, _ in batches for one in torch.split(inputs, 1)):
        answers = logits(one).log_softmax(dim=1).squeeze(0)
        for answer, probability in zip(answers, answers.detach().exp().tolist(), strict=True):
            derivatives = torch.autograd.grad(answer, parameters, retain_graph=True)
            for total, derivative in zip(sums, derivatives, strict=True):
                total.addcmul_(derivative, derivative, value=probability)
        samples += 1
    return {name: (total / samples).detach() for name, total in zip(names, sums, strict=True)}


def comparable(fisher: State) -> dict[str, Tensor]:
    """Scale a task's Fisher information to a root mean square of 1 over all entries, so that no task outweighs others.

    The authors' code, too, divides by the norm. A site's negative values count as 0.
    """
    positive = {name: tensor.clamp_min(0) for name, tensor in fisher.items()}
    scale = torch.cat([tensor.double().flatten() for tensor in positive.values()]).square().mean().sqrt()
    return {
        name: (tensor / scale.clamp_min(torch.finfo(tensor.dtype).tiny)).to(tensor) for name, tensor in positive.items()
    }


def merge_fisher(task_sets: TaskSets) -> dict[str, Tensor]:
    """Average each entry, weighted by each set's Fisher information (equation 4), and pool batch-norm statistics."""
    merged = merge_mean(task_sets)
    for name, plain in merged.items():
        if not is_batch_norm_statistic(name):
            weights = torch.stack([fisher[name].double() for fisher in task_sets.importance]).clamp_min(FLOOR)
            stacked = torch.stack([tensors[name].double() for tensors in task_sets.sets])
            merged[name] = ((weights * stacked).sum(dim=0) / weights.sum(dim=0)).to(plain)
    return merged
