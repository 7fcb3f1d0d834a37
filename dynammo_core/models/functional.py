"""A function of a model as a module, so that other values can stand for the model's parameters in `torch.func`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

HELD = 2**25
"""Numbers in the gradients of samples that are held at a time: each sample has one for every parameter."""


class FunctionOf(nn.Module):
    """What a function that reads a model makes of its inputs; the model's tensors are found under `model.`."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """The function's value."""
        return self._function(*inputs)
