"""The only training loop by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dynammo_core.configuration.optimisation import Optimisation

Batches = Callable[[int], Iterator[tuple[Tensor, ...]]]
"""Returns the batches of one local epoch, given its number: shuffled, augmented and on the device.

A batch is inputs and labels, and whatever else `gradients` takes."""


def train_only(model: nn.Module, names: set[str]) -> list[nn.Parameter]:
    """Let exactly the named tensors change; running statistics move, and batches normalise themselves, only if named.

    Returns:
        The parameters among them, in the model's order.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    modules = dict(model.named_modules(remove_duplicate=False))
    if any(module.training for module in modules.values()):
        model.eval()
    for prefix in {name.rpartition(".")[0] for name in names - parameters.keys()}:  # of buffers
        modules[prefix].training = True
    return [parameter for parameter in parameters.values() if parameter.requires_grad]


def learning_rate(settings: Optimisation, epoch: int) -> float:
    """Return the rate in an epoch, counted over all rounds: constant, divided by 10 at milestones, or cosine."""
    if settings.schedule == "step":
        return float(settings.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in settings.milestones))
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * epoch / (settings.rounds * settings.epochs))) / 2
    return settings.learning_rate


def fit(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Batches,
    settings: Optimisation,
    *,
    round_: int,
    proximal: float = 0.0,
    gradients: Callable[..., None] | None = None,
) -> float:
    """Minimise `loss(inputs, labels)` over `parameters` for the epochs of one round, without waiting for a GPU inside.

    Args:
        parameters: the parameters that may change.
        loss: loss of a batch; a mean over its samples.
        batches: returns the batches of an epoch.
        settings: optimiser, epochs and schedule.
        round_: round of the stage, for the schedule.
        proximal: mu of a term mu / 2 |w - start|^2 that draws the parameters to where they start (FedProx, Li et al.,
            arXiv 1812.06127). It depends on no sample, so private gradients stay private; the loss returned lacks it.
        gradients: sets the parameters' gradients from a batch, in place of a backward pass; the batch may be empty.

    Returns:
        The mean loss per sample in the last epoch; nan if `gradients` is given, which returns no loss.
    """
    optimizer = _optimizer(parameters, settings)
    start = [parameter.detach().clone() for parameter in parameters] if proximal else []
    mean_loss = math.nan
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, round_ * settings.epochs + epoch)
        total, seen = torch.zeros((), dtype=torch.float64, device=parameters[0].device), 0
        for batch in batches(epoch):
            optimizer.zero_grad(set_to_none=True)
            if gradients is not None:
                gradients(*batch)
            else:
                inputs, labels = batch
                value = loss(inputs, labels)
                value.backward()  # type: ignore[no-untyped-call]
                total += value.detach().double() * len(labels)  # stays on the device: reading it would wait
                seen += len(labels)
            if proximal:
                _draw_back(parameters, start, proximal)
            optimizer.step()
        mean_loss = float(total) / seen if gradients is None else math.nan
    return mean_loss


def shuffled(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Draw the indices of an epoch's batches; a last batch of one sample joins the one before, for batch norm."""
    batches = list(torch.split(torch.randperm(count, generator=generator), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def _draw_back(parameters: list[nn.Parameter], start: list[Tensor], proximal: float) -> None:
    """Add the gradient of the proximal term, mu (w - start); what the loss does not reach stays where it starts."""
    for parameter, origin in zip(parameters, start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - origin, alpha=proximal)


def _optimizer(parameters: list[nn.Parameter], settings: Optimisation) -> torch.optim.Optimizer:
    # One kernel for all parameters instead of several for each; on the CPU it gains nothing, and rounds differently.
    fused = True if parameters[0].is_cuda else None
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
    return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=fused)
