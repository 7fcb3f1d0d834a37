"""DP-SGD (Abadi et al., arXiv 1607.00133): each sample's gradient is shortened, and their weighed sum is noised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynammo_core.privacy.noise import Noise

HELD = 2**25
"""How many numbers of per-sample gradients are held at a time: each sample has one per trained number."""


class PrivateGradients:
    """Sets gradients to (sum of shortened gradients of samples + noise) / expected samples, instead of a backward pass.

    Samples whose weights add up to 1 change the sum by `clip` at most, and the noise has the standard deviation
    `noise_multiplier * clip` in each coordinate. An empty batch is noise alone. Per-sample gradients come from
    `torch.func`, which handles every module; opacus handles neither a transposed convolution nor a bare scale.

    Args:
        model: its parameters that require gradients are trained; no module of it may mix samples.
        loss: loss of a batch, inputs Tensor[B, ...] and labels Tensor[B]; a mean over samples.
        clip: L2 norm, over all trained tensors together, that a sample's gradient is shortened to.
        noise_multiplier: 0 adds no noise.
        expected: weight that the sum is divided by, not that of the batch, which is a secret.
        noise: source of the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        clip: float,
        noise_multiplier: float,
        expected: float,
        noise: Noise,
    ) -> None:
        self._clip, self._deviation, self._expected, self._noise = clip, noise_multiplier * clip, expected, noise
        self._module = _Loss(model, loss)
        self._trained = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        self._chunk = max(1, HELD // sum(p.numel() for p in self._trained.values()))

    def __call__(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Set the gradient of every trained parameter from a batch of B samples with their weights, Tensor[B]."""
        sums = self.clipped_sum(inputs, labels, weights)
        for name, parameter in self._trained.items():
            noised = sums[name]
            if self._deviation:
                drawn = self._noise.normal(parameter.numel()).view(parameter.shape)
                noised = noised + (self._deviation * drawn).to(noised)
            parameter.grad = noised / self._expected

    def clipped_sum(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Sum the shortened gradients of a batch by their weights; a gradient that is not finite counts as zero."""
        sums = {name: torch.zeros_like(parameter) for name, parameter in self._trained.items()}
        values = {name: parameter.detach() for name, parameter in self._trained.items()}
        for start in range(0, len(labels), self._chunk):
            part = slice(start, start + self._chunk)
            chunk, targets = inputs[part], labels[part]
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no rule for many samples at once
                each: Mapping[str, Tensor] = vmap(grad(self._loss_of), in_dims=(None, 0, 0))(values, chunk, targets)
            norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in each.values()]).norm(dim=0)
            factors = (self._clip / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
            factors = factors * weights[part].to(factors)
            usable = torch.isfinite(norms)
            for name, gradients in each.items():
                sums[name] += torch.einsum("b,b...->...", factors[usable], gradients[usable])
        return sums

    def _loss_of(self, values: Mapping[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        """Compute the loss of a single sample, as a batch of one."""
        value: Tensor = functional_call(self._module, dict(values), (one.unsqueeze(0), label.unsqueeze(0)))
        return value


class _Loss(nn.Module):
    """A loss as a module, so that other values can stand for the parameters of the model that it reads."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self._loss(inputs, labels)
