from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo_core.models.heads import OTHERS, LinearHead, head_rows


def labels(*values: int) -> Tensor:
    return torch.tensor(values)


def test_targets_are_rows_not_classes() -> None:
    assert LinearHead(2, (7, 3, 5)).targets(labels(5, 7, 7, 3)).tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize("rows", [(4, 9, OTHERS), (OTHERS, 4, 9)])
def test_labels_without_a_row_of_their_own_go_to_others(rows: tuple[int, ...]) -> None:
    targets = LinearHead(2, rows).targets(labels(9, 0, 4, 123)).tolist()
    assert [rows[target] for target in targets] == [9, OTHERS, 4, OTHERS]


@given(
    classes=st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True),
    asked=st.lists(st.integers(0, 50), min_size=1, max_size=20),
)
def test_each_target_is_the_row_of_its_label(classes: list[int], asked: list[int]) -> None:
    rows = (*classes, OTHERS)
    targets = LinearHead(2, rows).targets(labels(*asked))
    assert targets.dtype == torch.int64
    assert [rows[t] for t in targets.tolist()] == [label if label in classes else OTHERS for label in asked]


def test_a_label_that_no_row_stands_for_is_named() -> None:
    with pytest.raises(ValueError, match=r"label 8 has no row in a head of the classes \(7, 3\)"):
        LinearHead(2, (7, 3)).targets(labels(3, 8, 9))


def test_an_extended_head_says_the_same_of_the_classes_it_had() -> None:
    head = LinearHead(4, (7, 3))
    grown, features = head.extended((5, 1, 0)), torch.randn(6, 4)
    assert grown.rows == (7, 3, 5, 1, 0)
    assert torch.equal(grown.weight[:2], head.weight)
    assert torch.equal(grown.bias[:2], head.bias)
    torch.testing.assert_close(grown(features)[:, :2], head(features))
    assert grown.weight[2:].unique(dim=0).shape == (3, 4)  # new rows start at random


def test_an_extended_head_is_a_trainable_one_of_its_own() -> None:
    head = LinearHead(4, (7, 3))
    kept = head.weight.clone()
    grown = head.extended((5,))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in grown.parameters())
    nn.init.zeros_(grown.weight)
    assert torch.equal(head.weight, kept)


def test_rows_of_every_tensor_of_every_head_by_name() -> None:
    model = nn.ModuleDict({"heads": nn.ModuleDict({"a": LinearHead(2, (1, OTHERS))}), "other": nn.Linear(2, 2)})
    assert head_rows(model) == {"heads.a.weight": (1, OTHERS), "heads.a.bias": (1, OTHERS)}
    assert head_rows(model).keys() <= model.state_dict().keys()
