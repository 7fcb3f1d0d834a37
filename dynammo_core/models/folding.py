"""Folding of batch norm and of LoRA into weights: after training, the same answers from fewer operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dynammo_core.models.incremental_model import AdaptedBackbone, Extractor
from dynammo_core.models.transformers.adapters import LowRank, TransformerAdapters

Convolution = nn.Conv2d | nn.ConvTranspose2d
TOLERANCE = 1e-4


@torch.no_grad()
def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """Fold, in place, each batch norm that alone reads the output of a convolution, and return how many there were.

    With w the weights and b the bias of the convolution, m, v, g, h mean, variance, scale and shift of the batch norm,
    the convolution gets w g / sqrt(v + eps) and (b - m) g / sqrt(v + eps) + h (Jacob et al., arXiv 1712.05877,
    equation 14). One forward pass shows which module follows which, so it works for any network whose convolutions
    are read by modules, not by functions, on a path that does not depend on the input.

    Args:
        network: a network in evaluation mode.
        example: an input that it takes.

    Raises:
        ValueError: the network's answers differ afterwards, so it is not of that kind.
    """
    before = network(example)
    pairs = list(_pairs(network, example))
    for convolution, norm in pairs:
        assert norm.running_mean is not None and norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(convolution, nn.ConvTranspose2d),
        )
    rests = {norm: _rest(norm) for _, norm in pairs}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in rests:
                setattr(parent, name, rests[child])
    if not torch.allclose(network(example), before, rtol=TOLERANCE, atol=TOLERANCE * float(before.abs().max())):
        raise ValueError("batch norm cannot be folded: another operation reads the output of the convolution before it")
    return len(pairs)


@torch.no_grad()
def fold_low_rank(extractor: Extractor) -> int:
    """Add the products of LoRA to the weights beside which they ran, and return how many there were.

    A bottleneck has a nonlinearity, and a network that several passes share has other weights in each: they stay.

    Args:
        extractor: changed in place, its network included.
    """
    if not isinstance(extractor, AdaptedBackbone) or not isinstance(extractor.adapters, TransformerAdapters):
        return 0
    branches = [(place, branch) for place, branch in extractor.adapters.branches() if isinstance(branch, LowRank)]
    for place, branch in branches:
        extractor.backbone.get_submodule(f"network.{place}").get_parameter("weight").add_(branch.product())
    if branches:
        extractor.adapters = None
    return len(branches)


def _pairs(network: nn.Module, example: Tensor) -> Iterator[tuple[Convolution, nn.BatchNorm2d]]:
    """Yield each convolution with a batch norm that follows it if nothing else reads the one or feeds the other."""
    made: dict[int, Convolution] = {}
    alive: list[Tensor] = []  # an id is a tensor's own only as long as it lives
    readers: dict[nn.Module, set[nn.Module]] = {}
    read: dict[nn.Module, set[nn.Module | None]] = {}

    def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if next(module.children(), None) is not None and not isinstance(module, nn.BatchNorm2d):
            return  # its children read what it reads
        for tensor in inputs:
            source = made.get(id(tensor))
            read.setdefault(module, set()).add(source)
            if source is not None:
                readers.setdefault(source, set()).add(module)
        if isinstance(module, Convolution) and isinstance(output, Tensor):
            made[id(output)] = module
            alive.append(output)

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.callback(module.register_forward_hook(hook).remove)
        network(example)
    for convolution, following in readers.items():
        (norm, *others) = following
        if not others and isinstance(norm, nn.BatchNorm2d) and read[norm] == {convolution} and _rest(norm) is not None:
            assert isinstance(convolution, Convolution)
            yield convolution, norm


def _rest(norm: nn.BatchNorm2d) -> nn.Module | None:
    """Return what is left of a batch norm without its arithmetic (timm's have an activation); None if unknown."""
    drop, activation = getattr(norm, "drop", None), getattr(norm, "act", None)
    if isinstance(drop, nn.Module) and isinstance(activation, nn.Module):
        return nn.Sequential(drop, activation)
    return nn.Identity() if type(norm).forward is nn.BatchNorm2d.forward else None
