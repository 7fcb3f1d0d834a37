"""A copied network is what `copy.deepcopy` makes, and shares nothing with the first."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dynammo_core.models.copies import copied


class Odd(nn.Module):
    """A module with all that may hold a tensor or a module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        self.again = self.one[0]
        self.listed = [self.one[0].weight]
        self.method = self.one.forward
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("nothing", None)


def test_a_copy_is_a_deep_copy() -> None:
    first = Odd().eval()
    mine, reference = copied(first), copy.deepcopy(first)
    assert repr(mine) == repr(reference)
    assert not mine.training
    for (name, tensor), (same, expected) in zip(mine.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(tensor, expected)
        assert tensor.stride() == expected.stride()
        assert tensor.data_ptr() != first.state_dict()[name].data_ptr()
    assert [p.requires_grad for p in mine.parameters()] == [p.requires_grad for p in reference.parameters()]


def test_what_is_shared_inside_stays_shared_inside() -> None:
    mine = copied(Odd())
    assert mine.again is mine.one[0]
    assert mine.listed[0] is mine.one[0].weight
    assert mine.method.__self__ is mine.one


def test_what_a_copy_shares_with_the_first_is_named() -> None:
    first = Odd()
    mine = copied(first, shared=[first.one])
    assert mine.one is first.one
    assert mine.fixed is not first.fixed
