"""Fisher merging (Matena and Raffel, arXiv 2111.09832): entries weigh as much as a task's answers need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic
from dynammo_core.merging.averages import merge_mean
from dynammo_core.merging.task_sets import State, TaskSets
from dynammo_core.models.functional import HELD, FunctionOf

FLOOR = 1e-6
"""The least that an entry weighs, where the root mean square is 1: what no task needs is the plain mean."""


def diagonal_fisher(
    model: nn.Module,
    names: Sequence[str],
    logits: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Of each entry w, the mean over samples x of E_y[(d log p(y | x) / dw)^2] (equation 3, its diagonal), by name.

    The expectation is over the model's own answers y, as in the paper, and exact: a head has few rows. So it reads no
    label, and is the Fisher information; squared gradients of the labels' losses are not (arXiv 1905.12558).

    Args:
        model: in eval mode, or samples would mix.
        names: of the parameters to derive by.
        logits: by the model, Tensor[B, R] of inputs Tensor[B, ...].
        batches: inputs and labels, at least one sample in all.
    """
    function = FunctionOf(model, logits)
    values = {f"model.{name}": model.get_parameter(name).detach() for name in names}
    numbers = sum(value.numel() for value in values.values())
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in values.items()}
    samples = 0

    def log_probabilities(values: Mapping[str, Tensor], one: Tensor) -> tuple[Tensor, Tensor]:
        """Of a single sample, as a batch of one, Tensor[R], twice: to be derived, and as it is."""
        own = functional_call(function, dict(values), (one.unsqueeze(0),)).squeeze(0).log_softmax(dim=0)
        return own, own

    of_each = vmap(jacrev(log_probabilities, has_aux=True), in_dims=(None, 0))
    for inputs, labels in batches:
        rows = logits(inputs[:1]).shape[1]
        for chunk in inputs.split(max(1, HELD // (rows * numbers))):
            derivatives, logs = of_each(values, chunk)
            for name, total in sums.items():
                total += torch.einsum("br,br...->...", logs.exp(), derivatives[name].square())
        samples += len(labels)
    return {name.removeprefix("model."): (sums[name] / samples).to(value) for name, value in values.items()}


def comparable(fisher: State) -> dict[str, Tensor]:
    """A task's Fisher information with a root mean square of 1 over all entries, so that no task outweighs the others.

    The authors' code, too, divides by the norm. What a site says below 0 counts as 0.
    """
    positive = {name: tensor.clamp_min(0) for name, tensor in fisher.items()}
    scale = torch.cat([tensor.double().flatten() for tensor in positive.values()]).square().mean().sqrt()
    return {
        name: (tensor / scale.clamp_min(torch.finfo(tensor.dtype).tiny)).to(tensor) for name, tensor in positive.items()
    }


def merge_fisher(given: TaskSets) -> dict[str, Tensor]:
    """The mean of each entry, each set weighing its Fisher information (equation 4); batch-norm statistics pooled."""
    merged = merge_mean(given)
    for name, plain in merged.items():
        if not is_batch_norm_statistic(name):
            weights = torch.stack([fisher[name].double() for fisher in given.importance]).clamp_min(FLOOR)
            stacked = torch.stack([tensors[name].double() for tensors in given.sets])
            merged[name] = ((weights * stacked).sum(dim=0) / weights.sum(dim=0)).to(plain)
    return merged
