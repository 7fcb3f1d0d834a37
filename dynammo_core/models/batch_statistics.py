"""The estimate of a network's batch-norm statistics on given images, by forward passes without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic, pool_batch_norm
from dynammo_core.models.names import matching


@torch.no_grad()
def batch_statistics(
    model: nn.Module,
    patterns: Sequence[str],
    batches: Iterable[tuple[Tensor, Tensor]],
    forward: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Compute running means and variances of the batch norms that the patterns name, pooled over batches.

    Each of them normalises by the current batch meanwhile, so that later layers see what they will see in use. The
    batch norms are left in training mode, with the statistics of the last batch.

    Args:
        model: the network; batch norms that are not named normalise as they stand.
        patterns: patterns of names in its state dict.
        batches: inputs and labels, of which only the number counts; each has two samples or more.
        forward: carries inputs through the network.
    """
    names = [name for name in matching(model.state_dict(), patterns) if is_batch_norm_statistic(name)]
    owners = {name.rpartition(".")[0] for name in names}
    for name, module in model.named_modules(remove_duplicate=False):
        if name in owners and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = True
            module.momentum = 1.0  # the running statistics are then those of the last batch alone
    statistics: list[dict[str, Tensor]] = []
    sizes: list[float] = []
    for inputs, labels in batches:
        forward(inputs)
        state = model.state_dict()
        statistics.append({name: state[name].clone() for name in names})
        sizes.append(len(labels))
    return pool_batch_norm(statistics, sizes)
